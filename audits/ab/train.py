"""Trains one tiny model from scratch under one patch, and says how its loss and its answers went."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any, Self

import torch
from torch import nn

from assay.audits.ab import arms, task
from assay.audits.ab.model import build, digest, family_of
from assay.audits.ab.packs import Batch, Pack, packs

EXAM_SEED = 1 << 40
"""Seed of the samples that no training sees. The same for all runs."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What both sides of a comparison share. ``rows`` packs of ``per_row`` samples are one step.

    The rate rises over ``warmup`` steps and falls in a straight line to a twentieth at the end. ``exam`` is how many
    batches the trained model is asked.
    """

    family: str = "qwen3_vl"
    steps: int = 600
    rows: int = 6
    per_row: int = 8
    rate: float = 3e-3
    warmup: int = 50
    clip: float = 1.0
    exam: int = 40

    def __post_init__(self) -> None:
        """ValueError for a family or a size that cannot be."""
        family_of(self.family)
        for field in fields(self)[1:]:
            if not getattr(self, field.name) > 0:
                message = f"{field.name}: expected more than 0, got {getattr(self, field.name)}"
                raise ValueError(message)
        if self.exam * self.rows * self.per_row < len(task.QUESTIONS):
            message = f"exam, rows, per_row: expected at least {len(task.QUESTIONS)} samples, one for each question"
            raise ValueError(message)

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        return self.rate * min(1.0, (step + 1) / self.warmup) * max(0.05, 1 - step / self.steps)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One trained model. ``loss`` and ``accuracy`` have a number for each step, from its batch before the update.

    Every batch is new, so the accuracy of a step is one of unseen samples. It is None where a forward with labels
    returns no logits. ``exams`` is, by the patch of batches in effect while it was asked, the share of right answers to
    each question; under the patch that it was trained with always. ``weights`` and ``data`` are digests of the
    parameters at the start and of all batches before the patch, ``seconds`` those of one core.
    """

    seed: int
    loss: tuple[float, ...]
    accuracy: tuple[float | None, ...]
    exams: Mapping[str, tuple[float, ...]]
    weights: str
    data: str
    seconds: float

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """The run that :func:`dataclasses.asdict` and JSON made this of."""
        exams = {name: tuple(shares) for name, shares in record["exams"].items()}
        return cls(**{**record, "loss": tuple(record["loss"]), "accuracy": tuple(record["accuracy"]), "exams": exams})


def train(settings: Settings, ref: str, seed: int, also: str = "") -> Run:
    """Train under the patch ``ref``; afterwards ask under it, and under ``also`` where both are patches of batches.

    The seed decides weights and data, for every patch alike. RuntimeError when the patched model returns no loss.
    """
    torch.set_num_threads(1)  # sums of several threads would differ between machines, and both sides run at once
    start = time.process_time()
    model = arms.model_under(ref, settings.family, seed)
    weights, seen = digest(model), hashlib.sha256()
    steps = list(_steps(model, settings, ref, seed, seen.update))
    patches = dict.fromkeys([ref, *([also] if also and arms.on_batch(ref) and arms.on_batch(also) else [])])
    exams = {name: exam(model, settings, name) for name in patches}
    return Run(
        seed=seed,
        loss=tuple(round(loss, 4) for loss, _ in steps),
        accuracy=tuple(None if share is None else round(share, 4) for _, share in steps),
        exams=exams,
        weights=weights,
        data=seen.hexdigest()[:12],
        seconds=round(time.process_time() - start, 1),
    )


def _steps(
    model: Any, settings: Settings, ref: str, seed: int, seen: Callable[[bytes], None]
) -> Iterator[tuple[float, float | None]]:
    """Loss and accuracy of every step, before its update."""
    patch = arms.on_batch(ref)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.rate, betas=(0.9, 0.98), weight_decay=0.0)
    for step, pack in enumerate(islice(_data(settings, seed), settings.steps)):
        for name in ("input_ids", "pixel_values", "image_grid_thw", "position_ids", "labels"):
            seen(pack.batch[name].numpy().tobytes())
        out = model(**_given(arms.applied(patch, pack.batch, ref)), use_cache=False)
        if out.loss is None:
            message = f"patch {ref}: the model returned no loss"
            raise RuntimeError(message)
        for group in optimizer.param_groups:
            group["lr"] = settings.rate_at(step)
        optimizer.zero_grad()
        out.loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        yield float(out.loss.detach()), None if out.logits is None else _share(pack.right(out.logits))


def _data(settings: Settings, seed: int) -> Iterator[Pack]:
    config = build(family_of(settings.family), 0).config  # a patched model may hide its own
    return packs(seed, rows=settings.rows, per_row=settings.per_row, family=settings.family, config=config)


def _given(batch: Batch) -> Batch:
    """What the model's forward takes."""
    return {name: value for name, value in batch.items() if name != "sample_index"}


def _share(right: list[tuple[int, int]]) -> float:
    return sum(hits for hits, _ in right) / sum(asked for _, asked in right)


def exam(model: Any, settings: Settings, ref: str) -> tuple[float, ...]:
    """The share of right answers to each question on samples that no training sees, under a patch of batches.

    A patch of another kind is in the model already, and the batches are as they are.
    """
    patch, totals = arms.on_batch(ref), [(0, 0)] * len(task.QUESTIONS)
    model.eval()
    for pack in islice(_data(settings, EXAM_SEED), settings.exam):
        batch = _given(arms.applied(patch, pack.batch, ref))
        batch.pop("labels")
        with torch.no_grad():
            right = pack.right(model(**batch, use_cache=False).logits)
        totals = [(hits + more, asked + of) for (hits, asked), (more, of) in zip(totals, right, strict=True)]
    model.train()
    return tuple(round(hits / asked, 4) for hits, asked in totals)
