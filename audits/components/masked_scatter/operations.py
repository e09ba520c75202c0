"""Scattered features: media into text embeddings at their placeholders, and into hidden states (deepstack)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from assay.audits.components.masked_scatter import deepstack, model, scatter, tower
from assay.audits.families import scattering
from assay.audits.terms import Candidate

_ROOMS: tuple[Any, ...] = (scatter, deepstack, model, tower)

OPERATIONS = tuple(room.OPERATION for room in _ROOMS)
CANDIDATES = tuple(candidate for room in _ROOMS for candidate in room.CANDIDATES)


def family_candidate(operation: str, name: str, patch: str) -> Candidate | None:
    """What the family ``name`` offers for an operation of this component."""
    rooms: dict[str, Any] = {model.NAME: model, deepstack.NAME: deepstack, tower.NAME: tower}
    found: Candidate | None = rooms[operation].for_family(name, patch) if operation in rooms else None
    return found


def on_request(_candidate: Candidate) -> bool:
    """A family is audited only where it is asked for by name: some that differ are in ``CANDIDATES``."""
    return True


def families() -> Mapping[str, str]:
    """Families that can be asked for by name; with the reason where it is known that nothing can be said of one."""
    return {name: scattering.UNBUILT.get(name, "") for name in scattering.installed_families()}
