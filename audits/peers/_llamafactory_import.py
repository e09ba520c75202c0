"""Imports of LLaMA-Factory, which take long and need two packages that a CPU does not have."""

import importlib
import importlib.machinery
import os
import sys
from types import ModuleType

from assay.audits.peers import _shims

os.environ["DISABLE_VERSION_CHECK"] = "1"
if "torchaudio" not in sys.modules:  # for sounds alone
    EMPTY = ModuleType("torchaudio")
    EMPTY.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    sys.modules["torchaudio"] = EMPTY

_shims.torchvision()
for module in ("data.collator", "data.template", "data.processor.supervised", "hparams", "model.model_utils.packing"):
    importlib.import_module(f"llamafactory.{module}")
