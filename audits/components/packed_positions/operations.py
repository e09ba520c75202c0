"""Packing: the plan, the rows, what tells samples apart, and the pieces of context parallelism."""

from __future__ import annotations

from typing import Any

from assay.audits.components.packed_positions import boundaries, mask, pack, plan, shard

_ROOMS: tuple[Any, ...] = (plan, pack, boundaries, mask, shard)

OPERATIONS = tuple(room.OPERATION for room in _ROOMS)
CANDIDATES = tuple(candidate for room in _ROOMS for candidate in room.CANDIDATES)
