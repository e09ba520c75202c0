"""Packing: the plan, the rows, what tells samples apart, the pieces of context parallelism, and whole models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from assay.audits.components.packed_positions import boundaries, mask, model, pack, plan, shard
from assay.audits.families import causal
from assay.audits.terms import Candidate

_ROOMS: tuple[Any, ...] = (plan, pack, boundaries, mask, shard, model)

OPERATIONS = tuple(room.OPERATION for room in _ROOMS)
CANDIDATES = tuple(candidate for room in _ROOMS for candidate in room.CANDIDATES)


def family_candidate(operation: str, name: str, patch: str) -> Candidate | None:
    """What the family ``name`` offers for an operation of this component."""
    return model.for_family(name, patch) if operation == model.NAME else None


def on_request(candidate: Candidate) -> bool:
    """Whether a family is audited only where it is asked for by name: all but a handful are."""
    return candidate.operation == model.NAME and candidate.scope["family"] not in model.IMAGE_FAMILIES


def families() -> Mapping[str, str]:
    """Families that can be asked for by name; with the reason where it is known that nothing can be said of one."""
    return {name: causal.UNBUILT.get(name, "") for name in causal.classes()}
