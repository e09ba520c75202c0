"""The masked cross-entropy as PyTorch operators, so that autograd, torch.compile and checkpointing know what it does.

Letters in shapes: V vocabulary, N rows (one per label).

The operators trust their arguments; `assay.kernels.masked_cross_entropy` checks them. logits [..., V] have any strides
that `operands.rows_of` can walk, labels [...] are int64, weight [...] floating, normaliser is 0-d.
"""

import torch
from torch import Tensor, library

from assay.kernels import masked_cross_entropy_launch as launch
from assay.kernels.loss_arguments import raise_stranger
from assay.kernels.loss_autograd import LossOperators
from assay.kernels.masked_cross_entropy_launch import Rules
from assay.kernels.operands import checked_rows, flat, flat_or_none, require_runnable

Settings = tuple[int, float, float, float, bool]
"""ignore_index, softcap (0 for none), label_smoothing, z_loss, shift: the arguments that all operators end with."""


def _rules(labels: Tensor, settings: Settings) -> Rules:
    ignore_index, softcap, label_smoothing, z_loss, shift = settings
    return Rules(
        ignore_index=ignore_index, softcap=softcap, label_smoothing=label_smoothing, z_loss=z_loss,
        length=labels.shape[-1] if shift else 0,
    )  # fmt: skip


def _counted(
    logits: Tensor, labels: Tensor, weight: Tensor | None, normaliser: Tensor | None, rules: Rules, *, mean: bool,
    check: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(count, divisor) of the labels; ValueError with `check` for one outside the vocabulary."""
    require_runnable(logits, "masked_cross_entropy", interpreted=launch.INTERPRETED)
    vocabulary = logits.shape[-1]
    count, strangers, divisor = launch.count_labels(
        flat(labels), flat_or_none(weight), normaliser, rules, vocabulary=vocabulary, mean=mean
    )
    if check and int(strangers):
        raise_stranger(labels, vocabulary, rules.ignore_index, shift=rules.length > 0)
    return count, divisor


@library.custom_op("assay::cross_entropy", mutates_args=())
def forward_op(
    logits: Tensor, labels: Tensor, weight: Tensor | None, normaliser: Tensor | None, reduction: str, check: bool,
    ignore_index: int, softcap: float, label_smoothing: float, z_loss: float, shift: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(value, count, peaks [N], masses [N], divisor): the loss, and what its gradient is computed from."""
    rules = _rules(labels, (ignore_index, softcap, label_smoothing, z_loss, shift))
    count, divisor = _counted(logits, labels, weight, normaliser, rules, mean=reduction == "mean", check=check)
    losses, peaks, masses = launch.score_rows(
        checked_rows(logits), flat(labels), flat_or_none(weight), divisor, rules, statistics=True
    )
    assert peaks is not None
    assert masses is not None
    value = losses.view(labels.shape) if reduction == "none" else launch.sum_losses(losses, divisor)
    return value, count, peaks, masses, divisor


@forward_op.register_fake
def _(
    logits: Tensor, labels: Tensor, weight: Tensor | None, normaliser: Tensor | None, reduction: str, check: bool,
    ignore_index: int, softcap: float, label_smoothing: float, z_loss: float, shift: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    value, count = _fake_loss(logits, labels, reduction)
    peaks, masses = (logits.new_empty((labels.numel(),), dtype=torch.float32) for _ in range(2))
    return value, count, peaks, masses, logits.new_empty((), dtype=torch.float32)


def _fake_loss(logits: Tensor, labels: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    shape = labels.shape if reduction == "none" else ()
    return logits.new_empty(shape, dtype=torch.float32), labels.new_empty(())


@library.custom_op("assay::cross_entropy_gradient", mutates_args=())
def gradient_op(
    upstream: Tensor, logits: Tensor, labels: Tensor, weight: Tensor | None, peaks: Tensor, masses: Tensor,
    divisor: Tensor, ignore_index: int, softcap: float, label_smoothing: float, z_loss: float, shift: bool,
) -> Tensor:  # fmt: skip
    """The gradient of the logits, contiguous, from that of the value (0-d or [...])."""
    gradient = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    settings = (ignore_index, softcap, label_smoothing, z_loss, shift)
    _fill_gradient(gradient, upstream, logits, labels, weight, (peaks, masses, divisor), settings)
    return gradient


@gradient_op.register_fake
def _(
    upstream: Tensor, logits: Tensor, labels: Tensor, weight: Tensor | None, peaks: Tensor, masses: Tensor,
    divisor: Tensor, ignore_index: int, softcap: float, label_smoothing: float, z_loss: float, shift: bool,
) -> Tensor:  # fmt: skip
    return logits.new_empty(logits.shape)


def _fill_gradient(
    gradient: Tensor, upstream: Tensor, logits: Tensor, labels: Tensor, weight: Tensor | None,
    kept: tuple[Tensor, Tensor, Tensor], settings: Settings,
) -> None:  # fmt: skip
    peaks, masses, divisor = kept
    launch.fill_gradient(
        checked_rows(logits), checked_rows(gradient), flat(labels), flat_or_none(weight), divisor,
        flat(upstream) if upstream.dim() else upstream, (peaks, masses),
        _rules(labels, settings),
    )  # fmt: skip


@library.custom_op("assay::cross_entropy_", mutates_args=("logits",))
def fused_op(
    logits: Tensor, labels: Tensor, weight: Tensor | None, normaliser: Tensor | None, reduction: str, check: bool,
    ignore_index: int, softcap: float, label_smoothing: float, z_loss: float, shift: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(value, count) for "sum" and "mean"; the gradient of the value is written over the logits. No autograd."""
    rules = _rules(labels, (ignore_index, softcap, label_smoothing, z_loss, shift))
    count, divisor = _counted(logits, labels, weight, normaliser, rules, mean=reduction == "mean", check=check)
    losses, _, _ = launch.score_rows(
        checked_rows(logits), flat(labels), flat_or_none(weight), divisor, rules, gradient=True
    )
    return launch.sum_losses(losses, divisor), count


@fused_op.register_fake
def _(
    logits: Tensor, labels: Tensor, weight: Tensor | None, normaliser: Tensor | None, reduction: str, check: bool,
    ignore_index: int, softcap: float, label_smoothing: float, z_loss: float, shift: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _fake_loss(logits, labels, reduction)


@library.custom_op("assay::cross_entropy_gradient_", mutates_args=("logits",))
def gradient_inplace_op(
    upstream: Tensor, logits: Tensor, labels: Tensor, weight: Tensor | None, peaks: Tensor, masses: Tensor,
    divisor: Tensor, ignore_index: int, softcap: float, label_smoothing: float, z_loss: float, shift: bool,
) -> None:  # fmt: skip
    """As `gradient_op`, written over the logits. No autograd."""
    settings = (ignore_index, softcap, label_smoothing, z_loss, shift)
    _fill_gradient(logits, upstream, logits, labels, weight, (peaks, masses, divisor), settings)


@gradient_inplace_op.register_fake
def _(
    upstream: Tensor, logits: Tensor, labels: Tensor, weight: Tensor | None, peaks: Tensor, masses: Tensor,
    divisor: Tensor, ignore_index: int, softcap: float, label_smoothing: float, z_loss: float, shift: bool,
) -> None:  # fmt: skip
    return None


OPERATORS = LossOperators(
    forward=forward_op, gradient=gradient_op, fused=fused_op, gradient_inplace=gradient_inplace_op, reads=3
)
"""A gradient is computed from logits, labels and weight."""
forward_op.register_autograd(OPERATORS.backward, setup_context=OPERATORS.save)
