"""Wrong rotations: what goes wrong in kernels: strides, tiles, memory, caches and hand-written backward passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from assay.audits.components.mrope.rotate import NAME, Inputs, reference
from assay.audits.components.mrope.rotate_faults import but
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs
from assay.reference import mrope

Backward = Callable[[Tensor, Tensor, Tensor, str], Tensor]
"""Upstream gradient, cos, sin and pairing to the gradient of the input."""


class _Turn(torch.autograd.Function):
    """A rotation whose backward was written by hand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, pairing: str, back: Backward) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.pairing, ctx.back = pairing, back
        return mrope.rotate(x, cos, sin, pairing=pairing)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.back(grad, *ctx.saved_tensors, ctx.pairing), None, None, None, None


def right(grad: Tensor, cos: Tensor, sin: Tensor, pairing: str) -> Tensor:
    """The right backward: the same tables, turned back."""
    return mrope.rotate(grad, cos, -sin, pairing=pairing)


def by_hand(inputs: Inputs, q: Backward = right, k: Backward = right) -> Outputs:
    """The rotation with a backward of its own for queries and for keys."""
    cos, sin = mrope.tables(
        inputs.positions, inputs.inv_freq, inputs.axes,
        attention_scaling=inputs.attention_scaling, dtype=inputs.q.dtype,
    )  # fmt: skip
    heads = (("q", inputs.q, q), ("k", inputs.k, k))
    turn: Any = _Turn.apply
    return {name: turn(x, cos, sin, inputs.pairing, back) for name, x, back in heads}


def both(inputs: Inputs, back: Backward) -> Outputs:
    """The rotation with one backward of its own."""
    return by_hand(inputs, back, back)


@fault(NAME, "inverse", "gradients")
def backward_turns_forwards(inputs: Inputs) -> Outputs:
    """The backward kernel is the forward kernel, with the sign of sin forgotten.

    Effect: projections learn from gradients that are turned twice too far; the loss still falls.
    """
    return both(inputs, lambda grad, cos, sin, pairing: mrope.rotate(grad, cos, sin, pairing=pairing))


@fault(NAME, "inverse", "gradients")
def backward_does_not_turn(inputs: Inputs) -> Outputs:
    """The gradient passes straight through.

    Effect: right at position zero; elsewhere the projections learn for tokens that stand at the start.
    """
    return both(inputs, lambda grad, _cos, _sin, _pairing: grad.clone())


@fault(NAME, "inverse", "gradients")
def backward_from_rounded_tables(inputs: Inputs) -> Outputs:
    """The backward is given tables that were stored in bfloat16 to save memory.

    Effect: float32 training has bfloat16 gradients in every layer.
    """
    return both(
        inputs, lambda g, cos, sin, pairing: right(g, cos.bfloat16().to(cos), sin.bfloat16().to(sin), pairing)
    )  # fmt: skip


@fault(NAME, "inverse", "gradients")
def scaling_twice_in_backward(inputs: Inputs) -> Outputs:
    """Forward and gradient share scaled tables, and the gradient is scaled again.

    Effect: models with a stretched context train with a larger learning rate for queries and keys alone.
    """
    scaling = inputs.attention_scaling
    return both(inputs, lambda grad, cos, sin, pairing: right(grad, cos, sin, pairing) * scaling)


@fault(NAME, "inverse", "gradients", link="https://github.com/huggingface/candle/pull/3612")
def gradient_of_queries_only(inputs: Inputs) -> Outputs:
    """The result for keys is cut off from the graph.

    Effect: key projections never learn, and no error says so.
    """
    return {"q": reference(inputs)["q"], "k": reference(inputs)["k"].detach()}


@fault(NAME, "inverse", "gradients")
def key_gradient_times_the_group(inputs: Inputs) -> Outputs:
    """The gradient of a key head is multiplied by the number of query heads that share it, which was summed already.

    Effect: keys train with several times the learning rate.
    """
    group = inputs.q.shape[1] // inputs.k.shape[1]
    return by_hand(inputs, k=lambda grad, cos, sin, pairing: right(grad, cos, sin, pairing) * group)


def as_if_dense(x: Tensor) -> Tensor:
    """What a kernel sees that starts at a tensor's first element and never asks for strides; NaN beyond the end."""
    flat = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())[x.storage_offset() :]
    beyond = flat.new_full((max(0, x.numel() - len(flat)),), torch.nan)
    return torch.cat([flat, beyond])[: x.numel()].view(x.shape)


@fault(NAME, "upstream", link="https://github.com/pytorch/pytorch/issues/194719")
def upstream_gradient_read_as_dense(inputs: Inputs) -> Outputs:
    """The backward kernel reads the upstream gradient as if it were dense.

    Effect: after a transposition, as in every attention, heads get the gradients of other tokens. gradcheck passes:
    it hands over dense gradients only.
    """
    return both(inputs, lambda grad, cos, sin, pairing: right(as_if_dense(grad), cos, sin, pairing))


