"""Wrong rotations: the wrong axis, position, frequency or pair."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from assay.audits.components.mrope.rotate import NAME, Inputs, full_tables, reference
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs
from assay.reference import mrope


def but(inputs: Inputs, **changes: Any) -> Outputs:
    """The reference's answer to other inputs than it was given: a fault in one step."""
    return reference(dataclasses.replace(inputs, **changes))


@fault(NAME, "ownership", "liveness", "parity", link="https://github.com/sgl-project/sglang/pull/34446")
def row_zero_for_every_lane(inputs: Inputs) -> Outputs:
    """A fused kernel loads one position a token, from row 0 of the ids, whichever axis owns the lane.

    Effect: images become strips of text and grounding collapses; no text benchmark moves.
    """
    return but(inputs, axes=torch.zeros_like(inputs.axes))


@fault(NAME, "liveness", "split", "text", "parity", link="https://github.com/ml-explore/mlx-lm/pull/1768")
def sections_ignored(inputs: Inputs) -> Outputs:
    """The branch for several axes asks for another rope type, so plain RoPE runs, on the token's index in the call.

    Effect: a configured key has no effect, the layout of every image is lost, and there is no error.
    """
    return but(inputs, positions=torch.arange(inputs.q.shape[2]).expand_as(inputs.positions))


@fault(NAME, "split", "parity", link="https://github.com/Blaizzy/mlx-vlm/pull/1621")
def positions_restart_with_every_call(inputs: Inputs) -> Outputs:
    """Each chunk of a long prompt is rotated from zero, since the offset of the first pass was not stored.

    Effect: prompts longer than one chunk overlap themselves; short prompts are right.
    """
    return but(inputs, positions=inputs.positions - inputs.positions[..., :1])


@fault(NAME, "split", "text", "parity", link="https://github.com/NVIDIA/Megatron-LM/pull/1612")
def positions_in_another_order_than_tokens(inputs: Inputs) -> Outputs:
    """Context-parallel ranks hold a first and a last quarter of the tokens, but positions cut in plain order.

    Effect: tokens turn by the positions of others; losses of one rank and of two differ, and nothing fails.
    """
    first, second, third, last = torch.arange(inputs.q.shape[2]).tensor_split(4)
    return but(inputs, positions=inputs.positions[..., torch.cat([first, last, second, third])])


@fault(NAME, "text", "parity", link="https://github.com/NVIDIA/Megatron-LM/pull/1612")
def positions_read_sequence_first(inputs: Inputs) -> Outputs:
    """Positions laid out with the sequence before the batch are read as if the batch came first.

    Effect: right for one sample, a mixture of all samples' positions for several.
    """
    return but(inputs, positions=inputs.positions.transpose(1, 2).reshape(inputs.positions.shape))


@fault(NAME, "batch", "ownership", "parity", link="https://github.com/NVIDIA/Megatron-LM/pull/4938")
def sample_index_taken_for_axis(inputs: Inputs) -> Outputs:
    """Ids of three rows are indexed like ids without axes, so the first index picks an axis where a sample was meant.

    Effect: samples rotate by mixtures of their own rows and those of others; shapes agree.
    """
    axes, batch, tokens = inputs.positions.shape
    return but(inputs, positions=inputs.positions.reshape(batch, axes, tokens).transpose(0, 1))


@fault(NAME, "liveness", "text", "parity", link="https://github.com/warpfront/hipfire/issues/324")
def never_rotated(inputs: Inputs) -> Outputs:
    """The rotary step is missing: queries and keys pass through.

    Effect: the model sees a bag of patches; half of all questions about an image are answered wrongly.
    """
    return {"q": inputs.q.clone(), "k": inputs.k.clone()}


def by_channel(inputs: Inputs, sections: list[int]) -> Outputs:
    """The older Hugging Face form: full-width tables cut into chunks, chunk ``i`` taken from axis ``i mod 3``."""
    if inputs.layout != "chunked" or inputs.pairing != "half" or 2 * len(inputs.axes) != inputs.q.shape[-1]:
        return reference(inputs)
    cos, sin = (_chunks(table, sections) for table in full_tables(inputs, merged=False))
    return {name: x * cos + _rotate_half(x) * sin for name, x in (("q", inputs.q), ("k", inputs.k))}


