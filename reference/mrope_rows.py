"""Position ids of one sample: its runs of text and of visual and audio tokens, one after another.

`reference/mrope_positions.py` is the way in; it checks the arguments and puts the rows of a batch together.
"""

import itertools
from collections import deque

import torch

from assay.reference.mrope_blocks import Block
from assay.reference.mrope_rules import PositionRule

__all__ = ["AUDIO", "IMAGE", "MODALITIES", "TEXT", "VIDEO", "row_ids"]

MODALITIES = ("text", "image", "video", "audio")
"""Names of the token types 0 to 3."""
TEXT, IMAGE, VIDEO, AUDIO = range(len(MODALITIES))


def row_ids(
    rule: PositionRule, types: list[int], feeds: dict[int, deque[Block]], sample: int, *, audio_in_video: bool
) -> torch.Tensor:
    """Ids [A, n] of one sample without its padding."""
    if rule.kind == "plain":
        return torch.arange(len(types)).expand(rule.axes, -1)
    runs = _runs(types, audio_in_video=audio_in_video)
    if rule.kind == "sequence":
        return _sequence_row(rule, len(types), runs, feeds, sample)
    advance = _advances(rule, types, runs, sample)
    ids = torch.zeros(rule.axes, len(types), dtype=torch.float64 if rule.fractional else torch.int64)
    top = ids.new_tensor(-1)
    for kinds, start, stop in runs:
        if kinds == {TEXT}:
            ids[:, start:stop] = top + advance[start:stop].cumsum(0)
        elif kinds == {VIDEO, AUDIO}:
            _fill_mixed(ids[:, start:stop], types[start:stop], top + 1, feeds, f"sample {sample}")
        else:
            _fill(ids, start, _take(feeds, min(kinds), start, stop, sample))
        top = torch.maximum(top, ids[:, start:stop].max())
    _whole_videos(feeds[VIDEO], sample)
    return ids


def _runs(types: list[int], *, audio_in_video: bool) -> list[tuple[set[int], int, int]]:
    """Maximal runs of one modality, or of video and audio mixed, as (modalities, start, stop)."""

    def key(item: tuple[int, int]) -> int:
        return VIDEO if audio_in_video and item[1] == AUDIO else item[1]

    groups = [list(group) for _, group in itertools.groupby(enumerate(types), key)]
    return [({kind for _, kind in group}, group[0][0], group[-1][0] + 1) for group in groups]


def _take(feeds: dict[int, deque[Block]], kind: int, start: int, stop: int, sample: int) -> list[Block]:
    """The blocks that cover one run exactly, taken off their feed."""
    taken: list[Block] = []
    missing = stop - start
    while missing > 0:
        if not feeds[kind] or feeds[kind][0].tokens > missing:
            offer = f"{feeds[kind][0].name} has {feeds[kind][0].tokens}" if feeds[kind] else "nothing is left"
            raise ValueError(
                f"sample {sample}: {MODALITIES[kind]} tokens {start} to {stop - 1}: expected grids for {stop - start}"
                f" tokens, got {stop - start - missing} from {[block.name for block in taken]}, and {offer}"
            )
        taken.append(feeds[kind].popleft())
        missing -= taken[-1].tokens
    return taken


def _fill(ids: torch.Tensor, start: int, blocks: list[Block]) -> None:
    """Each block starts after everything before it, also when blocks touch."""
    for block in blocks:
        top = ids[:, :start].max() if start else ids.new_tensor(-1)
        ids[:, start : start + block.tokens] = top + 1 + block.offsets
        start += block.tokens


def _fill_mixed(
    ids: torch.Tensor, types: list[int], first: torch.Tensor, feeds: dict[int, deque[Block]], where: str
) -> None:
    """A video and its audio start at the same id; which token stands where is the processor's choice."""
    order = torch.tensor(types)
    for kind in (VIDEO, AUDIO):
        mine = order == kind
        block = feeds[kind].popleft() if feeds[kind] else None
        if block is None or block.tokens != int(mine.sum()):
            offer = "nothing is left" if block is None else f"{block.name} has {block.tokens}"
            expected = f"{int(mine.sum())} {MODALITIES[kind]} tokens"
            raise ValueError(f"{where}: expected {expected} of a video with its audio, but {offer}")
        ids[:, mine] = first + block.offsets


def _advances(rule: PositionRule, types: list[int], runs: list[tuple[set[int], int, int]], sample: int) -> torch.Tensor:
    """By how much each text token goes beyond the one before it: 1, or 0 for the second of two shared markers."""
    steps = torch.ones(len(types), dtype=torch.int64)
    for kinds, start, stop in runs:
        if kinds != {VIDEO, AUDIO}:
            continue
        markers = [*range(start - 2, start), stop, stop + 1]
        if start < 2 or stop + 1 >= len(types) or any(types[at] != TEXT for at in markers):
            place = f"video tokens {start} to {stop - 1}"
            raise ValueError(f"sample {sample}: expected two text markers on each side of {place}")
        if rule.shared_markers:
            steps[start - 1] = steps[stop + 1] = 0
    return steps


def _sequence_row(
    rule: PositionRule, length: int, runs: list[tuple[set[int], int, int]], feeds: dict[int, deque[Block]], sample: int
) -> torch.Tensor:
    ids = torch.arange(length).repeat(rule.axes, 1)
    image = 0
    for kinds, start, stop in runs:
        if kinds == {TEXT}:
            continue
        margin = _margin(feeds[IMAGE], stop - start) if rule.boundary else 0
        at = start
        while at < stop:
            block = _take(feeds, IMAGE, at + margin, at + margin + _next_tokens(feeds, stop - at), sample)[0]
            place = slice(at + margin, at + margin + block.tokens)
            ids[rule.axes - 3 : rule.axes - 1, place] = block.offsets[[2, 1]]
            ids[rule.axes - 1, place] = image
            image += 1
            at = place.stop + margin
        if at != stop:
            raise ValueError(f"sample {sample}: image tokens {start} to {stop - 1}: got grids for {at - start} tokens")
    return ids


def _next_tokens(feeds: dict[int, deque[Block]], missing: int) -> int:
    return feeds[IMAGE][0].tokens if feeds[IMAGE] else missing


def _margin(feed: deque[Block], length: int) -> int:
    """1 if each image of a run has an opening and a closing token, 0 if none has; an error if both would fit."""
    fits = [margin for margin in (0, 1) if length in itertools.accumulate(block.tokens + 2 * margin for block in feed)]
    if len(fits) > 1:
        raise ValueError(f"image_grids: a run of {length} tokens fits with and without boundary tokens")
    return fits[0] if fits else 0


def _whole_videos(feed: deque[Block], sample: int) -> None:
    if feed and not feed[0].first:
        raise ValueError(f"sample {sample}: expected tokens for all frames of a video, but {feed[0].name} has none")
