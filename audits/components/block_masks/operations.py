"""Block masks: random blocks of patches on a grid, to be predicted, and the context that they are predicted from."""

from __future__ import annotations

from assay.audits.components.block_masks import sample

OPERATIONS = (sample.OPERATION,)
CANDIDATES = sample.CANDIDATES