@fault(NAME, "upstream", link="https://github.com/ROCm/TransformerEngine/pull/623")
def expanded_gradient_read_as_dense(inputs: Inputs) -> Outputs:
    """The backward handles transposed gradients, but not one number expanded with strides of zero.

    Effect: after a sum, the gradient is read beyond its one element: NaN, or whatever lies there.
    """

    def back(grad: Tensor, cos: Tensor, sin: Tensor, pairing: str) -> Tensor:
        return right(as_if_dense(grad) if 0 in grad.stride() else grad, cos, sin, pairing)

    return both(inputs, back)


@fault(NAME, "layout", "norm", "parity", link="https://github.com/pytorch/pytorch/issues/141265")
def view_read_as_dense(inputs: Inputs) -> Outputs:
    """The distance between two heads is taken to be the tokens times the channels.

    Effect: right for the dense copies of unit tests; models hand over transposed views, whose heads get mixed.
    """
    dense = {
        name: x.as_strided(x.shape, torch.empty(x.shape, device="meta").stride(), x.storage_offset())
        for name, x in (("q", inputs.q), ("k", inputs.k))
    }
    return but(inputs, **dense)


@fault(NAME, "split", "text", "parity")
def last_tile_of_tokens_skipped(inputs: Inputs) -> Outputs:
    """The number of programs is rounded down, so tokens beyond the last whole tile of four are copied.

    Effect: right for sequence lengths that are a multiple of the tile, which is all that tests try.
    """
    turning = torch.arange(inputs.q.shape[2]) < inputs.q.shape[2] // 4 * 4
    return but(inputs, positions=inputs.positions * turning)


@fault(NAME, "batch", "text", "parity")
def last_tile_of_heads_skipped(inputs: Inputs) -> Outputs:
    """The heads beyond the largest power of two are copied.

    Effect: models with 28 query heads leave 12 of them without positions.
    """
    out = dict(reference(inputs))
    for name in out:
        heads = out[name].shape[1]
        whole = 1 << (heads.bit_length() - 1)
        out[name] = torch.cat([out[name][:, :whole], getattr(inputs, name)[:, whole:]], dim=1)
    return out


@fault(NAME, "tail", "parity")
def tail_never_written(inputs: Inputs) -> Outputs:
    """The result is allocated uninitialised, and only the rotated channels are written.

    Effect: the rest of each head is whatever the memory held before: often zero, at times not a number.
    """
    width = 2 * len(inputs.axes)
    return {
        name: torch.cat([value[..., :width], torch.full_like(value[..., width:], torch.nan)], dim=-1)
        for name, value in reference(inputs).items()
    }


@fault(NAME, "layout", "parity")
def masked_by_multiplication(inputs: Inputs) -> Outputs:
    """What a tile reads beyond the last head is multiplied by zero and added, not masked.

    Effect: right until the neighbouring memory holds an infinity or a NaN, which zero does not remove.
    """
    out = dict(reference(inputs))
    for name in out:
        x = getattr(inputs, name).detach()
        flat = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
        padded = torch.cat([flat, flat.new_zeros(x.stride(1))])
        beyond = padded.as_strided(x.shape, x.stride(), x.storage_offset() + x.stride(1))
        out[name] = torch.cat([out[name][:, :-1], out[name][:, -1:] + 0 * beyond[:, -1:]], dim=1)
    return out


@fault(NAME, "mutates", link="https://github.com/unslothai/unsloth/issues/5001")
def written_into_the_input(inputs: Inputs) -> Outputs:
    """The result is also written over the queries and keys, and autograd is not told.

    Effect: the projection's backward and activation checkpointing read rotated values as if they were not.
    """
    out = but(inputs, q=inputs.q.clone(), k=inputs.k.clone())
    for name, value in out.items():
        getattr(inputs, name).detach().copy_(value.detach())
    return out


_tables: dict[int, Tensor] = {}
_previous: dict[str, Tensor] = {}


@fault(NAME, "liveness", "batch", "split", link="https://github.com/ModelTC/LightX2V/pull/1132")
def tables_cached_by_length(inputs: Inputs) -> Outputs:
    """Tables are kept from batch to batch, under the number of tokens alone.

    Effect: the first batch of each length decides the positions of all that follow.
    """
    key = inputs.positions.shape[-1]
    if key not in _tables or _tables[key].shape != inputs.positions.shape:
        _tables[key] = inputs.positions
    return but(inputs, positions=_tables[key])


@fault(NAME, "nondeterministic", "parity")
def tables_of_the_previous_call(inputs: Inputs) -> Outputs:
    """The buffer of the tables is filled after it was used.

    Effect: each batch is rotated by the positions of the one before, wherever the shapes agree.
    """
    old = _previous.get("positions", inputs.positions)
    _previous["positions"] = inputs.positions
    return but(inputs, positions=old if old.shape == inputs.positions.shape else inputs.positions)


@fault(NAME, "leaks")
def default_dtype_left_changed(inputs: Inputs) -> Outputs:
    """The default dtype is set to build the tables and not set back.

    Effect: whatever is created later, in other modules too, has another precision.
    """
    out = reference(inputs)
    torch.set_default_dtype(torch.float64)
    return out


FAULTS = gathered(vars())
