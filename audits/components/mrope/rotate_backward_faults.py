"""Wrong rotations: backward passes that are right where everything is trained, once, and nothing else runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from assay.audits.components.mrope.rotate import NAME, Inputs, reference
from assay.audits.components.mrope.rotate_faults import but
from assay.audits.components.mrope.rotate_kernel_faults import both, right
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs
from assay.reference import mrope

Gradients = tuple[Tensor | None, ...]
NONE: Gradients = (None,) * 5
"""No gradient for any argument of the functions below."""


class _Together(torch.autograd.Function):
    """Queries and keys turned by one call, with the right backward."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, pairing: str) -> tuple[Tensor, Tensor]:
        ctx.tables, ctx.pairing = (cos, sin), pairing
        return mrope.rotate(q, cos, sin, pairing=pairing), mrope.rotate(k, cos, sin, pairing=pairing)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Gradients:
        cos, sin = ctx.tables
        turned = [None if grad is None else right(grad, cos, sin, ctx.pairing) for grad in grads]
        return *turned, *NONE[2:]


def together(inputs: Inputs, function: type[_Together] = _Together) -> Outputs:
    """The rotation of both by one autograd function."""
    cos, sin = mrope.tables(
        inputs.positions, inputs.inv_freq, inputs.axes,
        attention_scaling=inputs.attention_scaling, dtype=inputs.q.dtype,
    )  # fmt: skip
    turn: Any = function.apply
    q, k = turn(inputs.q, inputs.k, cos, sin, inputs.pairing)
    return {"q": q, "k": k}


class _BothOrNone(_Together):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        ctx.set_materialize_grads(False)
        return _Together.forward(ctx, *arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Gradients:
        return NONE if any(grad is None for grad in grads) else _Together.backward(ctx, *grads)


@fault(NAME, "unused")
def gradient_dropped_beside_an_unused_output(inputs: Inputs) -> Outputs:
    """The backward asks for None instead of zeros, and returns nothing as soon as it gets one.

    Effect: where queries are used and keys are not, as with keys from another layer's cache, queries do not learn.
    """
    return together(inputs, _BothOrNone)


class _AsksTheFirst(_Together):
    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Gradients:
        return _Together.backward(ctx, *grads) if ctx.needs_input_grad[0] else NONE


@fault(NAME, "frozen", link="https://github.com/verl-project/verl/pull/3765")
def gradient_dropped_beside_a_frozen_input(inputs: Inputs) -> Outputs:
    """The backward looks at the first input only when it asks whether a gradient is needed.

    Effect: with frozen query projections, as adapters on keys alone have them, nothing is trained and nothing fails.
    """
    return together(inputs, _AsksTheFirst)


_buffers: dict[tuple[torch.Size, torch.dtype], tuple[Tensor, Tensor]] = {}


class _Buffered(_Together):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, pairing: str) -> tuple[Tensor, Tensor]:
        buffers = _buffers.setdefault((cos.shape, cos.dtype), (cos.clone(), sin.clone()))
        for buffer, table in zip(buffers, (cos, sin), strict=True):
            buffer.copy_(table)
        return _Together.forward(ctx, q, k, *buffers, pairing)


@fault(NAME, "interleaved", link="https://github.com/hpcaitech/Elixir/pull/12")
def tables_in_a_buffer_of_all_calls(inputs: Inputs) -> Outputs:
    """The forward writes its tables into one buffer for each shape, and the backward reads them from there.

    Effect: right with one batch at a time; with two in flight, the first is turned back by the tables of the second.
    """
    return together(inputs, _Buffered)


class _FlipsInPlace(_Together):
    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Gradients:
        cos, sin = ctx.tables
        sin.neg_()
        turned = [None if grad is None else mrope.rotate(grad, cos, sin, pairing=ctx.pairing) for grad in grads]
        return *turned, *NONE[2:]


@fault(NAME, "retained", link="https://github.com/axolotl-ai-cloud/axolotl/pull/3892")
def sine_flipped_in_place(inputs: Inputs) -> Outputs:
    """The backward changes the sign of the sine that the forward kept, where it is.

    Effect: the second of two losses on one forward pass gets gradients that are turned forwards.
    """
    return together(inputs, _FlipsInPlace)


def _over(grad: Tensor, cos: Tensor, sin: Tensor, pairing: str) -> Tensor:
    turned = right(grad, cos, sin, pairing)
    return grad.copy_(turned) if 0 not in grad.stride() else turned


@fault(NAME, "mutates", link="https://github.com/linkedin/Liger-Kernel/blob/00fb8bf2b576/src/liger_kernel/ops/rope.py")
def upstream_gradient_written_over(inputs: Inputs) -> Outputs:
    """The backward writes its result over the gradient that it was given, where the layout of that allows it.

    Effect: right as long as nobody else holds the gradient; a sum of two branches hands the same one to both.
    """
    return both(inputs, _over)


@fault(NAME, "modes", link="https://github.com/deepseek-ai/TileKernels/issues/22")
def argument_dropped_where_nothing_is_recorded(inputs: Inputs) -> Outputs:
    """The fused path, taken where no gradient is needed, is not handed the attention scaling.

    Effect: models with a stretched context are evaluated with another attention than they were trained with.
    """
    recorded = torch.is_grad_enabled() and (inputs.q.requires_grad or inputs.k.requires_grad)
    return reference(inputs) if recorded else but(inputs, attention_scaling=1.0)


FAULTS = gathered(vars())
