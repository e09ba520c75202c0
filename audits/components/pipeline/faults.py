"""Known ways in which pipelines go wrong: a right one of ours for Qwen2.5-VL, with one thing done otherwise in each."""

from __future__ import annotations

from assay.audits.components.pipeline import label_faults, pack_faults, row_faults
from assay.audits.fault import gathered

FAULTS = (*gathered(vars(label_faults)), *gathered(vars(pack_faults)), *gathered(vars(row_faults)))
