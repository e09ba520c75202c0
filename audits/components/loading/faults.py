"""Known ways in which loading goes wrong."""

from __future__ import annotations

from assay.audits.components.loading import path_faults, path_word_faults, quantisation_faults
from assay.audits.fault import gathered

MODULES = (path_faults, path_word_faults, quantisation_faults)
FAULTS = tuple(entry for module in MODULES for entry in gathered(vars(module)))
