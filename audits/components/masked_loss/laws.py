"""All laws of the masked losses, gathered from one file per kind."""

from __future__ import annotations

from assay.audits.components.masked_loss import (
    gather_laws,
    label_laws,
    model_laws,
    regression_laws,
    step_laws,
    token_laws,
    total_laws,
    trainer_laws,
)

LAWS = (
    *token_laws.LAWS, *label_laws.LAWS, *regression_laws.LAWS, *gather_laws.LAWS, *total_laws.LAWS, *step_laws.LAWS,
    *model_laws.LAWS, *trainer_laws.LAWS,
)  # fmt: skip
