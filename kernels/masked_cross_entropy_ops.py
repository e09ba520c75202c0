"""The masked cross-entropy as PyTorch operators, so that autograd, torch.compile and checkpointing know what it does.

Letters in shapes: V vocabulary, N rows (one per label).

The operators trust their arguments; `assay.kernels.masked_cross_entropy` checks them. logits [..., V] have any strides
that `rows_of` can walk, labels [...] are int64, weight [...] floating, normaliser is 0-d.
"""

from typing import Any

import torch
from torch import Tensor, library

from assay.kernels import masked_cross_entropy_launch as launch
from assay.kernels.loss_arguments import raise_stranger
from assay.kernels.masked_cross_entropy_launch import Rules

Settings = tuple[int, float, float, float, bool]
"""ignore_index, softcap (0 for none), label_smoothing, z_loss, shift: the arguments that all operators end with."""


def rows_of(x: Tensor) -> Tensor | None:
    """A view [outer, inner, V] of the memory of x [..., V], or None where its rows need more than two strides."""
    sizes: list[tuple[int, int]] = []
    for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True):
        if size == 1:
            continue
        if sizes and sizes[-1][1] == size * stride:
            sizes[-1] = (sizes[-1][0] * size, stride)
        else:
            sizes.append((size, stride))
    if len(sizes) > 2:
        return None
    (outer, far), (inner, near) = ((1, 0), (1, 0), *sizes)[-2:]
    return x.as_strided((outer, inner, x.shape[-1]), (far, near, 1))


def _require_runnable(x: Tensor) -> None:
    if not (x.is_cuda or launch.INTERPRETED):
        raise RuntimeError(
            f"this kernel runs on CUDA tensors, got one on {x.device}: move it to a GPU, use "
            "assay.reference.masked_cross_entropy instead, or set TRITON_INTERPRET=1 before Triton is imported to "
            "interpret the kernel (slow, for tests)"
        )


def _rows(x: Tensor) -> Tensor:
    rows = rows_of(x)
    assert rows is not None, "checked before"
    return rows


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1).contiguous()  # the reshaped view of an expanded tensor has stride 0


def _flat_or_none(x: Tensor | None) -> Tensor | None:
    return None if x is None else _flat(x)


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
    _require_runnable(logits)
    vocabulary = logits.shape[-1]
    count, strangers, divisor = launch.count_labels(
        _flat(labels), _flat_or_none(weight), normaliser, rules, vocabulary=vocabulary, mean=mean
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
        _rows(logits), _flat(labels), _flat_or_none(weight), divisor, rules, statistics=True
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
        _rows(logits), _rows(gradient), _flat(labels), _flat_or_none(weight), divisor,
        _flat(upstream) if upstream.dim() else upstream, (peaks, masses),
        _rules(labels, settings),
    )  # fmt: skip


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, labels, weight, *_ = inputs
    _, count, *kept = output
    ctx.save_for_backward(logits, labels, weight, *kept)
    ctx.settings = inputs[-5:]
    ctx.mark_non_differentiable(count, *kept)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad[0] and upstream is not None
    gradient = gradient_op(upstream, *ctx.saved_tensors, *ctx.settings) if wanted else None
    return (gradient, *(None,) * (5 + len(ctx.settings)))


forward_op.register_autograd(_backward, setup_context=_save)


@library.custom_op("assay::cross_entropy_", mutates_args=("logits",))
def fused_op(
    logits: Tensor, labels: Tensor, weight: Tensor | None, normaliser: Tensor | None, reduction: str, check: bool,
    ignore_index: int, softcap: float, label_smoothing: float, z_loss: float, shift: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(value, count) for "sum" and "mean"; the gradient of the value is written over the logits. No autograd."""
    rules = _rules(labels, (ignore_index, softcap, label_smoothing, z_loss, shift))
    count, divisor = _counted(logits, labels, weight, normaliser, rules, mean=reduction == "mean", check=check)
    losses, _, _ = launch.score_rows(_rows(logits), _flat(labels), _flat_or_none(weight), divisor, rules, gradient=True)
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


@library.custom_op("assay::scale_", mutates_args=("x",))
def scale_op(x: Tensor, factor: Tensor) -> None:
    """Multiply x [..., V] by a 0-d fp32 factor where it is; a factor of 1 costs one launch. No autograd."""
    _require_runnable(x)
    launch.scale_rows(_rows(x), factor)


@scale_op.register_fake
def _(x: Tensor, factor: Tensor) -> None:
    return None


class _FusedInPlace(torch.autograd.Function):
    """The loss whose gradient stands where the logits were when forward ends; backward multiplies it by what comes.

    The logits are not marked dirty: they have no value any more that could be differentiated, and autograd does not let
    a function with several outputs change a view. Their version counter moves, so a backward elsewhere that needs the
    old logits fails, as does a second backward here.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, weight: Tensor | None, normaliser: Tensor | None, reduction: str,
        check: bool, settings: Settings,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        value, count = fused_op(logits, labels, weight, normaliser, reduction, check, *settings)
        ctx.save_for_backward(logits)
        ctx.mark_non_differentiable(count)
        return value, count

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        gradient = ctx.saved_tensors[0].detach()
        scale_op(gradient, upstream)
        return (gradient, *(None,) * 6)


class _GradientInPlace(torch.autograd.Function):
    """The loss whose backward writes the gradient over the logits, for upstream gradients that forward cannot know."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, weight: Tensor | None, normaliser: Tensor | None, reduction: str,
        check: bool, settings: Settings,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        value, count, *kept = forward_op(logits, labels, weight, normaliser, reduction, check, *settings)
        ctx.save_for_backward(logits, labels, weight, *kept)
        ctx.mark_non_differentiable(count)
        ctx.settings = settings
        return value, count

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        logits, *rest = ctx.saved_tensors
        gradient = logits.detach()
        gradient_inplace_op(upstream, gradient, *rest, *ctx.settings)
        return (gradient, *(None,) * 6)


def inplace_loss(*arguments: Any) -> tuple[Tensor, Tensor]:
    """(value, count) of the arguments of `_FusedInPlace.forward`, with a gradient that overwrites the logits.

    fp16 logits are overwritten in backward as well: a mean's gradient, written before the loss scale is known, would
    underflow.
    """
    logits, reduction = arguments[0], arguments[4]
    later = reduction == "none" or logits.dtype == torch.float16
    value, count = (_GradientInPlace if later else _FusedInPlace).apply(*arguments)  # type: ignore[no-untyped-call]
    return value, count