def _chunks(table_ABSR: Tensor, sections: list[int]) -> Tensor:
    parts = torch.split(table_ABSR, sections, dim=-1)
    return torch.cat([part[place % 3] for place, part in enumerate(parts)], dim=-1)[:, None]


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


@fault(NAME, "raises")
def sections_demanded_at_full_width(inputs: Inputs) -> Outputs:
    """A repair that stops repeating the list of sections and demands that they sum to the full width of the tables.

    Effect: it raises on every released configuration, whose sections sum to half the width; it works only for a
    list that something else has doubled before.
    """
    sections = list(inputs.sections)
    half = len(sections) // 2
    if len(sections) > 6 and sections[:half] == sections[half:]:
        sections = sections[:half]
    if inputs.layout == "chunked" and sum(sections) != 2 * len(inputs.axes):
        message = f"sections sum to {sum(sections)}, the tables are {2 * len(inputs.axes)} wide"
        raise ValueError(message)
    return by_channel(inputs, sections)


@fault(NAME, "norm", "ownership", "parity")
def sections_doubled_by_value(inputs: Inputs) -> Outputs:
    """Each section is made twice as wide, where the list of sections was to be repeated.

    Effect: the two channels of a lane turn by different axes; widths agree, so nothing fails.
    """
    return by_channel(inputs, [2 * size for size in inputs.sections])


@fault(NAME, "raises")
def sections_repeated_for_every_sample(inputs: Inputs) -> Outputs:
    """A collator repeats the list of sections for every sample of the batch, as it does with tensors.

    Effect: one sample works; with more, splitting the tables fails on widths that nobody configured.
    """
    return by_channel(inputs, list(inputs.sections) * 2 * max(1, len(inputs.q)))


@fault(NAME, "ownership", "liveness", "parity")
def height_and_width_swapped(inputs: Inputs) -> Outputs:
    """The lanes of height turn by the column, those of width by the row.

    Effect: invisible on square images with symmetric sections; others are transposed against the pretraining.
    """
    return but(inputs, positions=inputs.positions[[0, 2, 1]])


@fault(NAME, "text", "parity")
def frequencies_restart_in_every_section(inputs: Inputs) -> Outputs:
    """A lane gets the frequency of its place within its axis' section, not of its place in the head.

    Effect: text is embedded otherwise than in the base model, whose knowledge is lost.
    """
    taken = torch.nn.functional.one_hot(inputs.axes).cumsum(0).gather(1, inputs.axes[:, None]).flatten() - 1
    return but(inputs, inv_freq=inputs.inv_freq[taken])


@fault(NAME, "ownership", "liveness", "parity")
def interleaving_stops_one_lane_early(inputs: Inputs) -> Outputs:
    """The bound of the interleaved lanes is off by one, so the last lane of height and of width falls to time.

    Effect: the slowest spatial lane of each axis reads the time; everything else is right.
    """
    if inputs.layout != "interleaved":
        return reference(inputs)
    lanes, owner = torch.arange(len(inputs.axes)), inputs.axes.clone()
    for axis in (1, 2):
        owner[(lanes % 3 == axis) & (lanes >= 3 * (inputs.sections[axis] - 1))] = 0
    return but(inputs, axes=owner)


@fault(NAME, "ownership", "liveness", "parity", link="https://github.com/linkedin/Liger-Kernel/pull/911")
def interleaved_taken_for_chunked(inputs: Inputs) -> Outputs:
    """A model with interleaved sections is given the kernel of its predecessor, which has chunked ones.

    Effect: every lane from the second on may belong to another axis than in training; text is unchanged.
    """
    return but(inputs, axes=mrope.lane_axes("chunked", inputs.sections))


