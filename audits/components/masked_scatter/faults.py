"""All known wrong forms of scattered features, gathered from one file per kind."""

from __future__ import annotations

from assay.audits.components.masked_scatter import (
    common_faults,
    conduct_faults,
    deepstack_faults,
    model_faults,
    scatter_faults,
    tower_faults,
    value_faults,
)

FAULTS = (
    *common_faults.FAULTS, *scatter_faults.FAULTS, *deepstack_faults.FAULTS, *conduct_faults.FAULTS,
    *model_faults.FAULTS, *value_faults.FAULTS,
    *tower_faults.FAULTS,
)  # fmt: skip
