"""Known ways in which a configuration says what is not so."""

from __future__ import annotations

from assay.audits.components.config import knob_faults, task_faults
from assay.audits.fault import gathered

MODULES = (task_faults, knob_faults)
FAULTS = tuple(entry for module in MODULES for entry in gathered(vars(module)))
