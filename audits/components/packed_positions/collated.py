"""Between a pack and a collator's batch: features in the way of Hugging Face, and what a model reads in the result.

A batch may say in several ways where samples begin. Each of them is kept under ``told:NAME``; ``segments`` is the one
that a model of transformers goes by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from assay.audits.terms import Outputs
from assay.reference import packed_positions
from assay.reference.mrope_rules import RULES

if TYPE_CHECKING:
    from assay.audits.components.packed_positions.pack import Inputs

CARRIED = ("weights", "token_types", "image_grids", "video_grids", "pixels", "video_pixels")
OF_TOKENS = ("weights", "token_types")
OF_LISTS = ("input_ids", "labels", "weights")
THEIRS = {
    "token_types": "mm_token_type_ids",
    "image_grids": "image_grid_thw",
    "video_grids": "video_grid_thw",
    "seconds": "second_per_grid_ts",
    "pixels": "pixel_values",
    "video_pixels": "pixel_values_videos",
}
"""Our names of fields and Hugging Face's, where they differ."""
AS_TOLD = (
    "cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens", "max_length_q", "max_length_k", "max_seqlen", "seq_idx",
    "attention_mask", "labels", "shift_labels",
)  # fmt: skip
"""What is kept as it came, under ``raw:NAME``, for laws that compare what a batch says twice."""


def called(collator: Callable[[list[dict[str, Any]]], Mapping[str, Any]], inputs: Inputs, *, as_lists: bool) -> Outputs:
    """What is read in the batch that a collator makes. Where it writes into lists, the tensors are written to."""
    given, before = (features(inputs, as_lists=as_lists) for _ in range(2))
    out = read(collator(given), inputs)
    for number, (sample, old) in enumerate(zip(given, before, strict=True) if as_lists else ()):
        for name in OF_LISTS:
            if name in sample and sample[name] != old[name]:
                getattr(inputs, name)[number].add_(1)
    return out


def features(inputs: Inputs, *, as_lists: bool) -> list[dict[str, Any]]:
    """The samples as a collator gets them, with a mask of ones as tokenizers make it.

    Per-token tensors are lists if asked for; grids and pixels are tensors always. Tensors are those of the inputs.
    """
    return [_feature(inputs, number, as_lists=as_lists) for number in range(len(inputs.input_ids))]


def _feature(inputs: Inputs, number: int, *, as_lists: bool) -> dict[str, Any]:
    names = ["input_ids", "weights"]
    names += ["labels"] if inputs.labelled else []
    names += ["token_types"] if inputs.rule != "text" else []
    made: dict[str, Any] = {}
    for name in names:
        own = getattr(inputs, name)[number]
        made[THEIRS.get(name, name)] = own.tolist() if as_lists else own
    mask = torch.ones_like(inputs.input_ids[number])
    made["attention_mask"] = mask.tolist() if as_lists else mask
    rule = RULES.get(inputs.rule)
    for name in ("image_grids", "video_grids", "pixels", "video_pixels", "seconds"):
        own = getattr(inputs, name)[number]
        if len(own) and (name != "seconds" or (rule and rule.video_time == "seconds")):
            made[THEIRS[name]] = own
    return made


def read(batch: Mapping[str, Any], inputs: Inputs) -> Outputs:
    """The operation's outputs, of a batch of one row. What was appended for alignment, and is ignored, is cut off."""
    flat = {name: torch.as_tensor(value) for name, value in batch.items() if _is_numbers(value)}
    ids = _row(flat["input_ids"], "input_ids").long()
    total = len(ids)
    out: dict[str, Tensor] = {"input_ids": ids}
    if "labels" in flat:
        out["labels"] = _row(flat["labels"], "labels")
    elif "shift_labels" in flat:
        moved = _row(flat["shift_labels"], "shift_labels")
        out["labels"] = torch.cat([torch.full_like(moved[:1], inputs.ignore_index), moved[:-1]])
    text, axes = _positions(flat.get("position_ids"), inputs, total)
    told = _told(flat, text, total)
    out["segments"] = _gone_by(told, total)
    counted = _counted(out["segments"])
    out["text_positions"] = counted if text is None and axes is not None else _or_counted(text, total)
    out["positions"] = out["text_positions"].expand(_axes(inputs), -1) if axes is None else axes
    out["cu_seqlens"] = flat.get("cu_seq_lens_q", flat.get("cu_seqlens", _cumulative(out["segments"])))
    longest = flat.get("max_length_q", flat.get("max_seqlen"))
    out["max_length"] = out["cu_seqlens"].diff().max().long() if longest is None else longest.long().reshape(())
    out |= {f"told:{name}": value for name, value in told.items()}
    raw = {f"raw:{name}": flat[name] for name in AS_TOLD if name in flat}
    return _trimmed(out | _carried(flat), inputs) | raw


def numbered(cu_seqlens: Tensor, total: int) -> Tensor:
    """Segment numbers [total] by cumulative lengths; whatever they do not cover belongs to the last sample."""
    starts = torch.zeros(total, dtype=torch.int64)
    inner = [place for place in cu_seqlens.long().tolist() if 0 <= place < total]
    return starts.index_fill(0, torch.tensor(sorted({0, *inner})), 1).cumsum(0) if total else starts


