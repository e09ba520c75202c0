"""All known wrong forms of label masks, gathered from one file per kind."""

from __future__ import annotations

from assay.audits.components.label_mask import (
    collate_faults,
    label_call_faults,
    label_conduct_faults,
    label_edge_faults,
    label_faults,
    label_search_faults,
    truncate_faults,
)

FAULTS = (
    *label_faults.FAULTS,
    *label_search_faults.FAULTS,
    *label_call_faults.FAULTS,
    *label_conduct_faults.FAULTS,
    *label_edge_faults.FAULTS,
    *truncate_faults.FAULTS,
    *collate_faults.FAULTS,
)
