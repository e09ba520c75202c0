"""All laws of packing, gathered from one file per operation."""

from __future__ import annotations

from assay.audits.components.packed_positions import (
    boundary_laws,
    mask_laws,
    model_laws,
    pack_laws,
    plan_laws,
    shard_laws,
    told_laws,
)

LAWS = (
    *plan_laws.LAWS, *pack_laws.LAWS, *told_laws.LAWS, *boundary_laws.LAWS, *mask_laws.LAWS, *model_laws.LAWS,
    *shard_laws.LAWS,
)  # fmt: skip
