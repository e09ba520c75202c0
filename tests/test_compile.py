"""What the mRoPE kernels cost on A100, H100/H200 and B200, compiled here without any of them.

Compiling needs kernels that are not decorated for the interpreter, so the grid is compiled by child processes that run
this file; `python tests/test_compile.py` prints the table.
"""

import functools
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import pytest
import torch

from assay.audits.compile import ARCHITECTURES, CompileReport, OfflineError, offline, table

TOKENS = 4096


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
LAYOUTS = ("view", "packed")
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


def grid(archs: tuple[int, ...]) -> list[tuple[Any, ...]]:
    """Every shape and dtype through both rotations; packed QKV and the tables kernel for few, as they hardly differ."""
    every = product(KERNELS[:2], SHAPES, DTYPES, ("view",), archs)
    packed = product(KERNELS[:2], ("28/4",), DTYPES, ("packed",), archs)
    tables = product(KERNELS[2:], ("28/4", "vision"), DTYPES, ("view",), archs)
    return [*every, *packed, *tables]


def compile_grid(jobs: list[tuple[Any, ...]], processes: int = 2) -> dict[str, CompileReport]:
    """The reports of all jobs by name, from child processes whose Triton does not interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    children = [
        subprocess.Popen(
            [sys.executable, __file__, json.dumps(jobs[at::processes])],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for at in range(processes)
    ]
    reports: dict[str, CompileReport] = {}
    for child in children:
        output, _ = child.communicate()
        assert child.returncode == 0, f"compiling failed with status {child.returncode}; its error is above"
        reports |= {name: CompileReport(**fields) for name, fields in json.loads(output).items()}
    return dict(sorted(reports.items()))


def check(reports: dict[str, CompileReport]) -> None:
    """No spill, 16 bytes per access, every load ahead of the first store, and no more registers than the shape's."""
    print("\n" + table(reports))
    assert reports
    for name, report in reports.items():
        kernel, shape = name.split(" ")[:2]
        assert not report.spilled, f"{name} spills: {report}"
        assert report.wide_stores and not report.narrow_stores, f"{name} stores in pieces: {report}"
        assert report.late_loads == 0, f"{name} loads after it has begun to store: {report}"
        if kernel == "positions-to-tables":
            assert report.registers <= 64, f"{name} needs {report.registers} registers"
        else:
            data_loads = report.wide_stores  # each piece that is stored was loaded, with the same width
            assert report.wide_loads >= data_loads, f"{name} loads in pieces: {report}"
            assert report.registers <= SHAPES[shape].registers, f"{name} needs {report.registers} registers"


@pytest.mark.timeout(600)
def test_hopper() -> None:
    check(compile_grid(grid((90,))))


@pytest.mark.timeout(600)
def test_other_chips_with_the_shapes_that_differ_most() -> None:
    shapes = ("28/4", "vision", "partial")
    check(compile_grid(list(product(KERNELS[:2], shapes, ("bf16",), ("view",), (80, 100)))))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_full_grid() -> None:
    check(compile_grid(grid(ARCHITECTURES)))


def test_a_spilling_kernel_would_be_caught(tmp_path: Any) -> None:
    """One program that holds 64K numbers in 128 threads must be seen to spill, else the checks above say nothing."""
    source = tmp_path / "greedy.py"
    source.write_text(GREEDY)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    output = subprocess.run(
        [sys.executable, source], capture_output=True, text=True, env=environment, check=True
    ).stdout
    report = CompileReport(**json.loads(output))
    assert report.spilled
    assert report.stack > 0
    assert report.spills > 0
    assert report.late_loads > 0


GREEDY = """
import json
from dataclasses import asdict
import torch, triton
import triton.language as tl
from assay.audits.compile import offline

@triton.jit
def greedy(x_ptr, y_ptr, N: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, N))
    total = tl.sum(x * x)
    tl.store(y_ptr, total)
    x = x * total + tl.load(y_ptr + 1)
    tl.store(x_ptr + tl.arange(0, N), x / tl.max(x))

with offline(90) as reports:
    greedy[(1,)](torch.empty(65536, device="meta"), torch.empty(2, device="meta"), N=65536, num_warps=4)
print(json.dumps(asdict(reports[0])))
"""


def test_interpreting_triton_cannot_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(OfflineError, match="TRITON_INTERPRET"), offline(90):
        pass


if __name__ == "__main__":
    wanted = json.loads(sys.argv[1]) if len(sys.argv) > 1 else grid(ARCHITECTURES)
    done = {f"{' '.join(map(str, job))}": compile_one(*job) for job in wanted}
    print(json.dumps({name: asdict(report) for name, report in done.items()}) if len(sys.argv) > 1 else table(done))
