"""Tile sizes that were measured to be faster than those of the formulas: by kernel, chip and class of shapes.

`choices.json` holds them, written by ``python -m assay.benchmarks.tune --write``; whatever is not in it keeps its
formula. Launch code asks `look_up` and never times anything itself: a search at the first call would run kernels inside
a training step, and could choose differently on two ranks. ``ASSAY_CHOICES=FILE`` names another file.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assay.kernels.operands import refuse

SCHEMA = 1
Settings = Mapping[str, Any]


def _powers(low: int, high: int) -> tuple[int, ...]:
    return tuple(2**n for n in range(low.bit_length() - 1, high.bit_length()))


ONE_READ, TWO_READS = "one read", "two reads"
_WARPS = _powers(1, 32)
_ROWS = {"block": _powers(128, 65536), "warps": _WARPS}
ALLOWED: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "cross_entropy.rows": _ROWS,
    "cross_entropy.fused": {"form": (TWO_READS, ONE_READ), **_ROWS, "residents": tuple(range(1, 9))},
    "cross_entropy.gradient": _ROWS,
    "rotary.rotate": {"warps": _WARPS, "registers": tuple(range(16, 225)), "chunk": _powers(1, 64)},
    "masked_regression.rows": {"elements": _powers(128, 16384), "per_thread": _powers(4, 128)},
}
"""The kernels that can be told, what of each, and to which values. What an entry leaves out keeps its formula."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One line of the file. `shape` is what the launch code calls a class of shapes; the last five say where from."""

    kernel: str
    capability: str
    """Of the chip, such as 9.0."""
    shape: str
    settings: Settings
    device: str = ""
    versions: Mapping[str, str] | None = None
    date: str = ""
    microseconds: float | None = None
    formula: float | None = None
    """Microseconds of the formula's sizes in the same run."""


def default_path() -> Path:
    """The file that the launch code reads."""
    return Path(os.environ.get("ASSAY_CHOICES") or Path(__file__).with_name("choices.json"))


def read(path: Path) -> tuple[Choice, ...]:
    """The entries of a file, each of them checked.

    Raises:
        ValueError: naming the file, the entry, what was expected and what came.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        refuse(ValueError, str(path), "JSON", error)
    if not isinstance(data, dict) or data.get("schema") != SCHEMA or not isinstance(data.get("entries"), list):
        refuse(ValueError, str(path), f'{{"schema": {SCHEMA}, "entries": [...]}}', str(data)[:60])
    found = tuple(_entry(f"{path}, entry {at}", fields) for at, fields in enumerate(data["entries"]))
    keys = [(each.kernel, each.capability, each.shape) for each in found]
    if twice := [key for key in keys if keys.count(key) > 1]:
        refuse(ValueError, str(path), "one entry for a kernel, chip and class of shapes", f"two for {twice[0]}")
    return found


def _entry(place: str, fields: Any) -> Choice:
    needed, known = ("kernel", "capability", "shape", "settings"), Choice.__dataclass_fields__
    if not isinstance(fields, dict) or (lacking := [name for name in needed if name not in fields]):
        refuse(ValueError, place, f"an object with {', '.join(needed)}", fields or lacking)
    if strangers := [name for name in fields if name not in known]:
        refuse(ValueError, place, f"none but {', '.join(known)}", ", ".join(strangers))
    for name in ("kernel", "capability", "shape"):
        if not isinstance(fields[name], str):  # 9.0 would never be the "9.0" that is asked for
            refuse(ValueError, f"{place}, {name}", "a string", repr(fields[name]))
    check(place, fields["kernel"], fields["settings"])
    return Choice(**fields)


def check(place: str, kernel: str, settings: Any) -> None:
    """ValueError for a kernel that cannot be told, or something that it cannot be told; `place` begins the message."""
    if kernel not in ALLOWED:
        refuse(ValueError, f"{place}, kernel", f"one of {', '.join(ALLOWED)}", repr(kernel))
    if not isinstance(settings, Mapping):
        refuse(ValueError, f"{place}, settings", "an object", settings)
    for name, value in settings.items():
        allowed = ALLOWED[kernel].get(name)
        if allowed is None:
            refuse(ValueError, f"{place}, settings of {kernel}", f"none but {', '.join(ALLOWED[kernel])}", repr(name))
        if type(value) is not type(allowed[0]) or value not in allowed:
            refuse(ValueError, f"{place}, {name} of {kernel}", f"one of {_told(allowed)}", repr(value))


def _told(allowed: Sequence[Any]) -> str:
    return ", ".join(map(str, allowed)) if len(allowed) < 20 else f"{allowed[0]} to {allowed[-1]}"


@functools.cache
def _table(path: Path) -> Mapping[tuple[str, str, str], Settings]:
    if not path.exists() and "ASSAY_CHOICES" not in os.environ:
        return {}  # an installation without the file has its formulas
    return {(each.kernel, each.capability, each.shape): each.settings for each in read(path)}


def forget() -> None:
    """Read the file again at the next call."""
    _table.cache_clear()


@functools.cache
def _capability(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"{major}.{minor}"


def capability(x: Tensor) -> str:
    """Of the chip that x lies on; empty elsewhere, for which nothing is ever chosen."""
    return _capability(x.device) if x.is_cuda else ""


_forced: dict[str, Settings] = {}


@contextmanager
def forced(kernel: str, settings: Settings) -> Iterator[None]:
    """Inside, launches of a kernel take these settings on any device. For tuning and tests; not for several threads.

    Raises:
        ValueError: the kernel cannot be told, or not this.
    """
    check("forced", kernel, settings)
    before = _forced.get(kernel)
    _forced[kernel] = settings
    try:
        yield
    finally:
        _forced.pop(kernel)
        if before is not None:
            _forced[kernel] = before


def look_up(kernel: str, shape: str, x: Tensor) -> Settings:
    """What was chosen for a kernel on the chip of x in a class of shapes; nothing where the formulas stand."""
    if kernel in _forced:
        return _forced[kernel]
    chip = capability(x)
    return _table(default_path()).get((kernel, chip, shape), {}) if chip else {}
