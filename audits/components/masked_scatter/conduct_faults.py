"""Wrong conduct around a right placement, whatever it is that is placed."""

from __future__ import annotations

from assay.audits.components.masked_scatter import deepstack, scatter
from assay.audits.conduct_faults import STRIDED, faults, frozen

FAULTS = (
    *faults(scatter.OPERATION, scatter.reference, "embeddings", STRIDED, frozen(scatter.OPERATION)),
    *faults(deepstack.OPERATION, deepstack.reference, "embeddings", STRIDED, frozen(deepstack.OPERATION)),
)