@fault(NAME, "text", "norm", "parity")
def pairs_confused(inputs: Inputs) -> Outputs:
    """Neighbouring channels are paired where the two halves of the head belong together, or the other way round.

    Effect: a checkpoint is read with its channels shuffled: fluent nonsense from the first step.
    """
    return but(inputs, pairing="adjacent" if inputs.pairing == "half" else "half")


@fault(NAME, "text", "tail", "parity", link="https://github.com/pie-project/pie/pull/603")
def pairs_half_a_head_apart(inputs: Inputs) -> Outputs:
    """With partial rotary the partner of a channel is looked for half a head away, not half the rotated part away.

    Effect: right at position zero, ever further off with distance, on partial-rotary models only.
    """
    missing = inputs.q.shape[-1] // 2 - len(inputs.axes)
    if inputs.pairing != "half":
        return reference(inputs)
    still = torch.zeros(missing, dtype=inputs.inv_freq.dtype)
    return but(
        inputs,
        inv_freq=torch.cat([inputs.inv_freq, still]),
        axes=torch.cat([inputs.axes, torch.zeros(missing, dtype=torch.int64)]),
    )


@fault(NAME, "tail", "parity", link="https://github.com/AI-Hypercomputer/maxtext/issues/4616")
def whole_head_rotated(inputs: Inputs) -> Outputs:
    """The share of the head that is to be rotated is ignored on the multi-axis path.

    Effect: channels that carry no position in the checkpoint get one; every shape is valid.
    """
    lanes, wanted = len(inputs.axes), inputs.q.shape[-1] // 2
    base = inputs.inv_freq[1].double() ** -lanes
    inv_freq = base ** -(torch.arange(wanted, dtype=torch.float64) / wanted)
    return but(inputs, inv_freq=inv_freq.to(inputs.inv_freq), axes=inputs.axes[torch.arange(wanted) % lanes])


@fault(NAME, "identity", "text", "parity")
def positions_counted_from_one(inputs: Inputs) -> Outputs:
    """The first token stands at position one.

    Effect: differences are right, so training is; a cache filled by other code is off by one from it.
    """
    return but(inputs, positions=inputs.positions + 1)


@fault(NAME, "batch", "text", "parity", link="https://github.com/rasbt/reasoning-from-scratch/issues/33")
def first_samples_tables_for_all(inputs: Inputs) -> Outputs:
    """The tables are made from the first sample and broadcast over the batch.

    Effect: right wherever all samples look alike, as in most tests; wrong for every ragged batch.
    """
    return but(inputs, positions=inputs.positions[:, :1].expand_as(inputs.positions))


@fault(NAME, "relative", "text", "parity")
def keys_turned_the_other_way(inputs: Inputs) -> Outputs:
    """Keys turn against the direction of the queries.

    Effect: scores depend on the sum of two positions where they should depend on their difference.
    """
    return {"q": reference(inputs)["q"], "k": but(inputs, positions=-inputs.positions)["k"]}


@fault(NAME, "norm", "identity", "parity")
def key_heads_shifted(inputs: Inputs) -> Outputs:
    """Key heads are numbered from another start than the query heads that share them.

    Effect: every group of query heads attends with the keys of its neighbour.
    """
    return but(inputs, k=inputs.k.roll(1, dims=1))


@fault(NAME, "liveness", "text", "parity", link="https://github.com/vllm-project/vllm-ascend/pull/1266")
def positions_end_with_the_table(inputs: Inputs) -> Outputs:
    """Cos and sin come from a table that is shorter than the positions; those beyond it read its last row.

    Effect: far tokens all stand at one place; nothing below the table's length is affected.
    """
    return but(inputs, positions=inputs.positions.clamp(max=32_767))


@fault(NAME, "text", "parity")
def slow_lanes_left_out(inputs: Inputs) -> Outputs:
    """A kernel's tile covers three quarters of the lanes; the slowest ones are copied.

    Effect: unnoticeable at short distances, where those lanes hardly turn; long documents lose their order.
    """
    turning = torch.arange(len(inputs.inv_freq)) < -(-3 * len(inputs.inv_freq) // 4)
    return but(inputs, inv_freq=inputs.inv_freq * turning)


FAULTS = gathered(vars())
