"""Grounding: what a model says where things are, read from its answers, measured, and asked of its data."""

from __future__ import annotations

from assay.audits.components.grounding import metrics, parse, phrases

_ROOMS = (parse, metrics, phrases)

OPERATIONS = tuple(room.OPERATION for room in _ROOMS)
CANDIDATES = tuple(candidate for room in _ROOMS for candidate in room.CANDIDATES)
