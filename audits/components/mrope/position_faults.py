"""Wrong position ids: where a block starts, and how its tokens are numbered."""

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


@fault(
    NAME, "resumes", "continues", "parity", link="https://github.com/huggingface/transformers/issues/45381",
    also=("https://github.com/vllm-project/vllm",),  # its ERNIE 4.5 VL is the right one of two
)  # fmt: skip
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
    return numbered(inputs, cells=lambda times, rows, columns: cells(times, columns, rows)[[0, 2, 1]])


@fault(NAME, "blocks", "parity")
def rows_turned_after_the_first_frame(inputs: Inputs) -> Outputs:
    """The rows of all frames of a video but the first are numbered from below.

    Effect: a picture that stands still is seen to turn over after its first frame; images are right.
    """

    def turned(times: Tensor, rows: int, columns: int) -> Tensor:
        offsets = cells(times, rows, columns)
        later = torch.arange(offsets.shape[1]) >= rows * columns
        return torch.stack([offsets[0], torch.where(later, rows - 1 - offsets[1], offsets[1]), offsets[2]])

    return numbered(inputs, cells=turned)


@fault(NAME, "blocks", "parity")
def rows_run_on_through_frames(inputs: Inputs) -> Outputs:
    """The rows of a frame are counted on from those of the frame before it, as if a video were one tall image.

    Effect: a still camera seems to sink; each frame by itself has the right shape.
    """

    def sinking(times: Tensor, rows: int, columns: int) -> Tensor:
        offsets = cells(times, rows, columns)
        frame = torch.arange(offsets.shape[1]) // (rows * columns)
        return torch.stack([offsets[0], offsets[1] + frame * rows, offsets[2]])

    return numbered(inputs, cells=sinking)


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
