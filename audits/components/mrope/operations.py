"""Multimodal rotary embedding: frequencies, tables, rotation, positions, and the models that use them."""

from __future__ import annotations

from assay.audits.components.mrope import positions, rotate

_ROOMS = (rotate, positions)

OPERATIONS = tuple(room.OPERATION for room in _ROOMS)
CANDIDATES = tuple(candidate for room in _ROOMS for candidate in room.CANDIDATES)
