"""All known wrong forms of the mRoPE component, gathered from one file per kind."""

from __future__ import annotations

from assay.audits.components.mrope import (
    model_faults,
    position_batch_faults,
    position_faults,
    position_time_faults,
    rotate_backward_faults,
    rotate_faults,
    rotate_kernel_faults,
    rotate_number_faults,
    table_faults,
)

FAULTS = (
    *rotate_faults.FAULTS,
    *rotate_number_faults.FAULTS,
    *rotate_kernel_faults.FAULTS,
    *rotate_backward_faults.FAULTS,
    *position_faults.FAULTS,
    *position_time_faults.FAULTS,
    *position_batch_faults.FAULTS,
    *table_faults.FAULTS,
    *model_faults.FAULTS,
)
