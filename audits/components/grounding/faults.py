"""Known wrong forms of grounding, gathered."""

from __future__ import annotations

from assay.audits.components.grounding import metric_faults, parse_faults, phrase_faults

FAULTS = (*parse_faults.FAULTS, *metric_faults.FAULTS, *phrase_faults.FAULTS)
