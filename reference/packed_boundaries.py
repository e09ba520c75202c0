"""Where the samples of a pack begin and end, in each of the ways in which models are told.

Segment numbers are int64 [B, T]: 1, 2, 3, ... for the samples of each row, 0 where nothing stands (padding). From
them follow the cumulative lengths that variable-length attention takes, and the masks that all other attentions take.
"""

import torch
from torch import Tensor

from assay.reference.arguments import of_dtype

__all__ = ["attention_boundaries", "cumulative_lengths", "segments_of_lengths", "segments_of_positions"]


def segments_of_positions(position_ids: Tensor) -> Tensor:
    """Segment numbers [B, T] of rows whose position ids begin anew with each sample.

    A sample begins where an id is not one more than the id before it.

    Args:
        position_ids: int64 [B, T], or [1 + A, B, T] whose first row is the text's (4 rows for models with time, height
            and width). Three rows are refused: within an image the time stands still and columns start again with every
            row, so that the axes do not tell where a sample begins.
    """
    of_dtype("position_ids", position_ids, torch.int64)
    if position_ids.ndim == 3 and len(position_ids) > 3:
        position_ids = position_ids[0]
    if position_ids.ndim != 2:
        shape = list(position_ids.shape)
        raise ValueError(f"position_ids: expected the shape [B, T], or [4, B, T] with a row of text, got {shape}")
    starts = position_ids[:, 1:] != position_ids[:, :-1] + 1
    first = torch.ones_like(position_ids[:, :1])
    return torch.cat([first, starts.long()], dim=1).cumsum(1)


def segments_of_lengths(lengths: Tensor, total: int | None = None) -> Tensor:
    """Segment numbers [total] of samples with these lengths, one after the other, and 0 for what follows them."""
    of_dtype("lengths", lengths, torch.int64)
    if lengths.ndim != 1 or bool((lengths < 1).any()):
        raise ValueError(f"lengths: expected the shape [N] of numbers above 0, got {lengths.tolist()}")
    numbers = torch.arange(1, len(lengths) + 1, device=lengths.device).repeat_interleave(lengths)
    rest = (len(numbers) if total is None else total) - len(numbers)
    if rest < 0:
        raise ValueError(f"total: expected at least the {len(numbers)} tokens of the samples, got {total}")
    return torch.cat([numbers, numbers.new_zeros(rest)])


def cumulative_lengths(segments: Tensor) -> tuple[Tensor, int]:
    """What variable-length attention takes: int32 [N + 1] from 0 to B * T, and the longest length.

    Rows follow one another, and none shares a sample with the next. Padding counts as a sample of its own, since its
    tokens stand among the others.

    Args:
        segments: int64 [B, T].
    """
    _segments(segments)
    flat = (
        (segments + torch.arange(len(segments), device=segments.device)[:, None] * (segments.max() + 1)).flatten()
        if segments.numel()
        else segments.flatten()
    )
    starts = torch.cat([flat.new_ones(min(1, len(flat))), (flat[1:] != flat[:-1]).long()]).nonzero().flatten()
    ends = torch.cat([starts, starts.new_tensor([len(flat)])]) if len(flat) else flat.new_zeros(1)
    return ends.int(), int(ends.diff().max()) if len(flat) else 0


def attention_boundaries(segments: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The causal mask [B, 1, T, T] of packed rows: a token sees its own sample up to itself, and nothing else.

    Padding sees itself alone, so that no row of attention weights is empty; nothing else sees it.

    Args:
        segments: int64 [B, T].
        dtype: None for bool, True where a query (second to last) sees a key (last). A floating dtype for what is
            added to the scores: 0 where it sees, the dtype's lowest number where not.
    """
    _segments(segments)
    place = torch.arange(segments.shape[1], device=segments.device)
    same = (segments[:, :, None] == segments[:, None, :]) & (segments != 0)[:, :, None]
    seen = (same & (place[:, None] >= place)) | (place[:, None] == place)
    if dtype is None:
        return seen[:, None]
    if not dtype.is_floating_point:
        raise TypeError(f"dtype: expected None or a floating dtype, got {dtype}")
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)[:, None]


def _segments(segments: Tensor) -> None:
    of_dtype("segments", segments, torch.int64)
    if segments.ndim != 2 or bool((segments < 0).any()):
        raise ValueError(f"segments: expected the shape [B, T] of numbers from 0, got {list(segments.shape)}")
