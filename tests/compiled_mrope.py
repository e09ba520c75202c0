"""The mRoPE kernels over the shapes of real models: how `test_compile.py` compiles each, and what it may cost."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch

from assay.audits.compile import CompileReport, offline

TOKENS = 4096
Job = tuple[str, str, str, str, int]
"""Kernel, shape, dtype, layout, chip."""


@dataclass(frozen=True)
class Shape:
    """Heads and dimensions of one model, and the most registers its rotation may take."""

    heads: int
    kv_heads: int
    dim: int = 128
    rotated: int = 128
    registers: int = 128


SHAPES = {
    "28/4": Shape(28, 4),  # Qwen2.5-VL-7B
    "32/8": Shape(32, 8, registers=112),  # Qwen3-VL-8B
    "64/8": Shape(64, 8, registers=168),  # Qwen2.5-VL-72B
    "16/2": Shape(16, 2, registers=168),  # Qwen2.5-VL-3B
    "vision": Shape(16, 16, 80, 80, registers=80),  # no power of two: a quarter of the lanes is masked
    "partial": Shape(16, 2, 256, 64, registers=208),  # Qwen3.5: three quarters of each head are copied
}
KERNELS = ("tables", "positions", "positions-to-tables")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def heads(shape: Shape, dtype: torch.dtype, layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    """q and k as attention has them: transposed views of [B, S, H, D], each its own or both in one QKV."""
    q, k = shape.heads, shape.kv_heads
    if layout == "packed":
        packed = torch.empty(2, TOKENS, q + 2 * k, shape.dim, dtype=dtype, device="meta").transpose(1, 2)
        return packed[:, :q], packed[:, q : q + k]
    made = [torch.empty(2, TOKENS, n, shape.dim, dtype=dtype, device="meta").transpose(1, 2) for n in (q, k)]
    return made[0], made[1]


def compile_one(kernel: str, name: str, dtype_name: str, layout: str, arch: int) -> CompileReport:
    """Compile what the library's own launch code asks for."""
    from assay.kernels import mrope_triton

    shape, dtype = SHAPES[name], DTYPES[dtype_name]
    empty = functools.partial(torch.empty, device="meta")
    half = shape.rotated // 2
    positions, axes = empty(3, 2, TOKENS, dtype=torch.int64), empty(half, dtype=torch.int32)
    with offline(arch) as reports:
        if kernel == "positions-to-tables":
            outs = empty(2, TOKENS, half, dtype=dtype), empty(2, TOKENS, half, dtype=dtype)
            mrope_triton.launch_tables(positions, empty(half), axes, *outs, exact=True, scaling=1.0)
        else:
            stored = kernel == "tables"
            sources = (empty(1, 2, TOKENS, half),) * 2 if stored else (positions, empty(half))
            mrope_triton.launch_rotate(
                *heads(shape, dtype, layout), *heads(shape, dtype, "view"), sources, None if stored else axes,
                half=half, adjacent=False, conjugate=False, from_positions=not stored,
            )  # fmt: skip
    (report,) = reports
    return report


def jobs(archs: Sequence[int]) -> list[Job]:
    """Every shape and dtype through both rotations; packed QKV and the tables kernel for few, as they hardly differ."""
    every = product(KERNELS[:2], SHAPES, DTYPES, ("view",), archs)
    packed = product(KERNELS[:2], ("28/4",), DTYPES, ("packed",), archs)
    tables = product(KERNELS[2:], ("28/4", "vision"), DTYPES, ("view",), archs)
    return [*every, *packed, *tables]


def few(archs: Sequence[int]) -> list[Job]:
    """The shapes that differ most."""
    return list(product(KERNELS[:2], ("28/4", "vision", "partial"), ("bf16",), ("view",), archs))


def check(job: Job, report: CompileReport) -> None:
    """16 bytes per access, every load ahead of the first store, and no more registers than the shape's."""
    kernel, shape, *_ = job
    assert report.wide_stores and not report.narrow_stores, f"{job} stores in pieces: {report}"
    assert report.late_loads == 0, f"{job} loads after it has begun to store: {report}"
    if kernel == "positions-to-tables":
        assert report.registers <= 64, f"{job} needs {report.registers} registers"
    else:
        data_loads = report.wide_stores  # each piece that is stored was loaded, with the same width
        assert report.wide_loads >= data_loads, f"{job} loads in pieces: {report}"
        assert report.registers <= SHAPES[shape].registers, f"{job} needs {report.registers} registers"
