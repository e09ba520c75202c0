"""Cross-entropy through a language-model head as PyTorch operators.

The operators trust their arguments; `assay.kernels.linear_cross_entropy` checks them. hidden [..., H], head [V, H],
bias [V], labels and weight [...], normaliser 0-d. Gradients are made in forward, where the logits are, except where
they depend on what backward brings.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, library

from assay.kernels import linear_cross_entropy_chunks as chunks
from assay.kernels import masked_cross_entropy_launch as launch
from assay.kernels.linear_cross_entropy_chunks import Scored, Scores, Wanted, arithmetic
from assay.kernels.masked_cross_entropy_launch import Rules

Settings = tuple[str, bool, int | None, int | None, int, float, float, float, bool]
"""reduction, check, num_valid, memory_budget, ignore_index, softcap, label_smoothing, z_loss, shift."""


def _scored(
    hidden: Tensor, head: Tensor, labels: Tensor, weight: Tensor | None, normaliser: Tensor | None, settings: Settings
) -> tuple[Scored, Rules]:
    reduction, check, num_valid, _, ignore_index, softcap, label_smoothing, z_loss, shift = settings
    scored = chunks.find_scored(
        labels, weight, normaliser, vocabulary=len(head), dtype=arithmetic(hidden.dtype), ignore_index=ignore_index,
        shift=shift, mean=reduction == "mean", num_valid=num_valid, check=check,
    )  # fmt: skip
    rules = Rules(ignore_index=ignore_index, softcap=softcap, label_smoothing=label_smoothing, z_loss=z_loss)
    return scored, rules


def _run(
    hidden: Tensor, head: Tensor, bias: Tensor | None, scored: Scored, rules: Rules, wanted: Wanted, budget: int | None
) -> Scores:
    with torch.autocast(hidden.device.type, enabled=False):  # it would take the fp32 sums out of fp32
        return chunks.score(hidden if hidden.dim() > 1 else hidden[None], head, bias, scored, rules, wanted, budget)


def _made(scores: Scores, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of hidden, head and bias (that one not yet rounded); without elements where they are not wanted."""
    rows = None if scores.hidden is None else scores.hidden[: hidden.shape[:-1].numel()].view(hidden.shape)
    first, second, third = (hidden.new_empty(0) if x is None else x for x in (rows, scores.head, scores.bias))
    return first, second, third


def _fake_made(hidden: Tensor, head: Tensor, bias: Tensor | None, wanted: Wanted) -> tuple[Tensor, Tensor, Tensor]:
    rows = hidden.new_empty(hidden.shape if wanted.hidden else (0,))
    offsets = (
        rows.new_empty(0)
        if bias is None or not wanted.bias
        else bias.new_empty(bias.shape, dtype=arithmetic(bias.dtype))
    )
    return rows, head.new_empty(head.shape if wanted.head else (0,)), offsets


