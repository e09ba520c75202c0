"""Masked losses: causal-LM cross-entropy, masked regression, their divisor over micro-batches and ranks, their sum."""

from __future__ import annotations

from typing import Any

from assay.audits.components.masked_loss import cross_entropy, gather, linear, model, regression, step, total
from assay.audits.families import causal
from assay.audits.terms import Candidate

_ROOMS: tuple[Any, ...] = (cross_entropy, linear, regression, gather, total, step, model)

OPERATIONS = tuple(room.OPERATION for room in _ROOMS)
CANDIDATES = tuple(candidate for room in _ROOMS for candidate in room.CANDIDATES)


def family_candidate(operation: str, name: str, patch: str) -> Candidate | None:
    """What the family ``name`` offers for an operation of this component."""
    return model.for_family(name, patch) if operation == model.NAME else None


def further_families() -> tuple[str, ...]:
    """Families that can be asked for by name beside those with multi-axis rotary."""
    return tuple(causal.classes())
