"""The mRoPE kernels over the shapes of real models: how each is compiled, what it may cost, what it has to do."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch

from assay.audits.compile import CompileReport, offline
from assay.benchmarks.nouns import Shape as Asked
from assay.benchmarks.operations import rotary as operation
from assay.benchmarks.predict import Work

TITLE = "Rotary: queries and keys of one layer"
NOTE = """One row of 16,384 tokens, bfloat16 tables of full width or positions; views of [B, S, H, D] storage unless
another layout is named. The least is what is rotated, read and written once, and half tables or positions. Of the
Qwen3.5-like model that is a quarter of each head: what is not in place moves four times the least, three quarters of it
for the copy. Tables made from positions are the same for all models with 64 lanes."""
TOKENS = 4096
MANY = 16384
"""Tokens of the page's shapes."""
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
    "Qwen2.5-VL-7B": Shape(28, 4),
    "Qwen3-VL-8B": Shape(32, 8, registers=112),
    "Qwen2.5-VL-72B": Shape(64, 8, registers=168),
    "Qwen2.5-VL-3B": Shape(16, 2, registers=168),
    "vision": Shape(16, 16, 80, 80, registers=80),  # no power of two: a quarter of the lanes is masked
    "Qwen3.5-like": Shape(16, 2, 256, 64, registers=208),  # three quarters of each head are copied
}
BLACKWELL = {"Qwen2.5-VL-7B": 152}
"""The most registers on sm_100 with tables in bfloat16, where they are more: three programs of four remain."""
KERNELS = ("tables", "positions", "positions to tables")
WAYS = ("forward", "forward in place", "backward")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def heads(shape: Shape, dtype: torch.dtype, layout: str, batch: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys [B, H, S, D] as attention has them.

    Transposed views of [B, S, H, D], each its own (view) or both in one QKV (packed), or stored as they are seen
    (dense).
    """
    q, k = shape.heads, shape.kv_heads
    empty = functools.partial(torch.empty, dtype=dtype, device="meta")
    if layout == "packed":
        packed = empty(batch, tokens, q + 2 * k, shape.dim).transpose(1, 2)
        return packed[:, :q], packed[:, q : q + k]
    if layout == "dense":
        return empty(batch, q, tokens, shape.dim), empty(batch, k, tokens, shape.dim)
    return tuple(empty(batch, tokens, n, shape.dim).transpose(1, 2) for n in (q, k))  # type: ignore[return-value]  # two


def compile_one(kernel: str, name: str, dtype_name: str, layout: str, arch: int) -> CompileReport:
    """Compile what the library's own launch code asks for.

    The page's kernels are named by their ways and have one long row and tables in the dtype of q, as the comparison
    does; the others have two rows and tables in fp32.
    """
    from assay.kernels import mrope_triton

    shape, dtype = SHAPES[name], DTYPES[dtype_name]
    paged = kernel.startswith((*WAYS, KERNELS[2]))
    batch, tokens = (1, MANY) if paged else (2, TOKENS)
    empty = functools.partial(torch.empty, device="meta")
    half = shape.rotated // 2
    positions, axes = empty(3, batch, tokens, dtype=torch.int64), empty(half, dtype=torch.int32)
    stored = kernel == "tables" or kernel in WAYS
    table = empty(1, batch, tokens, 2 * half, dtype=dtype) if paged else empty(1, batch, tokens, half)
    q, k = heads(shape, dtype, layout, batch, tokens)
    outs = heads(shape, dtype, "dense" if layout == "dense" else "view", batch, tokens)
    with offline(arch) as reports:
        if kernel == "positions to tables":
            made = empty(batch, tokens, half, dtype=dtype), empty(batch, tokens, half, dtype=dtype)
            mrope_triton.launch_tables(positions, empty(half), axes, *made, exact=True, scaling=1.0)
        else:
            mrope_triton.launch_rotate(
                q, k, *((q, k) if "in place" in kernel else outs),
                (table, table) if stored else (positions, empty(half)), None if stored else axes, half=half,
                adjacent=False, conjugate=kernel.startswith("backward"), from_positions=not stored,
            )  # fmt: skip
    (report,) = reports
    return report


def jobs(archs: Sequence[int]) -> list[Job]:
    """Every shape and dtype through both rotations; packed QKV and the tables kernel for few, as they hardly differ."""
    every = product(KERNELS[:2], SHAPES, DTYPES, ("view",), archs)
    packed = product(KERNELS[:2], ("Qwen2.5-VL-7B",), DTYPES, ("packed",), archs)
    tables = product(KERNELS[2:], ("Qwen2.5-VL-7B", "vision"), DTYPES, ("view",), archs)
    return [*every, *packed, *tables]


def few(archs: Sequence[int]) -> list[Job]:
    """The shapes that differ most."""
    return list(product(KERNELS[:2], ("Qwen2.5-VL-7B", "vision", "Qwen3.5-like"), ("bf16",), ("view",), archs))


def page(archs: Sequence[int]) -> list[Job]:
    """Both directions and both sources for every model of the comparison; other layouts for one."""
    ways = [way + source for source in ("", " from positions") for way in WAYS]
    models = product(ways, operation.MODELS, ("bf16",), ("view",), archs)
    layouts = product(("forward", "backward"), ("Qwen2.5-VL-7B",), ("bf16",), ("packed", "dense"), archs)
    return [*models, *layouts, *product(KERNELS[2:], ("Qwen2.5-VL-7B", "Qwen3.5-like"), ("bf16",), ("view",), archs)]


def check(job: Job, report: CompileReport) -> None:
    """16 bytes per access, every load ahead of the first store, and no more registers than the shape's."""
    kernel, shape, *_ = job
    assert report.wide_stores, f"{job} stores in pieces: {report}"
    assert not report.narrow_stores, f"{job} stores in pieces: {report}"
    assert report.late_loads == 0, f"{job} loads after it has begun to store: {report}"
    if kernel == "positions to tables":
        assert report.registers <= 64, f"{job} needs {report.registers} registers"
    else:
        data_loads = report.wide_stores  # each piece that is stored was loaded, with the same width
        assert report.wide_loads >= data_loads, f"{job} loads in pieces: {report}"
        most = BLACKWELL.get(shape, 0) if report.arch == 100 and kernel.startswith(WAYS) else 0
        most = max(most, SHAPES[shape].registers)
        assert report.registers <= most, f"{job} needs {report.registers} registers"


def work(job: Job) -> Work:
    """One pass over a row of 16,384 tokens."""
    kernel, name, dtype_name, layout, _ = job
    shape, size = SHAPES[name], DTYPES[dtype_name].itemsize
    label = name if layout == "view" else f"{name}, {layout}"
    tables, positions = MANY * shape.rotated * size, MANY * 3 * 8
    if kernel == "positions to tables":
        return Work(shape=label, tokens=MANY, floor=positions + tables, moved=positions + tables, read=positions)
    asked = Asked(model=name, tokens=MANY, settings=operation.MODELS[name])
    width = shape.rotated if "in place" in kernel else shape.dim
    data = MANY * (shape.heads + shape.kv_heads) * width * size
    source = positions if "positions" in kernel else tables
    floor = operation.floors(asked, size)["forward"].bytes - tables + source
    return Work(shape=label, tokens=MANY, floor=floor, moved=2 * data + source, read=data + source)


def title(job: Job) -> str:
    """What the page calls a kernel."""
    return job[0]