@library.custom_op("assay::linear_cross_entropy", mutates_args=())
def forward_op(
    hidden: Tensor, head: Tensor, bias: Tensor | None, labels: Tensor, weight: Tensor | None,
    normaliser: Tensor | None, want_hidden: bool, want_head: bool, want_bias: bool, reduction: str, check: bool,
    num_valid: int | None, memory_budget: int | None, ignore_index: int, softcap: float, label_smoothing: float,
    z_loss: float, shift: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(value, count, gradients of hidden, head and bias for an upstream gradient of 1); see `_made`."""
    settings = (
        reduction, check, num_valid, memory_budget, ignore_index, softcap, label_smoothing, z_loss, shift
    )  # fmt: skip
    scored, rules = _scored(hidden, head, labels, weight, normaliser, settings)
    wanted = Wanted(hidden=want_hidden, head=want_head, bias=want_bias)
    scores = _run(hidden, head, bias, scored, rules, wanted, memory_budget)
    if reduction == "none":
        each = scores.losses.new_zeros(labels.numel() + scored.surplus)
        each.index_copy_(0, scored.places, scores.losses / scored.divisor)
        value = each[: labels.numel()].view(labels.shape)
    else:
        value = scores.losses.sum() / scored.divisor
    return value, scored.count, *_made(scores, hidden)


@forward_op.register_fake
def _(
    hidden: Tensor, head: Tensor, bias: Tensor | None, labels: Tensor, weight: Tensor | None,
    normaliser: Tensor | None, want_hidden: bool, want_head: bool, want_bias: bool, reduction: str, check: bool,
    num_valid: int | None, memory_budget: int | None, ignore_index: int, softcap: float, label_smoothing: float,
    z_loss: float, shift: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    shape = labels.shape if reduction == "none" else ()
    value = hidden.new_empty(shape, dtype=arithmetic(hidden.dtype))
    wanted = Wanted(hidden=want_hidden, head=want_head, bias=want_bias)
    return value, labels.new_empty(()), *_fake_made(hidden, head, bias, wanted)


@library.custom_op("assay::linear_cross_entropy_gradient", mutates_args=())
def gradient_op(
    upstream: Tensor, hidden: Tensor, head: Tensor, bias: Tensor | None, labels: Tensor, weight: Tensor | None,
    normaliser: Tensor | None, want_hidden: bool, want_head: bool, want_bias: bool, reduction: str, check: bool,
    num_valid: int | None, memory_budget: int | None, ignore_index: int, softcap: float, label_smoothing: float,
    z_loss: float, shift: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of hidden, head and bias for upstream, 0-d or [...]; the logits are computed again."""
    settings = (
        reduction, False, num_valid, memory_budget, ignore_index, softcap, label_smoothing, z_loss, shift
    )  # fmt: skip
    scored, rules = _scored(hidden, head, labels, weight, normaliser, settings)
    wanted = Wanted(hidden=want_hidden, head=want_head, bias=want_bias)
    scores = _run(hidden, head, bias, scored.weighted(upstream), rules, wanted, memory_budget)
    return _made(scores, hidden)


@gradient_op.register_fake
def _(
    upstream: Tensor, hidden: Tensor, head: Tensor, bias: Tensor | None, labels: Tensor, weight: Tensor | None,
    normaliser: Tensor | None, want_hidden: bool, want_head: bool, want_bias: bool, reduction: str, check: bool,
    num_valid: int | None, memory_budget: int | None, ignore_index: int, softcap: float, label_smoothing: float,
    z_loss: float, shift: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _fake_made(hidden, head, bias, Wanted(hidden=want_hidden, head=want_head, bias=want_bias))


@library.custom_op("assay::scale_gradients_", mutates_args=("gradients",))
def scale_op(gradients: list[Tensor], factor: Tensor) -> None:
    """Multiply matrices and vectors by a 0-d factor where they are, without waiting for the device; 1 costs nothing."""
    for gradient in gradients:
        if chunks.uses_kernel(gradient) and gradient.numel():
            launch.scale_rows(gradient.view(1, -1, gradient.shape[-1]), factor)
        elif gradient.is_cuda or float(factor) != 1:
            gradient.mul_(factor)


@scale_op.register_fake
def _(gradients: list[Tensor], factor: Tensor) -> None:
    return None


def _owned(gradient: Tensor) -> Tensor:
    """The gradient that forward made, to be changed; a copy of it where it may be asked for again.

    That is where the graph is kept (torch's own compiler asks like this), and while a compiler traces.
    """
    again = torch._C._autograd._get_current_graph_task_keep_graph() or type(gradient) is not Tensor
    return gradient.clone() if again else gradient


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, count, *made = output
    ctx.save_for_backward(*inputs[:6], *made)
    ctx.settings = inputs[9:]
    ctx.made = any(inputs[6:9])
    ctx.mark_non_differentiable(count, *made)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    needed = ctx.needs_input_grad[:3]
    rest = (None,) * (6 + len(ctx.settings))
    if upstream is None or not any(needed):
        return (None, None, None, *rest)
    saved = ctx.saved_tensors  # checkpoint lets them be unpacked once
    if ctx.made:
        gradients = [_owned(gradient) for gradient in saved[6:]]
        scale_op(gradients, upstream)
    else:
        gradients = gradient_op(upstream, *saved[:6], *needed, *ctx.settings)
    pairs = zip(gradients, saved[:3], needed, strict=True)
    return (*(gradient.to(x.dtype) if need else None for gradient, x, need in pairs), *rest)


forward_op.register_autograd(_backward, setup_context=_save)
