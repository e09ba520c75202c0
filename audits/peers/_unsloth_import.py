"""Imports of Unsloth, which take long, need torchvision, and have an order: unsloth first."""

import importlib
import os

from assay.audits.peers import _shims

for variable in ("UNSLOTH_ALLOW_CPU", "UNSLOTH_SKIP_TORCHVISION_CHECK", "UNSLOTH_DISABLE_STATISTICS"):
    os.environ[variable] = "1"
_shims.torchvision()
for module in ("unsloth", "unsloth_zoo.vision_utils", "unsloth_zoo.fused_losses"):
    importlib.import_module(module)
