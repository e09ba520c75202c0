"""Batches related to a trial's own, and the rows, images and videos of one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from assay.audits.components.mrope import positions as op
from assay.audits.components.mrope.positions import Inputs
from assay.audits.families import samples
from assay.audits.laws.trial import Trial


def spoilt(inputs: Inputs) -> Iterator[tuple[str, Inputs]]:
    """The batch with a grid missing, one too many, or one too large; each with what was done to which grids."""
    for name in ("image_grids", "video_grids"):
        grids: Tensor = getattr(inputs, name)
        if not len(grids):
            continue
        larger = grids.clone()
        larger[-1, 1] += 2 * inputs.spatial_merge
        for what, wrong in (
            ("missing", grids[:-1]),
            ("surplus", torch.cat([grids, grids[-1:]])),
            ("too large", larger),
        ):
            seconds = inputs.seconds_per_grid
            if name == "video_grids" and len(wrong) != len(grids):
                seconds = seconds[: len(wrong)] if len(wrong) < len(grids) else torch.cat([seconds, seconds[-1:]])
            changes: Any = {name: wrong, "seconds_per_grid": seconds}
            yield f"{name} {what}", dataclasses.replace(inputs, **changes)


def rebuilt(trial: Trial, **changes: Any) -> Inputs:
    """The batch of a case that differs from the trial's in ``changes``, under its settings."""
    params = dataclasses.replace(trial.params, **changes)
    return like(trial, op.build(params, trial.dtype, trial.inputs.input_ids.device))


def like(trial: Trial, inputs: Inputs) -> Inputs:
    """A batch built afresh, under the settings of the trial's own."""
    kept = ("spatial_merge", "ids_per_second", "temporal_merge")
    return dataclasses.replace(inputs, **{name: getattr(trial.inputs, name) for name in kept})


def rows(inputs: Inputs) -> Iterator[tuple[int, Tensor]]:
    """Samples that have tokens, each with the mask of its real ones."""
    for sample, mask in enumerate(inputs.attention_mask.bool()):
        if bool(mask.any()):
            yield sample, mask


def without_last(text: str) -> str:
    """The sample less its last segment, or as it is where nothing would be left."""
    sample = samples.parse(text)
    left = [item for item in sample.segments[:-1] if item != samples.Text(0)]
    return str(samples.Sample(tuple(left))) if left else text


def images(trial: Trial) -> Iterator[tuple[str, int, Tensor]]:
    """The tokens of each image of the batch, in order, with its name and its sample."""
    inputs, image = trial.inputs, 0
    for sample, row in rows(inputs):
        tokens = ((inputs.token_types[sample] == 1) & row).nonzero().flatten()
        while len(tokens):
            _, height, width = (int(n) // inputs.spatial_merge for n in inputs.image_grids[image])
            yield f"image {image}", sample, tokens[: height * width]
            tokens, image = tokens[height * width :], image + 1


def videos(trial: Trial) -> Iterator[tuple[str, int, Tensor]]:
    """The tokens of each video of the batch, in order; of each frame where frames stand by themselves."""
    if trial.inputs.position_rule.video_time == "frames":
        return
    for video, (sample, tokens) in enumerate(video_runs(trial)):
        yield f"video {video}", sample, tokens


def video_runs(trial: Trial) -> Iterator[tuple[int, Tensor]]:
    """The tokens of each video of the batch, in order."""
    inputs, video = trial.inputs, 0
    for sample, row in rows(inputs):
        tokens = ((inputs.token_types[sample] == 2) & row).nonzero().flatten()
        while len(tokens):
            frames, height, width = (int(n) for n in inputs.video_grids[video])
            merge = inputs.spatial_merge
            count = max(frames // inputs.temporal_merge, 1) * (height // merge) * (width // merge)
            yield sample, tokens[:count]
            tokens, video = tokens[count:], video + 1


@dataclass(frozen=True)
class Picture:
    """An image or one frame: its tokens, the token from which its rows and columns count, and how many they are."""

    name: str
    sample: int
    tokens: Tensor
    origin: int
    rows: int
    columns: int


def pictures(trial: Trial) -> Iterator[Picture]:
    """Each image, and each frame of each video; frames count from the first one's corner unless they stand alone."""
    inputs, merge = trial.inputs, trial.inputs.spatial_merge
    for (name, sample, tokens), (_, height, width) in zip(images(trial), inputs.image_grids.tolist(), strict=True):
        yield Picture(name, sample, tokens, int(tokens[0]), height // merge, width // merge)
    alone = inputs.position_rule.video_time == "frames"
    for video, (sample, tokens) in enumerate(video_runs(trial)):
        height, width = (int(n) // merge for n in inputs.video_grids[video][1:])
        for frame, own in enumerate(tokens.reshape(-1, height * width)):
            origin = int(own[0] if alone else tokens[0])
            yield Picture(f"frame {frame} of video {video}", sample, own, origin, height, width)


def interval(inputs: Inputs, video: int) -> float:
    """How far apart the rule sets two steps of a video on the time axis."""
    rule = inputs.position_rule
    if rule.video_time == "seconds":
        return float(inputs.seconds_per_grid[video]) * inputs.ids_per_second
    return 1.0
