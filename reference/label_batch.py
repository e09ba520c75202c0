"""Labelled sequences of unequal lengths to one padded batch: what is padding is known by its place, never by its id.

Letters: B samples, S tokens of the longest, L of one sample, N spans of all samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from assay.reference.label_mask import IGNORE

PER_TOKEN = {"labels": IGNORE, "attention_mask": 0, "token_types": 0}
"""What each per-token key holds at padding; ids hold the pad id there."""
ABSENT = {"attention_mask": 1, "token_types": 0}
"""What an optional per-token key amounts to in a sample that lacks it."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """``input_ids``, ``labels``, ``attention_mask``, ``token_types`` int64 [B,S], and ``spans`` int64 [N,3].

    A span is (sample, first token, one past the last token), counted in the padded rows. ``trained`` [B] is how many
    tokens of each sample are trained on: 0 is a sample that the batch carries for nothing.
    """

    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor
    token_types: Tensor
    spans: Tensor

    @property
    def trained(self) -> Tensor:
        """Trained tokens of each sample [B]."""
        return (self.labels != IGNORE).sum(-1)


def collate(examples: Sequence[Mapping[str, Any]], *, pad_id: int, side: str = "right") -> Batch:
    """One batch, padded to the longest sample.

    Args:
        examples: each with `input_ids` and `labels` int64 [L], and optionally `attention_mask` (absent: all ones) and
            `token_types` (absent: all zeros, text) int64 [L], and `spans` int64 [n,2] of tokens (absent: none).
        pad_id: goes where no sample has a token. It may be the id of a real token, such as the end of a turn: a label
            is ignored where padding was put, and nowhere else.
        side: "right" or "left".

    The batch is on the device of the examples.

    Raises:
        TypeError: numbers that are not whole.
        ValueError: no examples; a key that is missing or not known; a length that differs from that of the ids; a span
            outside its sample; a label that is neither its token's id nor -100.
    """
    if not examples:
        raise ValueError("examples: expected at least one, got none")
    if side not in {"right", "left"}:
        raise ValueError(f"side: expected 'right' or 'left', got {side!r}")
    whole = [_completed(example, f"examples[{place}]") for place, example in enumerate(examples)]
    longest = max(len(example["input_ids"]) for example in whole)
    ahead = [longest - len(example["input_ids"]) if side == "left" else 0 for example in whole]
    rows = {
        name: torch.stack(
            [_padded(example[name], longest, start, fill) for example, start in zip(whole, ahead, strict=True)]
        )
        for name, fill in {"input_ids": pad_id, **PER_TOKEN}.items()
    }
    spans = [
        torch.cat([example["spans"].new_full((len(example["spans"]), 1), sample), example["spans"] + start], dim=1)
        for sample, (example, start) in enumerate(zip(whole, ahead, strict=True))
    ]
    return Batch(**rows, spans=torch.cat(spans))


def _completed(example: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """All keys of an example as tensors, the optional ones with what their absence means."""
    strange = sorted(set(example) - {"input_ids", *PER_TOKEN, "spans"})
    missing = sorted({"input_ids", "labels"} - set(example))
    if strange or missing:
        raise ValueError(f"{where}: lacks {missing or 'nothing'}, and has the unknown keys {strange or 'none'}")
    given = {name: _numbers(f"{where}: {name}", value) for name, value in example.items()}
    ids = given["input_ids"]
    defaults = {name: torch.full_like(ids, fill) for name, fill in ABSENT.items()}
    whole = {**defaults, "spans": ids.new_zeros((0, 2)), **given}
    for name in ("input_ids", *PER_TOKEN):
        if whole[name].shape != ids.shape or ids.ndim != 1:
            raise ValueError(f"{where}: {name} has the shape {list(whole[name].shape)}, input_ids {list(ids.shape)}")
    if bool(((whole["labels"] != IGNORE) & (whole["labels"] != ids)).any()):
        raise ValueError(f"{where}: a label is neither its token's id nor {IGNORE}")
    spans = whole["spans"] = whole["spans"].reshape(-1, 2)
    if bool(((spans[:, 0] < 0) | (spans[:, 0] > spans[:, 1]) | (spans[:, 1] > len(ids))).any()):
        raise ValueError(f"{where}: spans {spans.tolist()} are not all within {len(ids)} tokens")
    return whole


def _numbers(name: str, value: Any) -> Tensor:
    """Whole numbers as int64. TypeError for others, which would be cut off. An empty list has no dtype of its own."""
    found = torch.as_tensor(value)
    if found.numel() and (found.is_floating_point() or found.is_complex()):
        raise TypeError(f"{name}: expected whole numbers, got {found.dtype}")
    return found.to(torch.int64)


def _padded(row: Tensor, length: int, start: int, fill: int) -> Tensor:
    wide = row.new_full((length,), fill)
    wide[start : start + len(row)] = row
    return wide
