"""Token streams for position rules: what a processor of each family would write for text, images, videos and audio.

The ids of text, images and videos are those of Qwen's vocabulary, whatever the family; an adapter translates them to
those of a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from assay.audits.families.samples import Audio, Image, Sample, Text, Video
from assay.reference.mrope_rules import RULES, PositionRule

PAD, START, END, IMAGE, VIDEO = 151_643, 151_652, 151_653, 151_655, 151_656
AUDIO, AUDIO_START, AUDIO_END, VIDEO_START, VIDEO_END = range(151_700, 151_705)
FIRST_TEXT, LAST_TEXT = 20, 799
PATCHES_PER_STEP = 2
"""Frames that become one temporal step of the grid (temporal patch size)."""
TOKENS_PER_SECOND_OF_AUDIO = 25

MARKED_VIDEOS = frozenset({"glm4v", "glm4v_moe", "glm46v", "glm_ocr"})
"""Rules whose videos stand between two markers of their own, their frames written with the image placeholder."""

TYPES = {IMAGE: 1, VIDEO: 2, AUDIO: 3}


@dataclass
class Row:
    """One sample being written: its tokens, and the grids they stand for."""

    rule: PositionRule
    wrap: bool
    seed: int
    marked: bool = False
    tokens: list[int] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    image_grids: list[tuple[int, int, int]] = field(default_factory=list)
    video_grids: list[tuple[int, int, int]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    audio_lengths: list[int] = field(default_factory=list)

    def put(self, token: int, count: int = 1, kind: int | None = None) -> None:
        """Append ``count`` times one token."""
        self.tokens += [token] * count
        self.types += [TYPES.get(token, 0) if kind is None else kind] * count

    def text(self, count: int) -> None:
        """Append ordinary text; ids vary so that nothing can be recognised by them."""
        for _ in range(count):
            span = LAST_TEXT - FIRST_TEXT
            self.put(FIRST_TEXT + (self.seed * 131 + len(self.tokens) * 37) % span)


def write(sample: Sample, family: str, *, wrap: bool, seed: int) -> Row:
    """The tokens of one sample under a family's rule. ``wrap=False`` leaves out the markers around visual blocks."""
    row = Row(RULES[family], wrap, seed, marked=family in MARKED_VIDEOS)
    for segment in sample.segments:
        match segment:
            case Text(tokens):
                row.text(tokens)
            case Image(height, width):
                _image(row, height, width)
            case Video():
                _video(row, segment)
            case Audio(seconds):
                _audio(row, seconds)
    return row


def _image(row: Row, height: int, width: int) -> None:
    rows, columns = _merged(row.rule, height, width)
    row.image_grids.append((1, height, width))
    if row.rule.kind == "sequence":
        extra = 1 if row.rule.row_end else 0
        _wrapped(row, IMAGE, rows * (columns + extra) + (2 if row.rule.boundary else 0), START, END)
        return
    _wrapped(row, IMAGE, rows * columns, START, END)


def _wrapped(row: Row, token: int, count: int, start: int, end: int, kind: int | None = None) -> None:
    if row.wrap:
        row.put(start)
    row.put(token, count, kind)
    if row.wrap:
        row.put(end)


def _video(row: Row, video: Video) -> None:
    steps = _pooled(row.rule, video.steps)
    row.video_grids.append((video.steps, video.height, video.width))
    row.seconds.append(PATCHES_PER_STEP / video.frames_per_second)
    rows, columns = _merged(row.rule, video.height, video.width)
    per_frame = rows * columns
    if row.rule.video_time != "frames":
        _wrapped(row, VIDEO, steps * per_frame, START, END)
        return
    if row.marked:
        row.put(VIDEO_START)
    for _ in range(steps):
        row.text(2)
        row.put(START)
        row.put(VIDEO, per_frame)
        row.put(END)
    if row.marked:
        row.put(VIDEO_END)


def _merged(rule: PositionRule, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of tokens. ValueError where patches are left over."""
    merge = rule.spatial_merge
    if height % merge or width % merge:
        message = f"samples: expected heights and widths that are multiples of {merge}, got {height}x{width}"
        raise ValueError(message)
    return height // merge, width // merge


def _pooled(rule: PositionRule, steps: int) -> int:
    """Steps that have tokens. ValueError where some are left over."""
    if rule.video_time != "pooled" or steps == 1:
        return steps
    if steps % rule.temporal_merge:
        message = f"samples: expected one step or a multiple of {rule.temporal_merge}, got a video of {steps}"
        raise ValueError(message)
    return steps // rule.temporal_merge


def _audio(row: Row, seconds: float) -> None:
    count = max(1, int(seconds * TOKENS_PER_SECOND_OF_AUDIO))
    row.audio_lengths.append(count)
    _wrapped(row, AUDIO, count, AUDIO_START, AUDIO_END)


def padded(rows: Sequence[Sequence[int]], side: str, value: int) -> tuple[list[list[int]], list[list[int]]]:
    """Rows of equal length, and their mask. ``side`` is right, left or none (rows must then be equally long)."""
    longest = max((len(row) for row in rows), default=0)
    filled, mask = [], []
    for row in rows:
        missing = longest - len(row)
        if side == "none" and missing:
            message = f"padding: none needs rows of equal length, got {sorted({len(row) for row in rows})}"
            raise ValueError(message)
        fill, gap = [value] * missing, [0] * missing
        here = [1] * len(row)
        filled.append(fill + list(row) if side == "left" else list(row) + fill)
        mask.append(gap + here if side == "left" else here + gap)
    return filled, mask
