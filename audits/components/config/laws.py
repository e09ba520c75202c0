"""The laws of configurations."""

from __future__ import annotations

from assay.audits.components.config import knob_laws, task_laws

LAWS = (*task_laws.LAWS, *knob_laws.LAWS)
