"""Scattered features: media into text embeddings at their placeholders, and into hidden states (deepstack)."""

from __future__ import annotations

from typing import Any

from assay.audits.components.masked_scatter import deepstack, scatter

_ROOMS: tuple[Any, ...] = (scatter, deepstack)

OPERATIONS = tuple(room.OPERATION for room in _ROOMS)
CANDIDATES = tuple(candidate for room in _ROOMS for candidate in room.CANDIDATES)
