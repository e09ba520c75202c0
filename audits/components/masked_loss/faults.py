"""All known wrong forms of the masked losses, gathered from one file per kind."""

from __future__ import annotations

from assay.audits.components.masked_loss import (
    conduct_faults,
    cross_entropy_faults,
    fused_faults,
    gather_faults,
    linear_faults,
    model_faults,
    regression_faults,
    step_faults,
    total_faults,
    trainer_faults,
)

FAULTS = (
    *conduct_faults.FAULTS,
    *cross_entropy_faults.FAULTS,
    *linear_faults.FAULTS,
    *fused_faults.FAULTS,
    *regression_faults.FAULTS,
    *gather_faults.FAULTS,
    *total_faults.FAULTS,
    *step_faults.FAULTS,
    *model_faults.FAULTS,
    *trainer_faults.FAULTS,
)
