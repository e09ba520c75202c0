"""The laws of grounding, gathered."""

from __future__ import annotations

from assay.audits.components.grounding import metric_laws, overlap_laws, parse_laws, phrase_laws

LAWS = (*parse_laws.LAWS, *metric_laws.LAWS, *overlap_laws.LAWS, *phrase_laws.LAWS)
