"""Wrong steps over micro-batches and ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor

from assay.audits.components.masked_loss.step import IGNORED, NAME, Batches, Inputs, scored, stepped
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs
from assay.reference import masked_loss

Divisor = Callable[[list[Tensor], int, Any], Tensor | float]
"""Scored labels of all micro-batches, the place of one of them, and the group, to what its sum is divided by."""


def dividing(inputs: Inputs, divisor: Divisor, *, across: bool = True) -> Outputs:
    """A step whose micro-batches are divided by ``divisor``; shifted across ranks where the layout asks for it."""

    def step(head: Tensor, own: Batches, group: Any) -> Tensor:
        wanted = scored(own, group, across=inputs.layout == "context" and across)
        told = head.new_zeros(())
        for place, (hidden, _) in enumerate(own):
            by = divisor(wanted, place, group)
            loss = masked_loss.linear_cross_entropy(hidden, head, wanted[place], normaliser=by).value
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            told = told + loss.detach()
        return told

    return stepped(step, inputs)


def counted(wanted: list[Tensor], group: Any) -> Tensor:
    """Tokens of all ranks and micro-batches, at least one."""
    return masked_loss.global_count(masked_loss.accumulated_count(wanted, shift=False), group).clamp(min=1)


def right(wanted: list[Tensor], _place: int, group: Any) -> Tensor | float:
    """The divisor that makes averaged gradients those of the whole."""
    return masked_loss.per_rank(counted(wanted, group), dist.get_world_size(group))


@fault(NAME, "cut", "parity", link="https://github.com/pytorch/torchtitan/pull/1803")
def each_rank_its_own_mean(inputs: Inputs) -> Outputs:
    """Each rank divides by its own tokens, and the gradients are averaged.

    Effect: the tokens of a rank with few answers weigh more.
    """
    return dividing(
        inputs, lambda wanted, _place, _group: masked_loss.accumulated_count(wanted, shift=False).clamp(min=1)
    )


@fault(NAME, "cut", "parity", link="https://github.com/huggingface/transformers/pull/34191")
def mean_of_micro_means(inputs: Inputs) -> Outputs:
    """Each micro-batch has a mean of its own, divided by the number of micro-batches.

    Effect: the tokens of short answers weigh more than those of long ones.
    """

    def own(wanted: list[Tensor], place: int, _group: Any) -> Tensor:
        return masked_loss.valid_tokens(wanted[place], shift=False).clamp(min=1) * len(wanted)

    return dividing(inputs, own)


@fault(NAME, "cut", "parity", link="https://github.com/NVIDIA/Megatron-LM/issues/906")
def averaged_over_ranks_too(inputs: Inputs) -> Outputs:
    """The sum is divided by the tokens of all ranks, and the gradients are averaged over ranks on top.

    Effect: the learning rate shrinks with the number of GPUs.
    """
    return dividing(inputs, lambda wanted, _place, group: counted(wanted, group))


@fault(NAME, "cut", "parity", link="https://github.com/huggingface/transformers/issues/47688")
def micro_batches_added_up(inputs: Inputs) -> Outputs:
    """The mean of each micro-batch is added up, since the number of items was given and not used.

    Effect: the gradient grows with the number of accumulation steps.
    """

    def own(wanted: list[Tensor], place: int, _group: Any) -> Tensor:
        return masked_loss.valid_tokens(wanted[place], shift=False).clamp(min=1)

    return dividing(inputs, own)


@fault(NAME, "cut", "parity", link="https://github.com/huggingface/transformers/pull/48570")
def shifted_within_the_shard(inputs: Inputs) -> Outputs:
    """Each context-parallel rank shifts the labels it holds.

    Effect: the last token of every shard is not trained on: the more ranks, the more of them.
    """
    return dividing(inputs, right, across=False)


@fault(NAME, "uniform", "parity", link="https://github.com/modelscope/ms-swift/pull/9167")
def counted_before_the_shift(inputs: Inputs) -> Outputs:
    """The tokens are counted in labels that are not shifted yet.

    Effect: the loss is slightly low where the first token of a sample is trained on.
    """

    def raw(_scored: list[Tensor], _place: int, group: Any) -> Tensor | float:
        total = int((inputs.labels != IGNORED).sum())
        return max(total, 1) / dist.get_world_size(group)

    return dividing(inputs, raw)


@fault(NAME, "order", "cut")
def count_of_the_first_micro_batch(inputs: Inputs) -> Outputs:
    """The number of tokens is read from the first micro-batch and kept for all.

    Effect: the learning rate follows whichever micro-batch comes first.
    """

    def first(wanted: list[Tensor], _place: int, group: Any) -> Tensor | float:
        total = masked_loss.global_count(masked_loss.valid_tokens(wanted[0], shift=False), group).clamp(min=1)
        return masked_loss.per_rank(total * len(wanted), dist.get_world_size(group))

    return dividing(inputs, first)


@fault(NAME, "cut", "parity", link="https://github.com/huggingface/accelerate/pull/3193")
def divided_by_the_steps_again(inputs: Inputs) -> Outputs:
    """The loss is divided by the tokens of the whole step, and its backward by the number of micro-batches once more.

    Effect: the learning rate is divided by the number of accumulation steps.
    """
    return dividing(inputs, lambda wanted, place, group: right(wanted, place, group) * len(wanted))


@fault(NAME, "cut", "parity", link="https://github.com/huggingface/trl/pull/6024")
def counted_over_another_window(inputs: Inputs) -> Outputs:
    """The tokens are counted over the first half of the micro-batches, as many as were generated at once.

    Effect: the loss is scaled by the ratio of two settings that have nothing to do with it, from a half to twice.
    """

    def window(wanted: list[Tensor], place: int, group: Any) -> Tensor | float:
        return right(wanted[: max(1, len(wanted) // 2)], place, group)

    return dividing(inputs, window)


@fault(NAME, "cut", "parity", link="https://github.com/verl-project/verl/issues/6609")
def divided_where_it_is_logged(inputs: Inputs) -> Outputs:
    """What is told is the mean over all tokens; the backward is that of the sum, for somebody else to divide.

    Effect: gradients as many times too large as there are tokens, which clipping hides.
    """

    def step(head: Tensor, own: Batches, group: Any) -> Tensor:
        wanted = scored(own, group, across=inputs.layout == "context")
        told = head.new_zeros(())
        for place, (hidden, _) in enumerate(own):
            loss = masked_loss.linear_cross_entropy(hidden, head, wanted[place], normaliser=1).value
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            told = told + loss.detach() / right(wanted, place, group)
        return told

    return stepped(step, inputs)


@fault(NAME, "cut", "parity", link="https://github.com/axolotl-ai-cloud/axolotl/issues/3196")
def less_for_larger_micro_batches(inputs: Inputs) -> Outputs:
    """Samples weigh less the more of them are in a micro-batch, for a reason that was never found.

    Effect: sixteen equal samples cost half of what they cost one by one.
    """

    def larger(wanted: list[Tensor], place: int, group: Any) -> Tensor | float:
        return right(wanted, place, group) * math.pow(len(wanted[place]), 0.25)

    return dividing(inputs, larger)


FAULTS = gathered(globals())
