"""What a run was measured on: device, versions, and the two ceilings that every row is a share of."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import assay
from assay.benchmarks import graphs

OWN = "vlm-assay"
PACKAGES = (
    OWN, "torch", "triton", "transformers", "liger-kernel", "cut-cross-entropy", "fla-core", "flash-linear-attention",
    "quack-kernels", "numpy",
)  # fmt: skip
COPY = 1 << 30
"""Elements of bfloat16 that are copied on a GPU."""
SIDE = 8192
"""Rows, columns and depth of the matrix product on a GPU."""
REPEATS = 10
WARM = 0.5
"""Seconds that a GPU works before its ceilings are measured: idle ones are clocked down."""


def place() -> str:
    """``cuda``, ``interpreter`` or ``cpu``: what this process can measure on."""
    if torch.cuda.is_available():
        return "cuda"
    return "interpreter" if os.environ.get("TRITON_INTERPRET") == "1" else "cpu"


def dtype_on(device: torch.device) -> torch.dtype:
    """What problems are made in: bfloat16 on a GPU, float32 on a CPU."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """Bytes per second of a large copy, read and written together, and floating-point operations per second.

    The product is of bfloat16 matrices on a GPU and of float32 ones on a CPU, of random numbers.
    """

    bandwidth: float
    rate: float

    def least(self, moved: int, computed: int) -> float:
        """Microseconds that so many bytes and operations take at the ceilings, whichever takes longer."""
        return 1e6 * max(moved / self.bandwidth, computed / self.rate)


def version(package: str) -> str:
    """The installed version, or an empty string. This package may also be on the import path alone."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return assay.__version__ if package == OWN else ""


def _median(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the median of some calls, after some that are not counted; timed as everything else is."""
    timed = graphs.seconds if device.type == "cuda" else _clocked
    start = time.perf_counter()
    timed(run)
    while device.type == "cuda" and time.perf_counter() - start < WARM:
        timed(run)
    return statistics.median(timed(run) for _ in range(REPEATS))


def _clocked(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def ceilings(device: torch.device) -> Ceilings:
    """Both ceilings, measured now; about two seconds."""
    large = device.type == "cuda"
    dtype = torch.bfloat16 if large else torch.float32
    count, side = (COPY, SIDE) if large else (COPY >> 5, SIDE >> 3)
    bandwidth = _bandwidth(count, dtype, device)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    rate = 2 * side**3 / _median(lambda: a @ b, device)
    return Ceilings(bandwidth=bandwidth, rate=rate)


def _bandwidth(count: int, dtype: torch.dtype, device: torch.device) -> float:
    source = torch.randn(count, device=device, dtype=dtype)
    target = torch.empty_like(source)
    return 2 * source.numel() * source.element_size() / _median(lambda: target.copy_(source), device)


def describe(device: torch.device, found: Ceilings) -> dict[str, Any]:
    """The head of a stored run."""
    facts: dict[str, Any] = {
        "device": device.type,
        "name": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "copy_tb_per_s": round(found.bandwidth / 1e12, 4),
        "tflop_per_s": round(found.rate / 1e12, 3),
        "product": "bfloat16" if device.type == "cuda" else "float32",
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "interpreter": os.environ.get("TRITON_INTERPRET") == "1",
        "versions": {name: version(name) for name in PACKAGES if version(name)},
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "l2_mib": round(properties.L2_cache_size / 2**20, 1),
            "cuda": torch.version.cuda,
        }
    for name, told in (("commit", _commit), ("clock_mhz", _clock)):
        if found_out := told():
            facts[name] = found_out
    return facts


def _commit() -> str:
    """Of the checkout this runs in; empty where there is none, or no git."""
    asked = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "--short=12", "HEAD"]
    with suppress(OSError):
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    return ""


def _clock() -> int:
    """MHz of the GPU just after it worked; 0 where nobody tells."""
    if torch.cuda.is_available():
        with suppress(Exception):  # the vendor's library may be absent, or not allowed
            return int(torch.cuda.clock_rate())
    return 0


def _processor() -> str:
    """The processor's name by the kernel, where it tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or 'CPU'}, {torch.get_num_threads()} threads"
