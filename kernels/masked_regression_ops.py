"""The masked regression as PyTorch operators, so that autograd, torch.compile and checkpointing know what it does.

Letters in shapes: O outer and I inner rows (batch and tokens), D channels, T tokens of a target grid.

The operators trust their arguments; `assay.kernels.masked_regression` checks them. prediction [O, I, D] and target
[O, I, D], or [O, T, D] with indices [O, I], have stride 1 in D; mask is bool [O, I] or [O, I, D]; weight [O, I] is
floating; normaliser is 0-d.
"""

from typing import NoReturn

import torch
from torch import Tensor, library

from assay.kernels import masked_regression_triton as kernels
from assay.kernels.loss_autograd import LossOperators
from assay.kernels.masked_regression_triton import Operands, Rules
from assay.kernels.operands import flat_or_none, refuse, require_runnable

Settings = tuple[str, float, bool, float]
"""kind, beta or power, normalise_target, eps: the arguments that all operators end with."""


def _rules(settings: Settings) -> Rules:
    kind, number, normalise, eps = settings
    return Rules(kind=kind, number=number, normalise=normalise, eps=eps)


def _tallied(
    prediction: Tensor, mask: Tensor, weight: Tensor | None, normaliser: Tensor | None, kind: str, *, mean: bool
) -> tuple[Tensor, Tensor]:
    """(count, divisor) of the entries."""
    by_element = mask.dim() == prediction.dim()
    entries = mask.sum(-1) if by_element else mask.contiguous().view(torch.uint8)
    per = 1 if by_element or kind == "cosine" else prediction.shape[-1]
    return kernels.launch_tally(entries, flat_or_none(weight), normaliser, per=per, mean=mean)


def _operands(
    prediction: Tensor, target: Tensor, mask: Tensor, indices: Tensor | None, weight: Tensor | None, divisor: Tensor
) -> Operands:
    return Operands(
        prediction=prediction, target=target, mask=mask.contiguous().view(torch.uint8),
        by_element=mask.dim() == prediction.dim(), indices=flat_or_none(indices), weight=flat_or_none(weight),
        divisor=divisor,
    )  # fmt: skip


def raise_outside(indices: Tensor, mask: Tensor, tokens: int) -> None:
    """ValueError for the first index [O, I] that is read and not in 0..tokens-1; waits for the device."""
    read = mask if mask.dim() == indices.dim() else mask.any(-1)
    outside = read & ((indices < 0) | (indices >= tokens))
    if bool(outside.any()):
        _refuse_first(indices, outside, tokens)


def _refuse_first(indices: Tensor, outside: Tensor, tokens: int) -> NoReturn:
    place = outside.nonzero()[0].tolist()
    refuse(
        ValueError, "indices", f"0 to {tokens - 1} where the mask is True", f"{int(indices[tuple(place)])} at {place}"
    )


