"""Known wrong forms of block masks, gathered."""

from __future__ import annotations

from assay.audits.components.block_masks import sample_faults

FAULTS = sample_faults.FAULTS
