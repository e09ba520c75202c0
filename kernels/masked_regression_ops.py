"""The masked regression as PyTorch operators, so that autograd, torch.compile and checkpointing know what it does.

Letters in shapes: O outer and I inner rows (batch and tokens), D channels, T tokens of a target grid.

The operators trust their arguments; `assay.kernels.masked_regression` checks them. prediction [O, I, D] and target
[O, I, D], or [O, T, D] with indices [O, I], have stride 1 in D; mask is bool [O, I] or [O, I, D]; weight [O, I] is
floating; normaliser is 0-d.
"""

from typing import Any, NoReturn

import torch
from torch import Tensor, library

from assay.kernels import masked_regression_triton as kernels
from assay.kernels.loss_arguments import refuse
from assay.kernels.masked_cross_entropy_ops import scale_op
from assay.kernels.masked_regression_triton import Operands, Rules

Settings = tuple[str, float, bool, float]
"""kind, beta or power, normalise_target, eps: the arguments that all operators end with."""


def _require_runnable(x: Tensor) -> None:
    if not (x.is_cuda or kernels.INTERPRETED):
        raise RuntimeError(
            f"this kernel runs on CUDA tensors, got one on {x.device}: move it to a GPU, use "
            "assay.reference.masked_regression instead, or set TRITON_INTERPRET=1 before Triton is imported to "
            "interpret the kernel (slow, for tests)"
        )


def _flat(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.reshape(-1).contiguous()  # the reshaped view of an expanded tensor has stride 0


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
    return kernels.launch_tally(entries, _flat(weight), normaliser, per=per, mean=mean)


def _operands(
    prediction: Tensor, target: Tensor, mask: Tensor, indices: Tensor | None, weight: Tensor | None, divisor: Tensor
) -> Operands:
    return Operands(
        prediction=prediction, target=target, mask=mask.contiguous().view(torch.uint8),
        by_element=mask.dim() == prediction.dim(), indices=_flat(indices), weight=_flat(weight), divisor=divisor,
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
    _require_runnable(prediction)
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


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, count, divisor = output
    ctx.save_for_backward(*inputs[:5], divisor)
    ctx.settings = inputs[-4:]
    ctx.mark_non_differentiable(count, divisor)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad[0] and upstream is not None
    gradient = gradient_op(upstream, *ctx.saved_tensors, *ctx.settings) if wanted else None
    return (gradient, *(None,) * 11)


forward_op.register_autograd(_backward, setup_context=_save)


@library.custom_op("assay::masked_regression_", mutates_args=("prediction",))
def fused_op(
    prediction: Tensor, target: Tensor, mask: Tensor, indices: Tensor | None, weight: Tensor | None,
    normaliser: Tensor | None, reduction: str, check: bool, kind: str, number: float, normalise: bool, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(value, count) for "sum" and "mean"; the same pass writes the gradient over the prediction. No autograd."""
    _require_runnable(prediction)
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


class _FusedInPlace(torch.autograd.Function):
    """The loss whose gradient stands where the prediction was when forward ends; backward multiplies it by what comes.

    The prediction is not marked dirty: it has no value any more that could be differentiated. Its version counter
    moves, so a backward elsewhere that needs the old prediction fails, as does a second backward here.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        value, count = fused_op(*arguments)
        ctx.save_for_backward(arguments[0])
        ctx.mark_non_differentiable(count)
        return value, count

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        gradient = ctx.saved_tensors[0].detach()
        scale_op(gradient, upstream)
        return (gradient, *(None,) * 11)


class _GradientInPlace(torch.autograd.Function):
    """The loss whose backward writes the gradient over the prediction, for what forward cannot know or not hold."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        value, count, divisor = forward_op(*arguments)
        ctx.save_for_backward(*arguments[:5], divisor)
        ctx.mark_non_differentiable(count)
        ctx.settings = arguments[-4:]
        return value, count

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        prediction, *rest = ctx.saved_tensors
        gradient = prediction.detach()
        gradient_inplace_op(upstream, gradient, *rest, *ctx.settings)
        return (gradient, *(None,) * 11)


def inplace_loss(*arguments: Any) -> tuple[Tensor, Tensor]:
    """(value, count) of the arguments of `forward_op`, with a gradient that overwrites the prediction.

    fp16 predictions are overwritten in backward as well: a mean's gradient, written before the loss scale is known,
    would underflow.
    """
    prediction, reduction = arguments[0], arguments[6]
    later = reduction == "none" or prediction.dtype == torch.float16
    value, count = (_GradientInPlace if later else _FusedInPlace).apply(*arguments)  # type: ignore[no-untyped-call]
    return value, count