def _is_numbers(value: Any) -> bool:
    return isinstance(value, (Tensor, int)) or (isinstance(value, (list, tuple)) and all(map(_is_numbers, value)))


def _row(x: Tensor, name: str) -> Tensor:
    """[T] of [T] or [1, T]."""
    if x.ndim == 2 and len(x) == 1:
        x = x[0]
    if x.ndim != 1:
        message = f"{name}: expected one row, [1, T] or [T], got the shape {list(x.shape)}"
        raise ValueError(message)
    return x


def _axes(inputs: Inputs) -> int:
    return 1 if inputs.rule == "text" else RULES[inputs.rule].axes


def _positions(ids: Tensor | None, inputs: Inputs, total: int) -> tuple[Tensor | None, Tensor | None]:
    """The text's row [T] and the axes [A, T], as far as the batch has them."""
    if ids is None:
        return None, None
    axes = _axes(inputs)
    ids = ids[:, 0] if ids.ndim == 3 and ids.shape[1] == 1 else ids
    ids = ids if ids.is_floating_point() else ids.long()
    if ids.ndim == 1 or (ids.ndim == 2 and len(ids) == 1):
        return _row(ids, "position_ids"), None
    if axes > 1 and ids.shape == (axes, total):
        return None, ids
    if axes > 1 and ids.shape == (axes + 1, total):
        return ids[0].long(), ids[1:]
    message = f"position_ids: expected [1, T], or {axes} or {axes + 1} rows of {total}, got {list(ids.shape)}"
    raise ValueError(message)


def _or_counted(text: Tensor | None, total: int) -> Tensor:
    """What a model takes that is given no positions."""
    return torch.arange(total) if text is None else text


def _told(flat: Mapping[str, Tensor], text: Tensor | None, total: int) -> dict[str, Tensor]:
    """Segment numbers by everything in the batch that says where samples begin."""
    told = {}
    for name in ("cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens"):
        if name in flat:
            told[name] = numbered(flat[name], total)
    for name in ("seq_idx", "attention_mask"):
        if name in flat:
            told[name] = _by_mask(flat[name]) if flat[name].ndim == 4 else _by_number(_row(flat[name], name).long())
    if text is not None:
        told["position_ids"] = packed_positions.segments_of_positions(text[None].long())[0]
    return told


def _by_number(x: Tensor) -> Tensor:
    """Segment numbers of equal neighbours."""
    return torch.cat([x.new_ones(1), (x[1:] != x[:-1]).long()]).cumsum(0) if len(x) else x


def _by_mask(mask: Tensor) -> Tensor:
    """Segment numbers by a 4-D mask: a sample begins where a token does not see the one before it."""
    seen = mask[0, 0] if mask.dtype == torch.bool or not mask.is_floating_point() else mask[0, 0] == 0
    return torch.cat([torch.zeros(1), (~seen.bool()).diagonal(-1)]).long().cumsum(0) + 1


def _gone_by(told: Mapping[str, Tensor], total: int) -> Tensor:
    """What a model of transformers goes by: a mask before everything else, then lengths, then where ids restart."""
    for name in ("attention_mask", "cu_seq_lens_q", "cu_seqlens", "seq_idx", "position_ids"):
        if name in told:
            return told[name]
    return torch.ones(total, dtype=torch.int64)


def _counted(segments: Tensor) -> Tensor:
    lengths = _cumulative(segments).diff().tolist()
    return torch.cat([torch.arange(n) for n in lengths]) if lengths else segments


def _cumulative(segments: Tensor) -> Tensor:
    return packed_positions.cumulative_lengths(segments[None])[0]


def _trimmed(out: dict[str, Tensor], inputs: Inputs) -> dict[str, Tensor]:
    """Without a tail that is beyond the samples and not trained on."""
    total, long = sum(inputs.lengths), len(out["input_ids"])
    if long <= total or "labels" not in out or bool((out["labels"][total:] != inputs.ignore_index).any()):
        return out
    kept = {name: x[..., :total] if not _beside(name) and x.shape[-1:] == (long,) else x for name, x in out.items()}
    ends = kept["cu_seqlens"]
    kept["cu_seqlens"] = ends[ends <= total]
    kept["max_length"] = kept["cu_seqlens"].diff().max().long()
    return kept


def _beside(name: str) -> bool:
    """Whether an output has entries that are no tokens: boundaries may be as many by chance."""
    return name == "cu_seqlens" or (name.startswith("carried:") and name.removeprefix("carried:") not in OF_TOKENS)


def _carried(flat: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What else the batch has of the samples, under our names; per-token tensors as one row."""
    found = {}
    for name in CARRIED:
        theirs = THEIRS.get(name, name)
        if theirs in flat:
            value = flat[theirs]
            found[f"carried:{name}"] = value.reshape(-1) if name in OF_TOKENS else value
    return found
