"""Position ids of a batch of text, images, videos and audio, by the rule of a model family.

Letters: A axes, B samples, S tokens of a row (padding included), N images, M videos, K audio clips. A grid is
(frames, rows, columns) of patches before merging. `reference/mrope_rules.py` holds the rules.

The invariant of every `blocks` rule: the first id after a visual block is 1 + the maximum, over all axes, of every id
before it. transformers 5.3 to 5.23 restarts after a video at `start + max(rows, columns) / merge` and so gives later
text the ids of the video's own frames; that is a defect of theirs, and this file does not follow it.
"""

from collections import deque
from collections.abc import Sequence

import torch

from assay.reference.mrope_blocks import Block, audio_blocks, image_blocks, video_blocks
from assay.reference.mrope_rows import AUDIO, IMAGE, MODALITIES, TEXT, VIDEO, row_ids
from assay.reference.mrope_rules import RULES, PositionRule

__all__ = ["AUDIO", "IMAGE", "RULES", "TEXT", "VIDEO", "PositionRule", "cached_positions", "positions", "token_types"]


def token_types(
    input_ids: torch.Tensor,
    *,
    image_id: int | None = None,
    video_id: int | None = None,
    audio_id: int | None = None,
    video_start_id: int | None = None,
    video_end_id: int | None = None,
) -> torch.Tensor:
    """The modality of each token, int64 [B, S]: 0 text, 1 image, 2 video, 3 audio, from the placeholder ids.

    Args:
        input_ids: [B, S] integers.
        image_id, video_id, audio_id: the placeholder tokens; None where the model has none. They differ.
        video_start_id, video_end_id: for the GLM families, whose video frames use the image placeholder: image tokens
            after the former and before the latter are video. Given together.
    """
    _integers("input_ids", input_ids)
    ids = {IMAGE: image_id, VIDEO: video_id, AUDIO: audio_id}
    given = [token for token in ids.values() if token is not None]
    if len(set(given)) != len(given):
        raise ValueError(f"image_id, video_id, audio_id: expected different ids, got {given}")
    if (video_start_id is None) != (video_end_id is None):
        raise ValueError("video_start_id, video_end_id: expected both or neither")
    types = torch.zeros_like(input_ids, dtype=torch.int64)
    for kind, token in ids.items():
        if token is not None:
            types[input_ids == token] = kind
    if video_start_id is not None and video_end_id is not None:
        opened, closed = torch.eq(input_ids, video_start_id), torch.eq(input_ids, video_end_id)
        depth = opened.long().cumsum(-1) - closed.long().cumsum(-1)
        if not bool(((depth == 0) | (depth == 1)).all()):
            raise ValueError("input_ids: expected video_start_id and video_end_id to alternate in each row")
        types[(types == IMAGE) & (depth == 1)] = VIDEO
    return types


