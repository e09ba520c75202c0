"""All known wrong forms of packing, gathered from one file per operation."""

from __future__ import annotations

from assay.audits.components.packed_positions import (
    boundary_faults,
    conduct_faults,
    mask_faults,
    model_faults,
    pack_faults,
    pack_position_faults,
    plan_faults,
    shard_faults,
    told_faults,
)

FAULTS = (
    *conduct_faults.FAULTS,
    *plan_faults.FAULTS,
    *pack_faults.FAULTS,
    *pack_position_faults.FAULTS,
    *boundary_faults.FAULTS,
    *mask_faults.FAULTS,
    *model_faults.FAULTS,
    *shard_faults.FAULTS,
    *told_faults.FAULTS,
)