@library.custom_op("assay::masked_regression", mutates_args=())
def forward_op(
    prediction: Tensor, target: Tensor, mask: Tensor, indices: Tensor | None, weight: Tensor | None,
    normaliser: Tensor | None, reduction: str, check: bool, kind: str, number: float, normalise: bool, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(value, count, divisor): the value is 0-d, [O, I, D], or [O, I] for the cosine."""
    require_runnable(prediction, "masked_regression", interpreted=bool(kernels.INTERPRETED))
    if check and indices is not None:
        raise_outside(indices, mask, target.shape[1])
    count, divisor = _tallied(prediction, mask, weight, normaliser, kind, mean=reduction == "mean")
    read, rules = _operands(prediction, target, mask, indices, weight, divisor), _rules((kind, number, normalise, eps))
    value = kernels.launch_each(read, rules) if reduction == "none" else kernels.launch_value(read, rules)
    return value, count, divisor


def _fake_value(prediction: Tensor, reduction: str, kind: str) -> Tensor:
    each = prediction.shape[:2] if kind == "cosine" else prediction.shape
    return prediction.new_empty(each if reduction == "none" else (), dtype=torch.float32)


@forward_op.register_fake
def _(
    prediction: Tensor, target: Tensor, mask: Tensor, indices: Tensor | None, weight: Tensor | None,
    normaliser: Tensor | None, reduction: str, check: bool, kind: str, number: float, normalise: bool, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    count = prediction.new_empty((), dtype=torch.int64)
    return _fake_value(prediction, reduction, kind), count, prediction.new_empty((), dtype=torch.float32)


@library.custom_op("assay::masked_regression_gradient", mutates_args=())
def gradient_op(
    upstream: Tensor, prediction: Tensor, target: Tensor, mask: Tensor, indices: Tensor | None, weight: Tensor | None,
    divisor: Tensor, kind: str, number: float, normalise: bool, eps: float,
) -> Tensor:  # fmt: skip
    """The gradient of the prediction, contiguous, from that of the value."""
    gradient = torch.empty(prediction.shape, dtype=prediction.dtype, device=prediction.device)
    read = _operands(prediction, target, mask, indices, weight, divisor)
    kernels.launch_gradient(read, _rules((kind, number, normalise, eps)), upstream, gradient)
    return gradient


@gradient_op.register_fake
def _(
    upstream: Tensor, prediction: Tensor, target: Tensor, mask: Tensor, indices: Tensor | None, weight: Tensor | None,
    divisor: Tensor, kind: str, number: float, normalise: bool, eps: float,
) -> Tensor:  # fmt: skip
    return prediction.new_empty(prediction.shape)


@library.custom_op("assay::masked_regression_", mutates_args=("prediction",))
def fused_op(
    prediction: Tensor, target: Tensor, mask: Tensor, indices: Tensor | None, weight: Tensor | None,
    normaliser: Tensor | None, reduction: str, check: bool, kind: str, number: float, normalise: bool, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(value, count) for "sum" and "mean"; the same pass writes the gradient over the prediction. No autograd."""
    require_runnable(prediction, "masked_regression", interpreted=bool(kernels.INTERPRETED))
    if check and indices is not None:
        raise_outside(indices, mask, target.shape[1])
    count, divisor = _tallied(prediction, mask, weight, normaliser, kind, mean=reduction == "mean")
    read = _operands(prediction, target, mask, indices, weight, divisor)
    return kernels.launch_value(read, _rules((kind, number, normalise, eps)), gradient=prediction), count


@fused_op.register_fake
def _(
    prediction: Tensor, target: Tensor, mask: Tensor, indices: Tensor | None, weight: Tensor | None,
    normaliser: Tensor | None, reduction: str, check: bool, kind: str, number: float, normalise: bool, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _fake_value(prediction, reduction, kind), prediction.new_empty((), dtype=torch.int64)


@library.custom_op("assay::masked_regression_gradient_", mutates_args=("prediction",))
def gradient_inplace_op(
    upstream: Tensor, prediction: Tensor, target: Tensor, mask: Tensor, indices: Tensor | None, weight: Tensor | None,
    divisor: Tensor, kind: str, number: float, normalise: bool, eps: float,
) -> None:  # fmt: skip
    """As `gradient_op`, written over the prediction. No autograd."""
    read = _operands(prediction, target, mask, indices, weight, divisor)
    kernels.launch_gradient(read, _rules((kind, number, normalise, eps)), upstream, prediction)


@gradient_inplace_op.register_fake
def _(
    upstream: Tensor, prediction: Tensor, target: Tensor, mask: Tensor, indices: Tensor | None, weight: Tensor | None,
    divisor: Tensor, kind: str, number: float, normalise: bool, eps: float,
) -> None:  # fmt: skip
    return None


OPERATORS = LossOperators(
    forward=forward_op, gradient=gradient_op, fused=fused_op, gradient_inplace=gradient_inplace_op, reads=5
)
"""A gradient is computed from prediction, target, mask, indices and weight."""
forward_op.register_autograd(OPERATORS.backward, setup_context=OPERATORS.save)
