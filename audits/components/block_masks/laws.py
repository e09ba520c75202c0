"""The laws of block masks, gathered."""

from __future__ import annotations

from assay.audits.components.block_masks import sample_laws

LAWS = sample_laws.LAWS
