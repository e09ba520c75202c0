"""All laws of the mRoPE component, gathered from one file per operation."""

from __future__ import annotations

from assay.audits.components.mrope import model_laws, position_laws, rotate_laws, table_laws

LAWS = (*rotate_laws.LAWS, *table_laws.LAWS, *position_laws.LAWS, *model_laws.LAWS)
