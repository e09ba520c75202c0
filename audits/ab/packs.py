"""Samples of the task as packed batches of a family: several samples in a row, none of which sees another.

Letters: R rows, L tokens of a row, N images, P patches of all images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from assay.audits.ab import task
from assay.audits.ab.task import Grid, Sample
from assay.reference.mrope_positions import RULES, positions, token_types

IGNORED = -100
PAD = 0
FIRST_QUESTION, FIRST_NUMBER, FIRST_MARK, FIRST_WORD = 10, 20, 40, 60
"""Ordinary text ids: questions, rows and columns, the two marks, and what stands in front of an image."""

Batch = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Pack:
    """What a model is given, and what it is asked: ``question`` and ``target`` are [R, L].

    ``question`` is the question's number at the token whose prediction is the answer and -1 elsewhere, ``target`` the
    answer's id there. They are not in the batch, so that a patch of the batch cannot change what counts as right.
    """

    batch: Batch
    question: Tensor
    target: Tensor

    def right(self, logits: Tensor) -> list[tuple[int, int]]:
        """For each question how many answers were right, and how many were asked for. ``logits`` is [R, L, V]."""
        hits = logits.detach().argmax(-1) == self.target
        asked = [self.question == number for number in range(len(task.QUESTIONS))]
        return [(int((hits & at).sum()), int(at.sum())) for at in asked]


def token_ids(sample: Sample, config: Any) -> list[int]:
    """The sample as ids of the family with this configuration; the last one is the answer."""
    first = FIRST_NUMBER if task.QUESTIONS[sample.question] in {"row", "column"} else FIRST_MARK
    return [
        *(FIRST_WORD + word for word in sample.lead),
        config.vision_start_token_id,
        *[config.image_token_id] * len(sample.features),
        config.vision_end_token_id,
        FIRST_QUESTION + sample.question,
        first + sample.answer,
    ]


def merge_of(config: Any) -> int:
    """How many patches of the configuration's tower make one token, per side."""
    return int(config.vision_config.spatial_merge_size)


@lru_cache(maxsize=4096)
def _places(family: str, kinds: tuple[int, ...], grid: Grid, merge: int) -> Tensor:
    """The 3-D ids [3, tokens] of a sample alone, by the reference's rule of its family."""
    grids = torch.tensor([[1, grid[0] * merge, grid[1] * merge]])
    return positions(RULES[family], torch.tensor([kinds]), image_grids=grids)[0][:, 0]


def sample_positions(sample: Sample, family: str, config: Any) -> Tensor:
    """The ids [3, tokens] of a sample by its own grid, starting at 0."""
    kinds = token_types(torch.tensor([token_ids(sample, config)]), image_id=config.image_token_id)
    return _places(family, tuple(kinds[0].tolist()), sample.grid, merge_of(config))


def pack(rows: Sequence[Sequence[Sample]], family: str, config: Any) -> Pack:
    """One batch of rows that hold several samples each, padded on the right.

    The batch has the arguments of the model's forward: ``input_ids`` and ``labels`` [R, L] (the answers alone are
    trained on), ``position_ids`` [3, R, L] that start anew with every sample, ``attention_mask`` [R, 1, L, L] that is 0
    where a token sees another one and very negative elsewhere, ``pixel_values`` [P, FEATURES] with one row for each
    token of an image, ``image_grid_thw`` [N, 3]; and ``sample_index`` [R, L], the number of a token's sample within its
    row, -1 at padding, which the model is not given.
    """
    ids = [[torch.tensor(token_ids(sample, config)) for sample in row] for row in rows]
    index = _rows([[torch.full_like(part, n) for n, part in enumerate(row)] for row in ids], -1)
    asked = [
        [_last_but_one(part, sample.question, -1) for part, sample in _both(row, own)]
        for row, own in zip(ids, rows, strict=True)
    ]
    target = [[_last_but_one(part, int(part[-1]), IGNORED) for part in row] for row in ids]
    places = [torch.cat([sample_positions(sample, family, config) for sample in row], -1) for row in rows]
    flat, merge = [sample for row in rows for sample in row], merge_of(config)
    batch = {
        "input_ids": _rows(ids, PAD),
        "labels": _rows([[_last(part) for part in row] for row in ids], IGNORED),
        "position_ids": torch.stack([_rows([[axis] for axis in axes], 0) for axes in zip(*places, strict=True)]),
        "attention_mask": block_causal(index),
        "pixel_values": torch.cat([sample.features for sample in flat]),
        "image_grid_thw": torch.tensor([[1, sample.grid[0] * merge, sample.grid[1] * merge] for sample in flat]),
        "sample_index": index,
    }
    return Pack(batch=batch, question=_rows(asked, -1), target=_rows(target, IGNORED))


def _both(parts: Sequence[Tensor], samples: Sequence[Sample]) -> Iterator[tuple[Tensor, Sample]]:
    return zip(parts, samples, strict=True)


def _last(ids: Tensor) -> Tensor:
    """Labels of a sample: nothing but its answer."""
    return torch.cat([torch.full_like(ids[:-1], IGNORED), ids[-1:]])


def _last_but_one(ids: Tensor, value: int, elsewhere: int) -> Tensor:
    """``value`` at the token that predicts the answer."""
    out = torch.full_like(ids, elsewhere)
    out[-2] = value
    return out


def _rows(rows: Sequence[Sequence[Tensor]], padding: int) -> Tensor:
    """Parts joined to rows, and rows padded on the right to the longest: [R, L]."""
    joined = [torch.cat(list(row)) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(joined, batch_first=True, padding_value=padding)


def block_causal(index: Tensor) -> Tensor:
    """The mask [R, 1, L, L] for sample numbers [R, L]: a token sees itself and those before it in its own sample."""
    length = index.shape[-1]
    sees = (index[:, :, None] == index[:, None, :]) & torch.ones(length, length, dtype=torch.bool).tril()
    return torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)[:, None]


def packs(seed: int, *, rows: int, per_row: int, family: str, config: Any) -> Iterator[Pack]:
    """Batches without end, decided by ``seed`` alone. Questions take turns; no sample comes twice."""
    random, turn = torch.Generator().manual_seed(seed), cycle(range(len(task.QUESTIONS)))
    while True:
        yield pack([[task.draw(random, next(turn)) for _ in range(per_row)] for _ in range(rows)], family, config)
