"""Blocks of consecutive tokens that share one start: an image, a video or one of its frames, an audio clip.

A block knows the offsets of its tokens from that start, on the axes (time, row, column).
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from assay.reference.mrope_rules import PositionRule

__all__ = ["Block", "audio_blocks", "image_blocks", "video_blocks"]


@dataclass(frozen=True)
class Block:
    """What one grid or clip puts into the sequence.

    Attributes:
        name: which argument it comes from, for messages: `video_grids[1] frame 2`.
        offsets: [3, n] int64 or float64, (time, row, column) of each token, rows before columns.
        first: it opens its image, video or clip (all but the later frames of a video do).
    """

    name: str
    offsets: torch.Tensor
    first: bool = True

    @property
    def tokens(self) -> int:
        """How many tokens the block has."""
        return self.offsets.shape[1]


def image_blocks(rule: PositionRule, grids: torch.Tensor | None) -> deque[Block]:
    """One block for each row of `image_grids`; an image with several frames counts them 0, 1, 2, ..."""
    shapes = _merged(rule, "image_grids", grids)
    if rule.kind == "sequence" and any(t != 1 for t, _, _ in shapes):
        raise ValueError(f"image_grids: expected one frame each under this rule, got {[t for t, _, _ in shapes]}")
    return deque(
        Block(f"image_grids[{i}]", _offsets(torch.arange(t), h, w + rule.row_end)) for i, (t, h, w) in enumerate(shapes)
    )


def video_blocks(
    rule: PositionRule, grids: torch.Tensor | None, seconds: torch.Tensor | Sequence[float] | None
) -> deque[Block]:
    """One block for each row of `video_grids`, or one for each frame under a `frames` rule."""
    shapes = _merged(rule, "video_grids", grids)
    durations = _durations(rule, len(shapes), seconds)
    blocks: deque[Block] = deque()
    for i, (t, h, w) in enumerate(shapes):
        name = f"video_grids[{i}]"
        if rule.video_time == "frames":
            still = _offsets(torch.arange(1), h, w)
            blocks.extend(Block(f"{name} frame {frame}", still, first=frame == 0) for frame in range(t))
        else:
            blocks.append(Block(name, _offsets(_times(rule, name, t, durations, i), h, w)))
    return blocks


def audio_blocks(rule: PositionRule, lengths: torch.Tensor | Sequence[int] | None) -> deque[Block]:
    """One block for each clip; its tokens count 0, 1, 2, ... on all axes, like text."""
    if lengths is None:
        return deque()
    if not rule.audio:
        raise ValueError("audio_lengths: this rule has no audio")
    counts = torch.as_tensor(lengths)
    if counts.is_floating_point() or counts.ndim != 1 or (counts.numel() and int(counts.min()) < 1):
        raise ValueError(f"audio_lengths: expected the shape [clips] of positive integers, got {lengths}")
    return deque(Block(f"audio_lengths[{i}]", torch.arange(n).expand(3, -1)) for i, n in enumerate(counts.tolist()))


def _offsets(times: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    cell = torch.arange(len(times) * rows * columns)
    row, column = cell // columns % rows, cell % columns
    return torch.stack([times[cell // (rows * columns)], row.to(times.dtype), column.to(times.dtype)])


def _times(rule: PositionRule, name: str, frames: int, durations: torch.Tensor | None, video: int) -> torch.Tensor:
    """Time offset of each frame: int64, or float64 under a `fractional` rule."""
    if rule.video_time == "pooled":
        if frames > 1 and frames % rule.temporal_merge:
            raise ValueError(f"{name}: expected 1 frame or a multiple of {rule.temporal_merge}, got {frames}")
        return torch.arange(max(frames // rule.temporal_merge, 1))
    if durations is None:
        return torch.arange(frames)
    index, seconds = torch.arange(frames).to(durations.dtype), durations[video]
    times = index * (seconds * rule.ids_per_second) if rule.step_first else index * seconds * rule.ids_per_second
    return times.double() if rule.fractional else times.trunc().long()


def _durations(rule: PositionRule, videos: int, seconds: torch.Tensor | Sequence[float] | None) -> torch.Tensor | None:
    if rule.video_time != "seconds":
        if seconds is not None:
            raise ValueError(f"seconds_per_grid: a rule with {rule.video_time} times does not use it, got {seconds}")
        return None
    if seconds is None:
        if videos:
            raise ValueError(f"seconds_per_grid: expected {videos} durations, one for each video, got None")
        return None
    if not isinstance(seconds, torch.Tensor):
        seconds = torch.tensor(list(seconds), dtype=torch.float64)
    if seconds.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"seconds_per_grid: expected float32 or float64, got {seconds.dtype}")
    good = bool((seconds.isfinite() & (seconds > 0)).all())
    if seconds.shape != (videos,) or not good:
        raise ValueError(f"seconds_per_grid: expected {videos} finite numbers above 0, got {seconds.tolist()}")
    return seconds.cpu()


def _merged(rule: PositionRule, name: str, grids: torch.Tensor | None) -> list[tuple[int, int, int]]:
    """Frames, and rows and columns of tokens, of each grid."""
    if grids is None:
        return []
    if not isinstance(grids, torch.Tensor) or grids.is_floating_point() or grids.dtype == torch.bool:
        got = grids.dtype if isinstance(grids, torch.Tensor) else type(grids).__name__
        raise TypeError(f"{name}: expected a tensor of an integer dtype, got {got}")
    if rule.kind == "plain":
        return []
    if grids.ndim != 2 or grids.shape[1] != 3:
        raise ValueError(f"{name}: expected the shape [grids, 3], got {tuple(grids.shape)}")
    side = rule.spatial_merge
    for i, (t, h, w) in enumerate(grids.tolist()):
        if min(t, h, w) < 1 or h % side or w % side:
            expected = f"positive sizes, rows and columns multiples of {side}"
            raise ValueError(f"{name}[{i}]: expected {expected}, got {(t, h, w)}")
    return [(t, h // side, w // side) for t, h, w in grids.tolist()]