def positions(
    rule: PositionRule,
    token_types: torch.Tensor,
    *,
    attention_mask: torch.Tensor | None = None,
    image_grids: torch.Tensor | None = None,
    video_grids: torch.Tensor | None = None,
    seconds_per_grid: torch.Tensor | Sequence[float] | None = None,
    audio_lengths: torch.Tensor | Sequence[int] | None = None,
    audio_in_video: bool = False,
    padding_value: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Position ids of every token, and what cached decoding adds to a sample's length.

    Grids, durations and audio lengths are listed in the order in which their tokens occur, row after row. Each run of
    visual tokens is covered exactly: a run may hold several adjacent images, and takes grids until it is full.

    Args:
        rule: `RULES[model_type]`, or one made with `dataclasses.replace`.
        token_types: [B, S] integers, 0 text, 1 image, 2 video, 3 audio; see the function of the same name.
        attention_mask: [B, S] of 0 and 1 (bool or integer), 0 at padding, on either side; None: no padding. Numbers of
            packed segments are refused: give each sample a row of its own.
        image_grids, video_grids: [N, 3] and [M, 3] integers; rows and columns are multiples of `rule.spatial_merge`.
        seconds_per_grid: [M] seconds between frames of the grid, for `seconds` rules, no others. A float32 or float64
            tensor is computed with in its own dtype, a list in float64.
        audio_lengths: [K] tokens of each clip (not of the spectrogram).
        audio_in_video: a video's tokens and those of its clip stand mixed, between two markers on each side.
        padding_value: the id at padding, on all axes.

    Returns:
        `ids` [A, B, S] int64, float64 if the rule is `fractional`; and `deltas` [B, 1] of the same dtype: 1 + the
        largest id of the row minus its tokens without padding, so that token number `n` of a continued row has the id
        `n + delta`. It is 0 for `sequence` and `plain` rules, and for a row of nothing but padding.

    Raises:
        TypeError, ValueError: by the name of the argument; a run and its grids that do not match name the sample.
    """
    mask = _checked(rule, token_types, attention_mask)
    feeds = {
        IMAGE: image_blocks(rule, image_grids),
        VIDEO: video_blocks(rule, video_grids, seconds_per_grid),
        AUDIO: audio_blocks(rule, audio_lengths),
    }
    dtype = torch.float64 if rule.fractional else torch.int64
    ids = torch.full((rule.axes, *token_types.shape), padding_value, dtype=dtype)
    deltas = torch.zeros(len(token_types), 1, dtype=dtype)
    for sample, (types, real) in enumerate(zip(token_types.cpu(), mask, strict=True)):
        row = row_ids(rule, types[real].tolist(), feeds, sample, audio_in_video=audio_in_video)
        ids[:, sample, real] = row
        if row.shape[1] and rule.kind == "blocks":
            deltas[sample] = row.max() + 1 - row.shape[1]
    _all_used(feeds)
    return ids.to(token_types.device), deltas.to(token_types.device)


def cached_positions(
    deltas: torch.Tensor, past_length: int | torch.Tensor, new_length: int, *, axes: int = 3
) -> torch.Tensor:
    """Ids [A, B, new_length] of text tokens that continue rows whose earlier tokens are in a cache.

    Args:
        deltas: [B, 1] as `positions` returned them.
        past_length: tokens in the cache without padding: one number, or an integer tensor [B].
        new_length: how many tokens come now, all of them text.
        axes: rows of the result.
    """
    if deltas.ndim != 2 or deltas.shape[1] != 1:
        raise ValueError(f"deltas: expected the shape [batch, 1], got {tuple(deltas.shape)}")
    past = torch.as_tensor(past_length, device=deltas.device)
    _integers("past_length", past)
    if past.shape not in ((), deltas.shape[:1]) or (past.numel() and int(past.min()) < 0) or new_length < 0:
        raise ValueError(f"past_length, new_length: expected lengths for {len(deltas)} rows, got {past}, {new_length}")
    steps = torch.arange(new_length, device=deltas.device)
    return (deltas + past.reshape(-1, 1) + steps).expand(axes, len(deltas), new_length).clone()


def _all_used(feeds: dict[int, deque[Block]]) -> None:
    for kind, feed in feeds.items():
        if feed:
            raise ValueError(f"{feed[0].name}: no {MODALITIES[kind]} tokens are left for it in the batch")


def _checked(rule: PositionRule, types: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The mask as bool [B, S] on the CPU, after everything about both arguments was checked."""
    if not isinstance(rule, PositionRule):
        raise TypeError(f"rule: expected a PositionRule, got {type(rule).__name__}")
    if rule.kind == "canvas":
        raise ValueError("rule: a canvas rule needs the markers of its crops, not token types alone")
    _integers("token_types", types)
    if types.ndim != 2:
        raise ValueError(f"token_types: expected the shape [batch, tokens], got {tuple(types.shape)}")
    allowed = _allowed(rule)
    strange = set(types.flatten().tolist()) - allowed
    if strange:
        raise ValueError(f"token_types: this rule knows {sorted(allowed)}, got {sorted(strange)}")
    if mask is None:
        return torch.ones(types.shape, dtype=torch.bool)
    if mask.is_floating_point():
        raise TypeError(f"attention_mask: expected a bool or integer dtype, got {mask.dtype}")
    if mask.shape != types.shape:
        raise ValueError(f"attention_mask: expected the shape {tuple(types.shape)}, got {tuple(mask.shape)}")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(f"attention_mask: expected 0 and 1 only, got {sorted(set(mask.flatten().tolist()))}")
    return mask.bool().cpu()


def _allowed(rule: PositionRule) -> set[int]:
    if rule.kind == "sequence":
        return {TEXT, IMAGE}
    return {TEXT, IMAGE, VIDEO, AUDIO} if rule.audio or rule.kind == "plain" else {TEXT, IMAGE, VIDEO}


def _integers(name: str, tensor: torch.Tensor) -> None:
    if not isinstance(tensor, torch.Tensor) or tensor.is_floating_point() or tensor.dtype == torch.bool:
        got = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise TypeError(f"{name}: expected a tensor of an integer dtype, got {got}")
