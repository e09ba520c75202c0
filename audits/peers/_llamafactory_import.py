"""Imports of LLaMA-Factory, which take long and need two packages that a CPU does not have."""

import importlib
import importlib.machinery
import os
import sys
from types import ModuleType

import torch

os.environ["DISABLE_VERSION_CHECK"] = "1"
if "torchaudio" not in sys.modules:  # for sounds alone
    EMPTY = ModuleType("torchaudio")
    EMPTY.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    sys.modules["torchaudio"] = EMPTY

OPERATORS = torch.library.Library("torchvision", "DEF")
"""Of the CUDA build of torchvision next to torch for a CPU: it cannot register those, and asks for them."""
for name in ("nms", "qnms"):
    OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

for module in ("data.collator", "data.template", "data.processor.supervised", "hparams", "model.model_utils.packing"):
    importlib.import_module(f"llamafactory.{module}")
