"""Masked losses: causal-LM cross-entropy, masked regression, their divisor over micro-batches and ranks, their sum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from assay.audits.components.masked_loss import cross_entropy, gather, linear, model, regression, step, total, trainer
from assay.audits.families import causal
from assay.audits.terms import Candidate

_ROOMS: tuple[Any, ...] = (cross_entropy, linear, regression, gather, total, step, model, trainer)

OPERATIONS = tuple(room.OPERATION for room in _ROOMS)
CANDIDATES = tuple(candidate for room in _ROOMS for candidate in room.CANDIDATES)


def family_candidate(operation: str, name: str, patch: str) -> Candidate | None:
    """What the family ``name`` offers for an operation of this component."""
    rooms = {model.NAME: model.for_family, trainer.NAME: trainer.for_family}
    return rooms[operation](name, patch) if operation in rooms else None


def on_request(candidate: Candidate) -> bool:
    """Whether a family is audited only where it is asked for by name.

    A Trainer takes seconds to come up, and treats all families of a kind alike: some of each are in ``CANDIDATES``.
    """
    return candidate.operation == trainer.NAME


def families() -> Mapping[str, str]:
    """Families that can be asked for by name; with the reason where it is known that nothing can be said of one."""
    return {name: causal.UNBUILT.get(name, "") for name in causal.classes()}
