"""The versions and the machine that a report was made on."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
from collections.abc import Mapping

from assay.audits import peer

PACKAGES = ("vlm-assay", "torch", "triton", "numpy", "hypothesis", "unsloth-zoo")
"""Whose versions are told, besides those of every peer."""
JUDGING = ("vlm-assay", "hypothesis")
"""Those of them that only the judge uses."""


def environment(device: str = "cpu") -> Mapping[str, str]:
    """Name to version of what decides results; no paths, no host names."""
    machine = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    return {**machine, **_versions(), "device": _device_name(device)}


@functools.cache
def _versions() -> Mapping[str, str]:
    found = {}
    for package in (*PACKAGES, *peer.names()):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def beside(judge: Mapping[str, str], elsewhere: Mapping[str, str]) -> Mapping[str, str]:
    """The environment of candidates elsewhere, with what judged them: nothing else of the judge's was asked."""
    return {**elsewhere, **{name: version for name, version in judge.items() if name in JUDGING}}


def _device_name(device: str) -> str:
    if not device.startswith("cuda"):
        return device
    import torch

    return torch.cuda.get_device_name(device) if torch.cuda.is_available() else f"{device} (absent)"
