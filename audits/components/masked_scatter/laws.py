"""All laws of scattered features, gathered from one file per kind."""

from __future__ import annotations

from assay.audits.components.masked_scatter import (
    batch_laws,
    count_laws,
    mode_laws,
    model_laws,
    place_laws,
    tower_laws,
    value_laws,
)

LAWS = (
    *place_laws.LAWS, *count_laws.LAWS, *value_laws.LAWS, *batch_laws.LAWS, *model_laws.LAWS,
    *mode_laws.LAWS, *tower_laws.LAWS,
)  # fmt: skip
