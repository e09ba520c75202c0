"""All laws of label masks, gathered from one file per kind."""

from __future__ import annotations

from assay.audits.components.label_mask import label_laws, label_relations

LAWS = (*label_laws.LAWS, *label_relations.LAWS)
