"""Label masks: which tokens of a conversation are trained on, through truncation and padding."""

from __future__ import annotations

from typing import Any

from assay.audits.components.label_mask import collate, labels, truncate, upstream

_ROOMS: tuple[Any, ...] = (labels, truncate, collate)

OPERATIONS = tuple(room.OPERATION for room in _ROOMS)
CANDIDATES = (*(room.REFERENCE for room in _ROOMS), *upstream.CANDIDATES)
