"""Label masks: which tokens of a conversation are trained on, through truncation and padding."""

from __future__ import annotations

from assay.audits.components.label_mask import labels

OPERATIONS = (labels.OPERATION,)
CANDIDATES = (labels.REFERENCE,)
