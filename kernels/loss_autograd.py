"""How a loss is differentiated: with a gradient in memory of its own, or with one written over what is judged.

The operators of every loss take (judged, the other tensors that a gradient is computed from, normaliser, reduction,
check, settings) in this order, and return (value, count, what forward keeps for the gradient).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, library

from assay.kernels import masked_cross_entropy_launch as launch
from assay.kernels.operands import checked_rows, require_runnable


@library.custom_op("assay::scale_", mutates_args=("x",))
def scale_op(x: Tensor, factor: Tensor) -> None:
    """Multiply x [..., V] by a 0-d fp32 factor where it is; a factor of 1 costs one launch. No autograd."""
    require_runnable(x, "masked_loss", interpreted=launch.INTERPRETED)
    launch.scale_rows(checked_rows(x), factor)


@scale_op.register_fake
def _(x: Tensor, factor: Tensor) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class LossOperators:
    """The operators of one loss, and what autograd makes of them."""

    forward: Callable[..., tuple[Tensor, ...]]
    """(value, count, *kept) of the arguments of the loss."""
    gradient: Callable[..., Tensor]
    """The gradient of (upstream, *read, *kept, *settings)."""
    fused: Callable[..., tuple[Tensor, Tensor]]
    """(value, count) for "sum" and "mean", with the gradient written over the judged tensor."""
    gradient_inplace: Callable[..., None]
    """As `gradient`, written over the judged tensor."""
    reads: int
    """How many of the first arguments a gradient is computed from: the judged tensor and others."""

    def save(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """The `setup_context` of `forward`."""
        _, count, *kept = output
        self.keep(ctx, inputs, kept)
        ctx.mark_non_differentiable(count, *kept)
        ctx.set_materialize_grads(False)

    def backward(self, ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        """The backward of `forward`: a gradient for the judged tensor alone."""
        wanted = ctx.needs_input_grad[0] and upstream is not None
        gradient = self.gradient(upstream, *ctx.saved_tensors, *ctx.settings) if wanted else None
        return (gradient, *(None,) * (self.reads + 2 + len(ctx.settings)))

    def keep(self, ctx: Any, arguments: tuple[Any, ...], kept: list[Tensor]) -> None:
        """Save what a gradient is computed from."""
        ctx.save_for_backward(*arguments[: self.reads], *kept)
        ctx.settings = arguments[self.reads + 3 :]

    def inplace(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        """(value, count) of the arguments of `forward`, with a gradient that overwrites the judged tensor.

        In backward for "none", whose upstream gradients forward cannot know, and for fp16: a mean's gradient, written
        before the loss scale is known, would underflow.
        """
        judged, reduction = arguments[0], arguments[self.reads + 1]
        later = reduction == "none" or judged.dtype == torch.float16
        function = _GradientInPlace if later else _FusedInPlace
        value, count = function.apply(self, *arguments)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return value, count


class _FusedInPlace(torch.autograd.Function):
    """The loss whose gradient stands where the judged tensor was when forward ends; backward multiplies it.

    That tensor is not marked dirty: it has no value any more that could be differentiated, and autograd does not let
    a function with several outputs change a view. Its version counter moves, so a backward elsewhere that needs the
    old values fails, as does a second backward here.
    """

    @staticmethod
    def forward(ctx: Any, operators: LossOperators, *arguments: Any) -> tuple[Tensor, Tensor]:
        value, count = operators.fused(*arguments)
        ctx.save_for_backward(arguments[0])
        ctx.mark_non_differentiable(count)
        return value, count

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        gradient = ctx.saved_tensors[0].detach()
        scale_op(gradient, upstream)
        return (None, gradient, *(None,) * (len(ctx.needs_input_grad) - 2))


class _GradientInPlace(torch.autograd.Function):
    """The loss whose backward writes the gradient over the judged tensor."""

    @staticmethod
    def forward(ctx: Any, operators: LossOperators, *arguments: Any) -> tuple[Tensor, Tensor]:
        value, count, *kept = operators.forward(*arguments)
        operators.keep(ctx, arguments, kept)
        ctx.mark_non_differentiable(count)
        ctx.operators = operators
        return value, count

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        judged, *rest = ctx.saved_tensors
        gradient = judged.detach()
        ctx.operators.gradient_inplace(upstream, gradient, *rest, *ctx.settings)
        return (None, gradient, *(None,) * (len(ctx.needs_input_grad) - 2))
