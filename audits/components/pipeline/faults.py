"""Known ways in which pipelines go wrong: a right one of ours for Qwen2.5-VL, with one thing done otherwise in each."""

from __future__ import annotations

from assay.audits.components.pipeline import (
    label_faults,
    loss_faults,
    media_faults,
    pack_faults,
    pixel_faults,
    row_faults,
    sight_faults,
    speech_faults,
    talk_faults,
)
from assay.audits.fault import gathered

MODULES = (
    label_faults,
    loss_faults,
    media_faults,
    pack_faults,
    pixel_faults,
    row_faults,
    sight_faults,
    speech_faults,
    talk_faults,
)
FAULTS = tuple(entry for module in MODULES for entry in gathered(vars(module)))
