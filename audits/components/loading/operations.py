"""Loading a model: the training script's way beside the inference script's, and quantisation that is in effect."""

from __future__ import annotations

from assay.audits.components.loading import paths, quantisation

OPERATIONS = (paths.OPERATION, quantisation.OPERATION)
CANDIDATES = (*paths.CANDIDATES, *quantisation.CANDIDATES)
