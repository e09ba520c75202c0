"""All laws of label masks, gathered from one file per kind."""

from __future__ import annotations

from assay.audits.components.label_mask import collate_laws, label_laws, label_relations, truncate_laws

LAWS = (*label_laws.LAWS, *label_relations.LAWS, *truncate_laws.LAWS, *collate_laws.LAWS)
