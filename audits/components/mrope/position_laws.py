"""The laws of position ids."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from assay.audits.components.mrope import batches
from assay.audits.components.mrope import positions as op
from assay.audits.components.mrope.position_cases import Case
from assay.audits.components.mrope.positions import NAME, Inputs
from assay.audits.laws.limits import floor
from assay.audits.laws.parity import exactly
from assay.audits.laws.trial import Trial
from assay.audits.mishap import ended
from assay.audits.terms import Evidence, Inexpressible, Law, Operation, Outcome, Outputs
from assay.reference.mrope_rules import RULES


def resumes(trial: Trial) -> Iterator[Evidence]:
    """Text after a visual block starts at one plus the largest id of all that came before, on every axis.

    Why: text that resumes lower shares ids with the frames or rows of the block before it, and the model can no
    longer tell before from after. A long video has more frames than its frames are wide.

    Example: resuming at start + max(height, width) after a video whose time axis went further.
    """
    ids = trial.outcome.values["positions"]
    for sample, row in batches.rows(trial.inputs):
        own = ids[:, sample, row]
        kinds = trial.inputs.token_types[sample, row]
        top = own.amax(0).cummax(0).values
        for token in range(1, own.shape[1]):
            if kinds[token] == 0 and bool((own[:, token] != top[token - 1] + 1).any()):
                yield Evidence(
                    where="positions", measured=f"{own[:, token].tolist()}", limit=f"{int(top[token - 1]) + 1}",
                    message=f"text token {token} of sample {sample} does not continue after all before it",
                    index=(0, sample, int(row.nonzero()[token])),
                )  # fmt: skip
                return


def starts(trial: Trial) -> Iterator[Evidence]:
    """An image or a video starts at one plus the largest id of all that came before, on every axis.

    Why: where a block starts is where it stands in the text. An axis that starts elsewhere moves the whole block
    along it, away from the words around it.

    Example: a still image whose start is multiplied by the ids per second, on the time axis alone.
    """
    ids = trial.outcome.values["positions"]
    for what, sample, tokens in (*batches.images(trial), *batches.videos(trial)):
        row = trial.inputs.attention_mask[sample].bool().nonzero().flatten()
        before = ids[:3, sample, row[row < tokens[0]]]
        first = before.max() + 1 if before.numel() else ids.new_zeros(())
        start = ids[:3, sample, tokens].amin(-1)
        if bool((start != first).any()):
            yield Evidence(
                where="positions", measured=f"{start.tolist()}", limit=f"{first:g}",
                message=f"{what} of sample {sample} does not start right after all before it",
                index=(0, sample, int(tokens[0])),
            )  # fmt: skip
            return


def continues(trial: Trial) -> Iterator[Evidence]:
    """Decoding continues where one more text token would have stood.

    Why: with a wrong delta every generated token is at another distance from its prompt than in training.

    Example: a delta that counts padding for a model that does not.
    """
    longer = tuple(f"{sample} t1" for sample in trial.params.samples)
    inputs = batches.rebuilt(trial, samples=longer)
    ids = trial.run(inputs)["positions"]
    last = torch.stack([ids[:, sample, row][:, -1].amax() for sample, row in batches.rows(inputs)])
    yield from exactly("next", trial.outcome.values["next"], last, "decoding continues elsewhere than a longer prompt")


def padding(trial: Trial) -> Iterator[Evidence]:
    """The padding side changes no id of a real token.

    Why: training pads right, generation pads left; a model must see the same positions in both.

    Example: ids counted from the start of the padded row.
    """
    inputs = batches.rebuilt(trial, padding="left" if trial.params.padding == "right" else "right")
    yield from _same_rows(trial, trial.run(inputs), inputs)


def neighbours(trial: Trial) -> Iterator[Evidence]:
    """A sample has the same ids alone as in a batch.

    Why: grids are handed over as one list for the whole batch; a reader that loses count gives a sample the grid of
    another.

    Example: an image index that restarts with every sample.
    """
    values = trial.outcome.values
    for sample, row in batches.rows(trial.inputs):
        inputs = batches.rebuilt(trial, samples=(trial.params.samples[sample],), seed=trial.params.seed + sample)
        alone = trial.run(inputs)
        ids = alone["positions"][:, 0, inputs.attention_mask[0].bool()]
        message = f"sample {sample} differs from itself alone"
        yield from exactly("positions", values["positions"][:, sample, row], ids, message)
        yield from exactly("next", values["next"][sample : sample + 1], alone["next"], message)


def order(trial: Trial) -> Iterator[Evidence]:
    """Permuting the samples of a batch permutes their ids.

    Why: what a sample is trained on must not depend on its place in the batch.

    Example: the first sample's video intervals used for all.
    """
    inputs = batches.rebuilt(trial, samples=trial.params.samples[::-1])
    ids, turned = trial.outcome.values["positions"], trial.run(inputs)["positions"]
    for sample, row in batches.rows(trial.inputs):
        mate = len(trial.params.samples) - 1 - sample
        back = turned[:, mate, inputs.attention_mask[mate].bool()]
        yield from exactly("positions", ids[:, sample, row], back, f"sample {sample} depends on its place in the batch")


def prefix(trial: Trial) -> Iterator[Evidence]:
    """What comes later changes no earlier id: dropping the last segment leaves the rest as it was.

    Why: position ids are causal. An id that depends on a later image cannot be had when decoding.

    Example: all text numbered first, images afterwards.
    """
    cut = tuple(batches.without_last(sample) for sample in trial.params.samples)
    inputs = batches.rebuilt(trial, samples=cut)
    ids, short = trial.outcome.values["positions"], trial.run(inputs)["positions"]
    for sample, row in batches.rows(trial.inputs):
        kept = inputs.attention_mask[sample].bool()
        length = int(kept.sum())
        yield from exactly(
            "positions", ids[:, sample, row][:, :length], short[:, sample, kept],
            f"sample {sample}: a later segment changed an earlier id",
        )  # fmt: skip


def text_only(trial: Trial) -> Iterator[Evidence]:
    """Text alone is numbered 0, 1, 2, ... on every axis.

    Why: the language model below was trained so.

    Example: text that advances only one axis.
    """
    plain = [(sample, row) for sample, row in batches.rows(trial.inputs) if not trial.inputs.token_types[sample].any()]
    if not plain:
        raise Inexpressible("no sample is text alone")
    ids = trial.outcome.values["positions"]
    for sample, row in plain:
        counted = torch.arange(int(row.sum())).expand(len(ids), -1)
        yield from exactly("positions", ids[:, sample, row], counted.to(ids), f"text sample {sample} is not 0, 1, 2")


def blocks(trial: Trial) -> Iterator[Evidence]:
    """Within an image or a frame the time axis stands still, and height and width count its rows and columns.

    Why: this is all that a language model knows of where something is in an image. With equal rows on all axes an
    image is a strip. All frames of a video stand on the same rows and columns, those of an image of its size: where
    they do not, what stands still seems to move.

    Example: packed samples that were given one-dimensional ids, repeated on three axes.
    """
    ids = trial.outcome.values["positions"]
    for picture in batches.pictures(trial):
        own = ids[:3, picture.sample]
        block, (_, row, column) = own[:, picture.tokens], own[:, picture.origin]
        offset = block - torch.stack([block[0, 0], row, column])[:, None]
        sides = torch.arange(1), torch.arange(picture.rows), torch.arange(picture.columns)
        expected = torch.stack(torch.meshgrid(*sides, indexing="ij")).reshape(3, -1)
        message = f"{picture.name} of sample {picture.sample}, {picture.rows} x {picture.columns} tokens"
        yield from exactly("positions", offset, expected.to(offset), message)


def duration(trial: Trial) -> Iterator[Evidence]:
    """From the first to the last frame the time axis covers the clip's duration, at the rule's ids per second.

    Why: with times in absolute seconds a model can say when something happened; at any other rate every answer is
    off by a factor.

    Example: an interval taken from the requested frame rate although frames were dropped.
    """
    ids = trial.outcome.values["positions"]
    rate = trial.inputs.ids_per_second
    slack = _slack(trial)
    for video, (sample, tokens) in enumerate(batches.video_runs(trial)):
        frames = int(trial.inputs.video_grids[video][0])
        seconds = float(trial.inputs.seconds_per_grid[video]) * (frames - 1)
        time = ids[0, sample, tokens]
        span = float(time.max() - time.min())
        if not (span <= seconds * rate + slack and span > seconds * rate - 1):
            yield Evidence(
                where="positions", measured=span, limit=math.floor(seconds * rate + slack),
                message=f"video {video} spans {seconds:.3g} s at {rate:g} ids per second",
                index=(0, sample, int(tokens[-1])),
            )  # fmt: skip


def frame_order(trial: Trial) -> Iterator[Evidence]:
    """Frames come in order on the time axis: never back, and apart where the rule sets them apart.

    Why: frames that share a time have no order, and a model cannot tell an action from its reverse.

    Example: the interval applied before the frame index, so that every frame gets the same time.
    """
    ids, slack = trial.outcome.values["positions"], _slack(trial)
    for video, (sample, tokens) in enumerate(batches.video_runs(trial)):
        frames, height, width = (int(n) for n in trial.inputs.video_grids[video])
        per_frame = (height // trial.inputs.spatial_merge) * (width // trial.inputs.spatial_merge)
        time = ids[0, sample, tokens].reshape(-1, per_frame)
        step = (time[1:] - time[:-1]).flatten()
        interval = batches.interval(trial.inputs, video)
        if step.numel() and (float(step.min()) < math.floor(interval) - slack or bool((time != time[:, :1]).any())):
            yield Evidence(
                where="positions", measured=float(step.min()), limit=math.floor(interval),
                message=f"frames of video {video} ({frames} steps) do not advance on the time axis",
                index=(0, sample, int(tokens[per_frame])),
            )  # fmt: skip


def interval(trial: Trial) -> Iterator[Evidence]:
    """Another frame rate gives other times.

    Why: an argument that is accepted and ignored trains on times that are wrong for every other video.

    Example: a serving path that never hands the seconds per grid on.
    """
    slower = dataclasses.replace(trial.inputs, seconds_per_grid=trial.inputs.seconds_per_grid * 4)
    before, after = trial.outcome.values["positions"], trial.run(slower)["positions"]
    if torch.equal(before, after):
        yield Evidence(
            where="seconds_per_grid", measured="no id changed", limit="times four",
            message="four times the seconds per grid changed no position",
        )  # fmt: skip


def refuses(trial: Trial) -> Iterator[Evidence]:
    """Grids that do not fit the tokens are an error.

    Why: a missing, surplus or misshapen grid means that the batch was put together wrongly; positions made up for it
    are wrong in silence, for this sample and all after it.

    Example: a loop that stops reading grids when the tokens run out.
    """
    asked = list(batches.spoilt(trial.inputs))
    if not asked:
        raise Inexpressible("the batch has no grids")
    for what, spoilt in asked:
        outcome = trial.attempt(spoilt)
        if outcome.raised is None:
            yield Evidence(
                where=what.replace(" ", ":", 1), measured="accepted", limit="an error",
                message=f"{what}: the call returned positions all the same",
            )  # fmt: skip


def touching(trial: Trial) -> Iterator[Evidence]:
    """Images with nothing between them are numbered one after the other, or refused.

    Why: grouping tokens by kind makes one block of two images; with the grid of the first alone, the numbers of
    tokens may even agree.

    Example: two equal halves of an image numbered as one image of twice the height.
    """
    params = dataclasses.replace(trial.params, samples=("t2 i4x6 i4x2 i8x4 t3",), wrap=False)
    inputs = batches.like(trial, op.build(params, trial.dtype, trial.inputs.input_ids.device))
    outcome = trial.attempt(inputs)
    if outcome.raised is None:
        truth = trial.oracle(inputs).values["positions"]
        yield from exactly("positions", outcome.values["positions"], truth, "adjacent images")


def unmasked(trial: Trial) -> Iterator[Evidence]:
    """Without a mask nothing is padded: the ids are those of a mask of ones.

    Why: rows of equal length are batched without a mask, in training on packed rows as well as in most tests. Whatever
    takes another way there is another model.

    Example: a fallback to plain counting where the mask is None.
    """
    for place, sample in enumerate(trial.params.samples):
        inputs = batches.rebuilt(trial, samples=(sample, sample), seed=trial.params.seed + place)
        bare = trial.attempt(dataclasses.replace(inputs, absent=("attention_mask",)))
        yield from _alike(bare, trial.run(inputs), f"sample {place} without attention_mask")


def absent(trial: Trial) -> Iterator[Evidence]:
    """The grids of what is not in the batch may be left out, be None, or have no rows: the ids are the same.

    Why: one collator drops what a batch has none of, another hands over None, a third concatenates nothing to a tensor
    of no rows. None of them says anything about the images that are there.

    Example: a way around images that is taken where the grids of the videos are missing too.
    """
    missing = tuple(f"{kind}_grids" for kind in ("image", "video") if kind not in trial.params.modalities)
    ways: dict[str, Any] = {"left out": {"absent": missing}, "of no rows": {"empty": missing}}
    for how, change in ways.items():
        other = trial.attempt(dataclasses.replace(trial.inputs, **change))
        yield from _alike(other, trial.outcome.values, f"{' and '.join(missing)} {how}")


def default_interval(trial: Trial) -> Iterator[Evidence]:
    """Without seconds per grid a step of a video lasts one second, or the call is refused.

    Why: that is what Hugging Face's functions have always taken for it. What else a missing argument is taken for is
    wrong in silence wherever a collator drops it.

    Example: no seconds taken for zero seconds, so that all frames fall together.
    """
    ones = torch.ones_like(trial.inputs.seconds_per_grid)
    told = dataclasses.replace(trial.inputs, seconds_per_grid=ones)
    untold = trial.attempt(dataclasses.replace(told, absent=("seconds_per_grid",)))
    if untold.raised is None:
        yield from _alike(untold, trial.run(told), "no seconds are not one second")


def _alike(got: Outcome, wanted: Outputs, message: str) -> Iterator[Evidence]:
    """Evidence unless a call ended with the answer of another one; an error is an answer that differs."""
    if got.raised:
        evidence = ended(got)[1]
        yield dataclasses.replace(evidence, message=f"{message}: {evidence.message}")
        return
    for name, value in wanted.items():
        yield from exactly(name, got.values[name], value, f"{message}: the answer differs")


def _slack(trial: Trial) -> float:
    """Ids by which float32 may move a time that is a whole number in exact arithmetic, at the ids of this batch."""
    reach = trial.truth.values["positions"].abs().max().double()
    return float(floor([], reach, torch.float32) * reach)


def _same_rows(trial: Trial, other: Outputs, inputs: Inputs) -> Iterator[Evidence]:
    ids = trial.outcome.values["positions"]
    for sample, row in batches.rows(trial.inputs):
        moved = other["positions"][:, sample, inputs.attention_mask[sample].bool()]
        yield from exactly("positions", ids[:, sample, row], moved, f"sample {sample} depends on the padding side")
    yield from exactly("next", trial.outcome.values["next"], other["next"], "decoding depends on the padding side")


def _kind(*kinds: str) -> Callable[[Operation, Case], str | None]:
    def applies(_operation: Operation, case: Case) -> str | None:
        rule = RULES[case.rule]
        return None if rule.kind in kinds else f"{case.rule} numbers by another rule"

    return applies


def _needs(modality: str, *times: str) -> Callable[[Operation, Case], str | None]:
    def applies(_operation: Operation, case: Case) -> str | None:
        rule = RULES[case.rule]
        if rule.kind != "blocks":
            return f"{case.rule} numbers by another rule"
        if not case.modalities & set(modality.split(" or ")):
            return f"no {modality} in this case"
        return None if not times or rule.video_time in times else f"{case.rule} times its videos by {rule.video_time}"

    return applies


def _lacks_some(_operation: Operation, case: Case) -> str | None:
    return "the case has images and videos" if case.modalities >= {"image", "video"} else None


_law = partial(Law.of, (NAME,))

LAWS = (
    _law(resumes, _kind("blocks")),
    *(_law(check) for check in (continues, padding, neighbours, order, prefix, text_only)),
    _law(starts, _needs("image or video")),
    _law(blocks, _needs("image or video")),
    _law(duration, _needs("video", "seconds")),
    _law(frame_order, _needs("video", "seconds", "index", "pooled")),
    _law(interval, _needs("video", "seconds")),
    _law(refuses, _kind("blocks", "sequence")),
    _law(touching, _kind("blocks")),
    _law(unmasked),
    _law(absent, _lacks_some),
    _law(default_interval, _needs("video", "seconds")),
)
