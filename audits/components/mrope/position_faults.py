"""Wrong position ids: where a block starts, how its tokens are numbered, and what a second of video is worth."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from assay.audits.components.mrope.positions import NAME, Inputs
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs

TEXT, IMAGE, VIDEO = range(3)
Feed = deque[Tensor]
"""Offsets [3,n] of the tokens of each grid, in the order in which they occur."""


def frame_times(inputs: Inputs, video: int) -> Tensor:
    """Time of each frame of a video, in ids after its first."""
    seconds = inputs.seconds_per_grid[video]
    return (torch.arange(int(inputs.video_grids[video, 0])) * (seconds * inputs.ids_per_second)).trunc().long()


def cells(times: Tensor, rows: int, columns: int) -> Tensor:
    """Offsets of a block's tokens: frame by frame, row by row."""
    grid = torch.meshgrid(times, torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack(grid).flatten(1)


def placed(_inputs: Inputs, start: int, offsets: Tensor, _kind: int) -> Tensor:
    """Ids of a block that starts at ``start``."""
    return start + offsets


def after_all(_start: int, ids: Tensor, _offsets: Tensor) -> int:
    """Where the numbering goes on after a block."""
    return int(ids.max()) + 1


def covering(feed: Feed, length: int) -> list[Tensor]:
    """The grids of one run of visual tokens; IndexError or ValueError where they do not fit."""
    taken: list[Tensor] = []
    while (missing := length - sum(block.shape[1] for block in taken)) > 0:
        taken.append(feed.popleft())
    if missing < 0:
        message = f"the grids of a run have {-missing} tokens too many"
        raise ValueError(message)
    return taken


def forgiving(feed: Feed, length: int) -> list[Tensor]:
    """Whatever grids there are, cut to the run or filled up with zeros; nothing is ever an error."""
    block = torch.cat([torch.zeros(3, 0, dtype=torch.int64), *feed], dim=1)[:, :length]
    while feed and length > 0:
        length -= feed.popleft().shape[1]
    return [torch.cat([block, torch.zeros(3, max(0, length), dtype=torch.int64)], dim=1)]


def numbered(
    inputs: Inputs,
    *,
    times: Callable[[Inputs, int], Tensor] = frame_times,
    cells: Callable[[Tensor, int, int], Tensor] = cells,
    place: Callable[[Inputs, int, Tensor, int], Tensor] = placed,
    resume: Callable[[int, Tensor, Tensor], int] = after_all,
    take: Callable[[Feed, int], list[Tensor]] = covering,
    strict: bool = True,
) -> Outputs:
    """The Qwen2.5-VL rule written in steps, of which a fault replaces one. With none replaced it is right."""
    merged = {IMAGE: inputs.image_grids.clone(), VIDEO: inputs.video_grids.clone()}
    for grids in merged.values():
        grids[:, 1:] //= inputs.spatial_merge
    feeds = {
        IMAGE: deque(cells(torch.zeros(1, dtype=torch.int64), h, w) for _, h, w in merged[IMAGE].tolist()),
        VIDEO: deque(cells(times(inputs, i), h, w) for i, (_, h, w) in enumerate(merged[VIDEO].tolist())),
    }
    ids = torch.zeros(3, *inputs.token_types.shape, dtype=torch.int64)
    following = torch.zeros(len(inputs.token_types), dtype=torch.int64)
    for sample, real in enumerate(inputs.attention_mask.bool()):
        row = _row(inputs, inputs.token_types[sample, real].tolist(), feeds, place, resume, take)
        ids[:, sample, real] = row
        following[sample] = row.max() + 1 if row.numel() else 0
    if strict and any(feeds.values()):
        message = "grids are left over"
        raise ValueError(message)
    return {"positions": ids, "next": following}


def _row(inputs: Inputs, kinds: list[int], feeds: dict[int, Feed], place: Any, resume: Any, take: Any) -> Tensor:
    ids = torch.zeros(3, len(kinds), dtype=torch.int64)
    at = start = 0
    while at < len(kinds):
        kind = kinds[at]
        stop = next((i for i in range(at, len(kinds)) if kinds[i] != kind), len(kinds))
        if kind == TEXT:
            ids[:, at:stop] = start + torch.arange(stop - at)
            start += stop - at
        for offsets in take(feeds[kind], stop - at) if kind != TEXT else ():
            mine = slice(at, at + offsets.shape[1])
            ids[:, mine] = place(inputs, start, offsets, kind)
            start = resume(start, ids[:, mine], offsets)
            at = mine.stop
        at = stop
    return ids


def but(inputs: Inputs, **changes: Any) -> Outputs:
    """The right answer to other inputs than were given."""
    return numbered(dataclasses.replace(inputs, **changes))


@fault(NAME, "resumes", "continues", "parity", link="https://github.com/huggingface/transformers/issues/45381")
def text_resumes_inside_a_long_video(inputs: Inputs) -> Outputs:
    """After a block the numbering goes on at its start plus the larger of its sides, however far its time axis went.

    Effect: text after a long video shares ids with its frames, and the first generated token jumps. ERNIE 4.5 VL
    and PaddleOCR-VL have the same line in transformers.
    """
    return numbered(inputs, resume=lambda start, _ids, offsets: start + int(offsets[1:].max()) + 1)


@fault(NAME, "resumes", "parity")
def text_resumes_after_the_frames(inputs: Inputs) -> Outputs:
    """After a block the numbering goes on past its last time, whatever its rows and columns.

    Effect: text after an image shares ids with all rows but the first.
    """
    return numbered(inputs, resume=lambda start, _ids, offsets: start + int(offsets[0].max()) + 1)


@fault(NAME, "starts", "parity")
def block_starts_at_the_last_text(inputs: Inputs) -> Outputs:
    """An image starts at the id of the text token before it, not at the next one.

    Effect: the first patch cannot be told from the marker before it.
    """
    return numbered(inputs, place=lambda _inputs, start, offsets, _kind: max(start - 1, 0) + offsets)


def _start_in_time(inputs: Inputs, start: int, offsets: Tensor, kind: int) -> Tensor:
    ids = start + offsets
    ids[0] = int(start * inputs.ids_per_second) if kind == IMAGE else ids[0]
    return ids


@fault(NAME, "starts", "parity", link="https://github.com/huggingface/transformers/issues/45325")
def still_image_scaled_in_time(inputs: Inputs) -> Outputs:
    """The start of a still image is added before the time axis is multiplied by the ids per second.

    Effect: the time of an image lies far beyond its row and column, and all later text moves with it.
    """
    return numbered(inputs, place=_start_in_time)


@fault(NAME, "frame_order", "duration", "parity", link="https://github.com/huggingface/transformers/pull/45400")
def all_frames_at_one_time(inputs: Inputs) -> Outputs:
    """The interval multiplies the start of the video where it was to multiply the index of the frame.

    Effect: a video is a set of frames without order; a test whose interval rounds to zero cannot see it.
    """
    return numbered(inputs, times=lambda given, video: torch.zeros_like(frame_times(given, video)))


@fault(NAME, "frame_order", "parity")
def frames_numbered_backwards(inputs: Inputs) -> Outputs:
    """The newest frame gets the first time.

    Effect: actions are learnt as their reverse.
    """
    return numbered(inputs, times=lambda given, video: frame_times(given, video).flip(0))


@fault(NAME, "interval", "duration", "parity", link="https://github.com/sgl-project/sglang/pull/3682")
def seconds_ignored(inputs: Inputs) -> Outputs:
    """Frames are counted 0, 1, 2, ... although the family's rule counts seconds.

    Effect: a served model sees other times than it was trained with.
    """
    return numbered(inputs, times=lambda given, video: torch.arange(int(given.video_grids[video, 0])))


@fault(NAME, "interval", "duration", "parity", link="https://github.com/huggingface/transformers/pull/41153")
def one_second_a_frame_when_generating(inputs: Inputs) -> Outputs:
    """The seconds per grid are not handed on to generation, so the default of one second takes their place.

    Effect: training knows the true times, generation does not: answers about moments are off by a factor.
    """
    return but(inputs, seconds_per_grid=torch.ones_like(inputs.seconds_per_grid))


@fault(NAME, "interval", "duration", "parity", link="https://github.com/EvolvingLMMs-Lab/lmms-eval/issues/1393")
def default_frame_rate(inputs: Inputs) -> Outputs:
    """The sampled frame rate arrives under a name that the processor does not read, so its default of 24 is used.

    Effect: an evaluation gives every video a twelfth of its duration.
    """
    return but(inputs, seconds_per_grid=torch.full_like(inputs.seconds_per_grid, 2 / 24))


@fault(NAME, "interval", "duration", "parity", link="https://github.com/QwenLM/Qwen3-VL")
def configured_frame_rate(inputs: Inputs) -> Outputs:
    """A collator divides by the configured frame rate, and ignores the rates that the processor reports.

    Effect: limits on the number of frames change the true rate of short and of long videos, which then have wrong
    times in training.
    """
    return but(inputs, seconds_per_grid=torch.full_like(inputs.seconds_per_grid, 2 / 4))


@fault(NAME, "duration", "parity", link="https://github.com/QwenLM/Qwen3-VL/issues/893")
def requested_frame_rate_of_slow_videos(inputs: Inputs) -> Outputs:
    """Where fewer frames were sampled than asked for, the rate that was asked for still makes the times.

    Effect: long videos seem as short as their number of frames.
    """
    return but(inputs, seconds_per_grid=inputs.seconds_per_grid.clamp(max=1.0))


@fault(NAME, "duration", "parity")
def seconds_cut_to_whole_numbers(inputs: Inputs) -> Outputs:
    """The seconds per grid are cut to an integer before they are multiplied.

    Effect: right at one frame a second; above, all frames fall together.
    """
    return but(inputs, seconds_per_grid=inputs.seconds_per_grid.trunc())


@fault(NAME, "duration", "parity")
def times_rounded_up(inputs: Inputs) -> Outputs:
    """Times are rounded to the nearest id where the family cuts them.

    Effect: half of all frames are one id late against the pretraining.
    """

    def times(given: Inputs, video: int) -> Tensor:
        step = given.seconds_per_grid[video] * given.ids_per_second
        return (torch.arange(int(given.video_grids[video, 0])) * step).round().long()

    return numbered(inputs, times=times)


@fault(NAME, "neighbours", "duration", "order", "parity")
def interval_of_the_first_video(inputs: Inputs) -> Outputs:
    """The first video's seconds per grid serve for all.

    Effect: right for one video a batch; the others run too fast or too slowly.
    """
    return but(inputs, seconds_per_grid=inputs.seconds_per_grid[:1].expand_as(inputs.seconds_per_grid))


@fault(NAME, "blocks", "parity")
def blocks_counted_in_patches(inputs: Inputs) -> Outputs:
    """Rows and columns are counted before patches merge into tokens, so that they go up by two.

    Effect: images look twice as large as in training, and text after them starts too late.
    """

    def spread(times: Tensor, rows: int, columns: int) -> Tensor:
        return cells(times, rows, columns) * torch.tensor([1, inputs.spatial_merge, inputs.spatial_merge])[:, None]

    return numbered(inputs, cells=spread)


@fault(NAME, "blocks", "parity")
def sides_swapped(inputs: Inputs) -> Outputs:
    """The grid is unpacked as (time, width, height).

    Effect: square images are right; all others are cut into rows of the wrong length.
    """
    return numbered(inputs, cells=lambda times, rows, columns: cells(times, columns, rows))


@fault(NAME, "blocks", "parity")
def columns_before_rows(inputs: Inputs) -> Outputs:
    """Tokens are numbered down the columns, though they come along the rows.

    Effect: every image is transposed.
    """
    return numbered(
        inputs, cells=lambda times, rows, columns: cells(times, columns, rows)[[0, 2, 1]]
    )  # fmt: skip


def _as_one(feed: Feed, length: int) -> list[Tensor]:
    blocks, cell = covering(feed, length), torch.arange(length)
    width = int(blocks[0][2].max()) + 1
    return blocks if len(blocks) == 1 else [torch.stack([0 * cell, cell // width, cell % width])]


@fault(NAME, "touching", link="https://github.com/PrimeIntellect-ai/prime-rl/pull/2819")
def adjacent_images_as_one(inputs: Inputs) -> Outputs:
    """Tokens are grouped by kind, so two images with nothing between them are numbered by the first one's width.

    Effect: an error where the sizes do not fit, one tall image in silence where they do.
    """
    return numbered(inputs, take=_as_one)


@fault(NAME, "refuses")
def grids_that_do_not_fit_accepted(inputs: Inputs) -> Outputs:
    """Missing grids are made up, surplus ones ignored, and blocks cut to the tokens that are there.

    Effect: a batch that was put together wrongly trains, with wrong positions from the first misfit on.
    """
    return numbered(inputs, take=forgiving, strict=False)


FAULTS = gathered(vars())
