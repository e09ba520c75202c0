"""Multimodal rotary embedding: frequencies, tables, rotation, positions, and the models that use them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from assay.audits.components.mrope import model, positions, rotate, tables
from assay.audits.families import discovery
from assay.audits.terms import Candidate

_ROOMS: tuple[Any, ...] = (rotate, tables, positions, model)

OPERATIONS = tuple(room.OPERATION for room in _ROOMS)
CANDIDATES = tuple(candidate for room in _ROOMS for candidate in room.CANDIDATES)


def family_candidate(operation: str, name: str, patch: str) -> Candidate | None:
    """What the family ``name`` offers for an operation of this component."""
    if name not in discovery.installed_families():
        return None
    family = discovery.family(name)
    room: Any = next(room for room in _ROOMS if operation == room.NAME)
    if isinstance(family, str):
        return room.unbuilt(name) if hasattr(room, "unbuilt") else None
    found: Candidate | None = room.for_family(family, patch) if hasattr(room, "for_family") else None
    return found


def families() -> Mapping[str, str]:
    """Families with multi-axis rotary; with the reason where one has no tiny model here."""
    return {name: found if isinstance(found, str) else "" for name, found in discovery.families().items()}
