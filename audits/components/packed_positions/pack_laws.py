"""The laws of a packed row: a sample in it is what it is alone, and a model is told where it begins."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from assay.audits.components.packed_positions.collated import OF_TOKENS
from assay.audits.components.packed_positions.pack import NAME, PER_SAMPLE, TEXT, Inputs
from assay.audits.laws.parity import exactly
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Inexpressible, Law, Operation

OF_A_SAMPLE = ("input_ids", "labels", "text_positions", "positions", "carried:weights", "carried:token_types")
"""Outputs with an entry for each token, in which a sample must be as it is alone."""


def tokens(trial: Trial) -> Iterator[Evidence]:
    """The row holds the tokens of the samples, all of them, in their order, and nothing between them.

    Why: what is lost is never trained on, and what is added or moved puts everything after it in another place than
    its label and its position.

    Example: samples kept in a dictionary by their ids, so that two equal ones become one.
    """
    got, want = trial.outcome.values["input_ids"], torch.cat(trial.inputs.input_ids)
    if len(got) < len(want) or (trial.inputs.multiple == 1 and len(got) != len(want)):
        yield Evidence(
            where="input_ids", measured=f"{len(got)} tokens", limit=f"{len(want)} tokens",
            message="tokens were lost or added",
        )  # fmt: skip
        return
    yield from exactly("input_ids", got[: len(want)], want.to(got), "not the samples' tokens in their order")


def restarts(trial: Trial) -> Iterator[Evidence]:
    """The text's position ids count 0, 1, 2, ... in each sample, images and videos included.

    Why: a restart is how attention is told that a sample begins. A row of ids that jumps inside an image, as every
    position axis does, cuts the sample to pieces; one that does not restart joins it to the sample before.

    Example: the time axis handed over in the place of the text's row.
    """
    got = trial.outcome.values["text_positions"]
    for number, own in _slices(trial.inputs):
        want = torch.arange(own.stop - own.start)
        yield from exactly("text_positions", got[own], want.to(got), f"sample {number} does not count from zero")


def boundaries(trial: Trial) -> Iterator[Evidence]:
    """The cumulative lengths go from 0 to the number of tokens, by one step for each sample; the longest is told.

    Why: variable-length attention computes what these numbers say. A boundary that is missing lets two samples see
    each other, one at a wrong place cuts a sample, and a longest length too small leaves its end uncomputed.

    Example: lengths that were sorted for one purpose and are handed on for another.
    """
    values, inputs = trial.outcome.values, trial.inputs
    total = len(values["input_ids"])
    want = inputs.starts if total == inputs.starts[-1] else [*inputs.starts, total]
    got = values["cu_seqlens"].tolist()
    if got != want:
        yield Evidence(
            where="cu_seqlens", measured=_listed(got), limit=_listed(want), message="the samples begin elsewhere"
        )
    longest = max(end - start for start, end in itertools.pairwise(want))
    if int(values["max_length"]) != longest:
        yield Evidence(
            where="max_length", measured=float(values["max_length"]), limit=float(longest),
            message="the longest sample has another length",
        )  # fmt: skip
    yield from exactly("segments", _renumbered(values["segments"]), _numbers(want), "tokens of other samples")


def agree(trial: Trial) -> Iterator[Evidence]:
    """All that says where samples begin says the same: restarts, cumulative lengths, numbers of samples, masks.

    Why: a model reads one of them, which one depends on the attention that was installed. Where they differ, samples
    are kept apart on one machine and not on the next; a plain mask of ones stands before all others in transformers.

    Example: an attention mask of ones beside position ids that restart.
    """
    values = trial.outcome.values
    told = {name: _renumbered(value) for name, value in values.items() if name.startswith("told:")}
    if len(told) < 2:
        raise Inexpressible("not more than one thing says where samples begin")
    own = _renumbered(values["segments"])
    for name, numbers in told.items():
        if not torch.equal(numbers, own):
            yield Evidence(
                where=name, measured=f"{int(numbers.max())} samples", limit=f"{int(own.max())} samples",
                message="says otherwise than what a model goes by",
            )  # fmt: skip


def first_label(trial: Trial) -> Iterator[Evidence]:
    """The first label of each sample is ignored.

    Why: labels are shifted by one: the first token of a sample would be predicted by the last of the one before it,
    which has nothing to do with it.

    Example: labels concatenated as they are.
    """
    labels = trial.outcome.values["labels"]
    for number, own in _slices(trial.inputs):
        if int(labels[own.start]) != trial.inputs.ignore_index:
            yield Evidence(
                where="labels", measured=f"{int(labels[own.start])}", limit=f"{trial.inputs.ignore_index}",
                message=f"the token before sample {number} is trained to predict its first", index=(own.start,),
            )  # fmt: skip
            return


def labels_kept(trial: Trial) -> Iterator[Evidence]:
    """All other labels are those of the samples; without labels, their ids.

    Why: packing must not change what is trained on. Prompts that come back, answers that are cut by one token at each
    boundary, or labels that were shifted already train another model.

    Example: a packer that takes the ids alone and makes the labels from them.
    """
    inputs, labels = trial.inputs, trial.outcome.values["labels"]
    for number, own in _slices(inputs):
        want = inputs.labels[number] if inputs.labelled else inputs.input_ids[number]
        yield from exactly("labels", labels[own][1:], want[1:].to(labels), f"sample {number} has other labels")


def alone(trial: Trial) -> Iterator[Evidence]:
    """A sample has in the row what it has in a row of its own: ids, labels, positions on every axis.

    Why: this is what packing promises. What a sample gets must not depend on its neighbours, on their images, or on
    how many stand before it.

    Example: positions of several axes computed over the whole row, or for its first sample only.
    """
    got, slices = trial.outcome.values, list(_slices(trial.inputs))
    for number, own in slices[:: len(slices) // SINGLED + 1]:
        single = trial.run(dataclasses.replace(trial.inputs.of(number), multiple=1))
        for name in (name for name in OF_A_SAMPLE if name in got and name in single):
            message = f"sample {number} is another one in the row"
            yield from _as_before(name, got[name][..., own], single[name], message)


def order(trial: Trial) -> Iterator[Evidence]:
    """Another order of the samples puts the same in another order.

    Why: a sampler deals samples out at random; what the third sample of a row gets must not be the third's alone.

    Example: grids handed out from the end of a list.
    """
    count = len(trial.inputs.input_ids)
    turned = trial.inputs.of(*reversed(range(count)))
    got, back = trial.outcome.values, trial.run(turned)
    mates = dict(_slices(turned))
    for number, own in _slices(trial.inputs):
        for name in (name for name in OF_A_SAMPLE if name in got and name in back):
            mate = back[name][..., mates[count - 1 - number]]
            message = f"sample {number} depends on its place in the row"
            yield from _as_before(name, got[name][..., own], mate, message)


def grid(trial: Trial) -> Iterator[Evidence]:
    """Within an image the position axes differ: rows and columns are not counted like words.

    Why: a packer that does not know the model's rule numbers every token like text and repeats the ids on all axes.
    Time, height and width then rotate alike, an image is a strip of patches, and the loss hardly tells.

    Example: a recipe that has no rule of the model at hand when it packs, and takes 0, 1, 2, ...
    """
    ids, inputs = trial.outcome.values["positions"], trial.inputs
    grids = [(number, own) for number, own in _slices(inputs) if _is_a_grid(inputs, number)]
    if not grids:
        raise Inexpressible("no image has several rows and several columns")
    for number, own in grids:
        visual = inputs.token_types[number] > 0
        block = ids[:, own][:, visual].double()
        same = [axis for axis in range(1, min(3, len(block))) if torch.equal(block[axis], block[0])]
        if len(block) < 3 or same:
            yield Evidence(
                where="positions", measured="equal axes", limit="axes of their own", index=(number,),
                message=f"images of sample {number}: {len(block)} rows of positions, {same or 'all'} like the first",
            )  # fmt: skip


def empties(trial: Trial) -> Iterator[Evidence]:
    """A sample without tokens is refused, or changes nothing for the others.

    Why: a filter upstream leaves one sooner or later. A boundary, a label or a position put down for it moves all that
    comes after by one against the tokens.

    Example: a label to separate samples, written for each of them whether it has tokens or not.
    """
    inputs: Inputs = trial.inputs
    nothing: dict[str, Any] = {name: tuple(x[:0] for x in getattr(inputs.of(0), name)) for name in PER_SAMPLE}
    empty = dataclasses.replace(inputs, **nothing)
    for place in {0, len(inputs.input_ids) // 2, len(inputs.input_ids)}:
        joined: Any = {
            name: (*getattr(inputs, name)[:place], *getattr(empty, name), *getattr(inputs, name)[place:])
            for name in PER_SAMPLE
        }
        asked = dataclasses.replace(inputs, **joined)
        outcome = trial.attempt(asked)
        if outcome.raised is None:
            for name in ("input_ids", "labels", "text_positions", "positions"):
                got, want = outcome.values[name], trial.outcome.values[name]
                yield from _as_before(name, got, want, f"with an empty sample at place {place}")


def carried(trial: Trial) -> Iterator[Evidence]:
    """Whatever else the samples have is in the batch: by the same map of tokens, or in the order of the samples.

    Why: a weight, a mask or a modality for each token means nothing at another token. What a packer does not know and
    leaves out is a feature that is off, without a word; an error would be one.

    Example: a packer that takes the ids and leaves the mask of the assistant's turns behind.
    """
    values, inputs = trial.outcome.values, trial.inputs
    total = sum(inputs.lengths)
    for name in ("weights", "token_types", "image_grids", "video_grids", "pixels", "video_pixels"):
        want = torch.cat(getattr(inputs, name))
        got = values.get(f"carried:{name}")
        if not len(want) or (name == "token_types" and (got is None or inputs.rule == TEXT)):
            continue  # of what use token types are where positions are made already, the model knows
        if got is None:
            yield Evidence(
                where=name, measured="absent", limit="packed", message="was in the samples, not in the batch"
            )
            continue
        if want.is_floating_point() and not got.is_floating_point():
            yield Evidence(where=name, measured=str(got.dtype), limit="a floating dtype", message="fractions were cut")
            continue
        own = got[:total] if name in OF_TOKENS else got
        yield from _as_before(name, own, want, "packed by another map than the tokens")


def aligned(trial: Trial) -> Iterator[Evidence]:
    """A row that is aligned has the multiple asked for; what is added comes last, of no sample and not trained on.

    Why: kernels and context parallelism ask for multiples. What fills them up is no text: a label there is trained on,
    and a place in the last sample is a token that it does not have.

    Example: padding in front of the row, where boundaries are counted from its start.
    """
    inputs, values = trial.inputs, trial.outcome.values
    total, filled = sum(inputs.lengths), len(values["input_ids"])
    if filled % inputs.multiple or filled - total >= inputs.multiple:
        yield Evidence(
            where="input_ids", measured=f"{filled} tokens", limit=f"the next multiple of {inputs.multiple}",
            message=f"{total} tokens are aligned to another number",
        )  # fmt: skip
    if bool((values["labels"][total:] != inputs.ignore_index).any()):
        yield Evidence(where="labels", measured="a label", limit="ignored", message="what was added is trained on")
    if bool((values["segments"][total:] != 0).any()) or bool((values["segments"][:total] == 0).any()):
        yield Evidence(
            where="segments", measured="a sample's number", limit="0 after the samples, and there alone",
            message="what was added is not told from the samples",
        )  # fmt: skip


SINGLED = 16
"""How many samples are asked for alone at most, of those of a row."""


def _slices(inputs: Inputs) -> Iterator[tuple[int, slice]]:
    """The number of each sample and its tokens in the row."""
    starts = inputs.starts
    for number, (start, stop) in enumerate(itertools.pairwise(starts)):
        yield number, slice(start, stop)


def _numbers(ends: list[int]) -> Tensor:
    return torch.arange(1, len(ends)).repeat_interleave(torch.tensor(ends).diff())


def _renumbered(segments: Tensor) -> Tensor:
    """The same runs with the numbers 1, 2, 3, ..."""
    if not len(segments):
        return segments.long()
    return torch.cat([segments.new_ones(1), (segments[1:] != segments[:-1]).to(segments)]).long().cumsum(0)


def _as_before(where: str, got: Tensor, want: Tensor, message: str) -> Iterator[Evidence]:
    if got.shape != want.shape:
        yield Evidence(where=where, measured=f"{list(got.shape)}", limit=f"{list(want.shape)}", message=message)
    else:
        yield from exactly(where, got, want.to(got), message)


def _is_a_grid(inputs: Inputs, number: int) -> bool:
    """Whether some image or frame has several rows and several columns of tokens."""
    rule = inputs.position_rule
    grids = torch.cat([inputs.image_grids[number], inputs.video_grids[number]])
    return rule is not None and bool((grids[:, 1:] > rule.spatial_merge).all(-1).any())


def _listed(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:12]))
    return f"{shown}, ..." if len(numbers) > 12 else shown


def _several(_operation: Operation, case: Any) -> str | None:
    return None if len(case.samples) > 1 else "one sample"


def _visual(_operation: Operation, case: Any) -> str | None:
    return None if case.rule != TEXT and case.modalities else "nothing but text"


def _filled(_operation: Operation, case: Any) -> str | None:
    return None if case.multiple > 1 else "nothing is aligned"


_law = partial(Law.of, (NAME,))

LAWS = (
    _law(tokens), _law(restarts), _law(boundaries), _law(agree), _law(first_label), _law(labels_kept),
    _law(alone, _several), _law(order, _several), _law(grid, _visual), _law(empties), _law(carried),
    _law(aligned, _filled),
)  # fmt: skip
