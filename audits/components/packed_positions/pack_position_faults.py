"""Wrong positions in a row: collators that pack, each right but for the ids of one or several axes."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from assay.audits.components.packed_positions.collators import Batch, batch, collates, with_lengths, without_lengths
from assay.audits.components.packed_positions.pack import NAME, Inputs
from assay.audits.fault import fault, gathered
from assay.reference import mrope_positions


def _with_text_row(made: Batch, row: Tensor) -> Batch:
    ids = made["position_ids"].clone()
    ids[:1] = row.to(ids)
    return {**made, "position_ids": ids}


def _with_axes(made: Batch, axes: Tensor) -> Batch:
    ids = made["position_ids"]
    return made if ids.ndim == 2 else {**made, "position_ids": torch.cat([ids[:1], axes[:, None].to(ids)])}


def _numbered(rule: Any, inputs: Inputs, types: Tensor, image_grids: Tensor) -> Tensor:
    """[A, S] ids of one row of tokens."""
    videos, seconds = torch.cat(inputs.video_grids), torch.cat(inputs.seconds)
    timed = seconds if rule.video_time == "seconds" and len(videos) else None
    ids, _ = mrope_positions.positions(
        rule, types[None], image_grids=image_grids, video_grids=videos, seconds_per_grid=timed
    )
    return ids[:, 0]


@fault(NAME, "restarts", "agree", link="https://github.com/pytorch/torchtitan/issues/2559")
@collates
def positions_run_on(inputs: Inputs) -> Batch:
    """The loader never hands position ids over, so that they count through the whole row.

    Effect: attention is cut at each document and the rotation is not: every sample but the first is far from its start.
    """
    made = batch(inputs)
    return _with_text_row(made, torch.arange(made["input_ids"].shape[-1]))


@fault(NAME, "restarts", "boundaries", link="https://github.com/alibaba/Pai-Megatron-Patch/issues/406")
@collates
def three_switches_left_off(inputs: Inputs) -> Batch:
    """Restarting ids, restarting attention and masked ends are three options, and none is on by itself.

    Effect: documents are packed as if they were one, with full attention between them.
    """
    made = _run_on(batch(inputs))
    return with_lengths(made, torch.tensor([0, made["input_ids"].shape[-1]], dtype=torch.int32))


def _run_on(made: Batch) -> Batch:
    """The batch with a text row that never restarts."""
    return _with_text_row(made, torch.arange(made["input_ids"].shape[-1]))


@fault(NAME, "grid", link="https://github.com/NVIDIA-NeMo/Automodel/pull/2172")
@collates
def no_rule_of_the_model(inputs: Inputs) -> Batch:
    """The packer is not given the model's rule: each sample gets 0, 1, 2, ..., repeated on all axes.

    Effect: with packing on, a vision-language model is trained without places in its images. Nothing fails.
    """
    made = batch(inputs)
    ids = made["position_ids"]
    return {**made, "position_ids": ids[:1].expand_as(ids)}


@fault(NAME, "grid", link="https://github.com/axolotl-ai-cloud/axolotl/pull/3817")
@collates
def one_row_of_ids(inputs: Inputs) -> Batch:
    """Position ids have one row, whatever the family; the model repeats it on its axes.

    Effect: no places in images, and in transformers no boundaries either, since only a fourth row tells them.
    """
    made = batch(inputs)
    ids = made["position_ids"]
    return {**without_lengths(made), "position_ids": ids if ids.ndim == 2 else ids[0]}


@fault(NAME, "boundaries", link="https://github.com/axolotl-ai-cloud/axolotl/pull/3817")
@collates
def axes_without_the_text_row(inputs: Inputs) -> Batch:
    """Ids have the three rows of the axes, which do not tell where a sample begins, and nothing else does.

    Effect: each sample sees all those before it.
    """
    made = without_lengths(batch(inputs))
    ids = made["position_ids"]
    return {**made, "position_ids": ids if ids.ndim == 2 else ids[1:]}


@fault(NAME, "restarts", "agree", link="https://github.com/huggingface/transformers/pull/44158")
@collates
def time_axis_as_the_text_row(inputs: Inputs) -> Batch:
    """The first row, by which samples are told apart, is the time axis.

    Effect: time stands still within an image, so that each of its tokens becomes a sample of its own.
    """
    made = batch(inputs)
    return made if made["position_ids"].ndim == 2 else _with_text_row(made, made["position_ids"][1])


@fault(NAME, "alone", "order")
@collates
def numbered_as_one_sample(inputs: Inputs) -> Batch:
    """The rule is applied to the whole row, as if it were one sample.

    Effect: all samples but the first are further from their start than any sample at inference.
    """
    rule = inputs.position_rule
    if rule is None:
        return _run_on(batch(inputs))
    types, grids = torch.cat(inputs.token_types), torch.cat(inputs.image_grids)
    return _with_axes(batch(inputs), _numbered(rule, inputs, types, grids))


@fault(NAME, "alone", "order", link="https://github.com/hiyouga/LlamaFactory/pull/7754")
@collates
def first_sample_numbered_only(inputs: Inputs) -> Batch:
    """The rule is given a mask of sample numbers and numbers what has a one; the rest keeps the filler.

    Effect: all tokens of all samples but the first stand at one position.
    """
    made = batch(inputs)
    axes = made["position_ids"][1:, 0].clone() if made["position_ids"].ndim == 3 else torch.zeros(0, 0)
    axes[:, inputs.lengths[0] :] = 1
    return _with_axes(made, axes)


@fault(NAME, "alone", link="https://github.com/NVIDIA-NeMo/Megatron-Bridge/pull/1988")
@collates
def ids_against_tokens(inputs: Inputs) -> Batch:
    """Ids are made for rows with padding and used for the packed row, one place off for each sample before.

    Effect: places in images belong to the patch beside, the more the later a sample stands in the row.
    """
    made = batch(inputs)
    axes = made["position_ids"][1:, 0].clone() if made["position_ids"].ndim == 3 else torch.zeros(0, 0)
    for number, (start, stop) in enumerate(itertools.pairwise(inputs.starts)):
        axes[:, start:stop] = axes[:, start:stop].roll(number, dims=-1)
    return _with_axes(made, axes)


@fault(NAME, "alone", "order")
@collates
def grids_from_the_end(inputs: Inputs) -> Batch:
    """Grids are taken from a list in the reverse of the samples' order, where they have as many tokens.

    Effect: a wide image is numbered like the tall one beside it.
    """
    made, rule = batch(inputs), inputs.position_rule
    if rule is None:
        return made
    turned = [x.flip(-1) if i % 2 else x for i, x in enumerate(g[:, 1:] for g in inputs.image_grids)]
    turned = [torch.cat([g[:, :1], t], dim=1) for g, t in zip(inputs.image_grids, turned, strict=True)]
    if rule.row_end:  # its images have as many tokens either way only where they are square
        return made
    own = [_one(inputs, number, grids) for number, grids in enumerate(turned)]
    return _with_axes(made, torch.cat(own, dim=1))


def _one(inputs: Inputs, number: int, image_grids: Tensor) -> Tensor:
    single = inputs.of(number)
    return _numbered(inputs.position_rule, single, inputs.token_types[number], image_grids)


@fault(NAME, "restarts", "alone", link="https://github.com/alibaba/ROLL/pull/452")
@collates
def positions_not_packed(inputs: Inputs) -> Batch:
    """Tokens and labels are packed; the ids are those of the first sample, over and over.

    Effect: an error where the numbers of tokens differ, and nothing at all where they happen to agree.
    """
    made = batch(inputs)
    first = inputs.lengths[0]
    places = torch.arange(made["input_ids"].shape[-1]) % first
    return {**made, "position_ids": made["position_ids"][..., places]}


@fault(NAME, "restarts", "boundaries", link="https://github.com/modelscope/ms-swift/issues/4439")
@collates
def nothing_told(inputs: Inputs) -> Batch:
    """The row has ids and labels, and neither positions nor lengths.

    Effect: the model takes the row for one sample.
    """
    made = without_lengths(batch(inputs))
    del made["position_ids"]
    return made


@fault(NAME, "restarts")
@collates
def positions_in_half_precision(inputs: Inputs) -> Batch:
    """Position ids pass through half precision on their way, with all else that is cast.

    Effect: from token 2049 on two neighbours share a position; short samples are right.
    """
    made = batch(inputs)
    return {**made, "position_ids": made["position_ids"].half().long()}


FAULTS = gathered(globals())
