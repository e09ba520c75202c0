"""Known ways in which pipelines go wrong: a right one of ours for Qwen2.5-VL, with one thing done otherwise in each."""

from __future__ import annotations

from assay.audits.components.pipeline import label_faults, media_faults, pack_faults, row_faults, talk_faults
from assay.audits.fault import gathered

FAULTS = tuple(
    entry
    for module in (label_faults, media_faults, pack_faults, row_faults, talk_faults)
    for entry in gathered(vars(module))
)
