"""The global settings that an implementation must leave as it found them: how each is read and put back."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch

Read = Callable[[], Any]
Write = Callable[[Any], object]


def _set_device(name: str) -> None:
    torch.set_default_device(None if name == "cpu" else name)  # None: without the mode that a device installs


def _environment() -> dict[bytes, bytes]:
    """As bytes, without decoding: it is read four times a call."""
    return dict(getattr(os.environ, "_data", os.environb))


def _set_environment(wanted: Mapping[bytes, bytes]) -> None:
    os.environb.clear()
    os.environb.update(wanted)


def _autocast() -> tuple[bool, bool]:
    return torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")


def _set_autocast(wanted: tuple[bool, bool]) -> None:
    torch.set_autocast_enabled("cpu", wanted[0])
    torch.set_autocast_enabled("cuda", wanted[1])


SETTINGS: Mapping[str, tuple[Read, Write]] = {
    "default_dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "default_device": (lambda: str(torch.get_default_device()), _set_device),
    "grad_enabled": (torch.is_grad_enabled, torch._C._set_grad_enabled),
    "detect_anomaly": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "deterministic_algorithms": (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    "float32_matmul_precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "threads": (torch.get_num_threads, torch.set_num_threads),
    "rng_seed": (torch.initial_seed, torch.manual_seed),
    "autocast": (_autocast, _set_autocast),
    "working_directory": (os.getcwd, os.chdir),
    "environment": (_environment, _set_environment),
}
"""By the name that a finding gives them. A draw from the global generator is no change; seeding it is."""
UNREADABLE = "unreadable"


def read() -> dict[str, Any]:
    """Every setting as it is now."""
    return {name: _read(get) for name, (get, _) in SETTINGS.items()}


def _read(get: Read) -> Any:
    try:
        return get()
    except (OSError, RuntimeError):  # a working directory that was deleted, settings that contradict each other
        return UNREADABLE


def restore(before: Mapping[str, Any]) -> list[str]:
    """Put back what is not as it was; the names of those settings."""
    now = read()
    changed = sorted(name for name, value in before.items() if now[name] != value)
    for name in changed:
        if before[name] != UNREADABLE:
            SETTINGS[name][1](before[name])
    return changed
