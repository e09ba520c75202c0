"""The versions and the machine that a report was made on."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping

PACKAGES = ("vlm-assay", "torch", "triton", "transformers", "numpy", "hypothesis", "liger-kernel")


def environment(device: str = "cpu") -> Mapping[str, str]:
    """Name to version of what decides results; no paths, no host names."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    found["device"] = _device_name(device)
    return found


def _device_name(device: str) -> str:
    if not device.startswith("cuda"):
        return device
    import torch

    return torch.cuda.get_device_name(device) if torch.cuda.is_available() else f"{device} (absent)"
