"""The files of a guard: what a checked step showed, as tensors (safetensors) and a record (JSON) beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import assay
from assay.audits.guard_terms import Live
from assay.audits.usage import BadUsage

FORMAT = "assay-guard-1"
NEEDED = {"facts", "findings", "frozen", "left_out", "micros", "parts", "rank", "step", "tensors", "texts", "versions"}
MOST_BYTES = 1 << 29
"""A tensor that is larger is left out of the file, which says so."""


class Shelf:
    """A folder of at most ``keep`` batches of a process, those of earlier runs included."""

    def __init__(self, folder: Path, keep: int, rank: int) -> None:
        """Nothing is made before something is written."""
        self._folder, self._keep, self._rank = folder, keep, rank

    def write(self, live: Live, media: Mapping[str, Tensor], step: int) -> Path | None:
        """Write a batch; its JSON file, which is complete once it is there. None where the folder is full."""
        self._folder.mkdir(parents=True, exist_ok=True)
        held = list(self._folder.glob(f"*-rank-{self._rank}*.json"))
        if len(held) >= self._keep:
            return None
        path = self._free(f"step-{step:07d}-rank-{self._rank}")
        left = sorted(name for name, value in media.items() if value.numel() * value.element_size() > MOST_BYTES)
        tensors = {name: value for name, value in {**media, **live.tensors}.items() if name not in left}
        record = {**live.record, "format": FORMAT, "step": step, "left_out": left, "versions": _versions()}
        record["tensors"] = path.with_suffix(".safetensors").name
        told = json.dumps(record, indent=1).encode()
        _put(path.with_suffix(".safetensors"), _packed(tensors))
        try:
            _put(path, told)
        except OSError:
            path.with_suffix(".safetensors").unlink(missing_ok=True)
            raise
        return path

    def _free(self, name: str) -> Path:
        """A name that is not taken: a run may be started again in the same folder."""
        path, number = self._folder / f"{name}.json", 1
        while path.exists():
            number += 1
            path = self._folder / f"{name}-{number}.json"
        return path


def _packed(tensors: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save

    found: bytes = save({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()})
    return found


def _put(path: Path, content: bytes) -> None:
    """Write a file whole: under another name, which is then changed."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _versions() -> dict[str, str]:
    found = {"assay": assay.__version__}
    for name in ("torch", "transformers", "accelerate", "peft", "trl"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def load(path: Path) -> Live:
    """What a guard wrote, by either of its two files. BadUsage says what is wrong with it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        record: dict[str, Any] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            message = f"{path}: no batch that a guard wrote: expected the format {FORMAT}"
            raise BadUsage(message)
        if lacking := NEEDED - set(record):
            message = f"{path}: cannot be read: it lacks {', '.join(sorted(lacking))}"
            raise BadUsage(message)
        tensors = load_file(path.with_suffix(".json").with_name(record["tensors"]), device=str(torch.device("cpu")))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        message = f"{path}: cannot be read: {error}"
        raise BadUsage(message) from error
    return Live(tensors, record)
