"""Tiny trainings for the tests of the guard: a model of a family, a batch with labels, a few steps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from assay.audits.families import causal
from assay.audits.families.loss_run import placeholders, uncached
from assay.audits.families.packed_run import PackedCall, PackedModel, joined
from assay.audits.guard import Guard, guard
from assay.audits.guard_terms import GuardWarning

NAME = "qwen2_5_vl"
SAMPLES = ("t5 i4x8 t6", "t3 i8x8 t9 i4x4 t2")


class Tiny(nn.Module):
    """A causal language model that is compiled in no time."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type="tiny", pad_token_id=0)
        self.embed, self.head = nn.Embedding(16, 8), nn.Linear(8, 16)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.embed(input_ids))
        return {"loss": nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())}


def model_of(name: str = NAME) -> Any:
    return causal.loaded(name).build(0).train()


def batch_of(model: Any, samples: Sequence[str] = SAMPLES, name: str = NAME, **more: Any) -> dict[str, Any]:
    """A padded batch with labels on all text."""
    made = causal.loaded(name).batch(model, samples, **more)
    batch = {key: value for key, value in made.items() if value is not None}
    return batch | {"labels": labels_of(model, batch)}


def labels_of(model: Any, batch: Mapping[str, Any]) -> Tensor:
    ids = batch["input_ids"]
    special = torch.tensor(sorted(placeholders(model.config, model.get_input_embeddings().num_embeddings)) or [-1])
    shown = batch.get("attention_mask", torch.ones_like(ids))
    return ids.masked_fill(torch.isin(ids, special) | (shown.reshape(ids.shape) == 0), -100)


def pack_of(
    model: Any, told: str, samples: Sequence[str] = ("t5 i4x8 t6", "t9", "t3 i8x4 t9"), name: str = NAME
) -> Any:
    """The samples in one row, their boundaries told in a way of ``packed_run``; no first token is trained."""
    packing = PackedModel.__new__(PackedModel)
    packing._family, packing._patch = causal.loaded(name), ""
    family, numbers = causal.loaded(name), range(len(samples))
    alone = [
        {key: value for key, value in family.batch(model, (samples[at],), keys=(at,)).items() if value is not None}
        for at in numbers
    ]
    call = PackedCall(samples=tuple(samples), keys=tuple(numbers), told=told, dtype="float32")
    batch = {**joined(alone), **packing.telling(model, call, alone)}
    labels = labels_of(model, {key: value for key, value in batch.items() if key != "attention_mask"})
    place = 0
    for own in alone:
        labels[0, place] = -100
        place += own["input_ids"].shape[1]
    return batch | {"labels": labels}


def step(model: Any, batch: Mapping[str, Any]) -> Tensor:
    """Forward and backward; the loss."""
    loss: Tensor = model(**batch, **uncached(model)).loss
    loss.backward()
    return loss.detach()


def adam(model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def watched(
    model: Any,
    batch: Mapping[str, Any],
    folder: Path,
    made: Callable[[Any], torch.optim.Optimizer] = adam,
    **options: Any,
) -> Guard:
    """One step under a guard that warns."""
    optimizer = made(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GuardWarning)
        with guard(model, optimizer, folder=folder, **options) as found:
            step(model, batch)
            optimizer.step()
    return found


def rules(found: Guard) -> set[str]:
    return {one.rule.removeprefix("guard.") for one in found.findings}


def failures(found: Guard) -> list[str]:
    """Where the guard itself broke down."""
    return [why for why in found.tally.unasked.values() if "itself failed" in why]
