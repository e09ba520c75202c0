"""Compile Triton kernels for NVIDIA chips that are not here, and read from the machine code what they would cost.

`offline(90)` stands in for the driver of an sm_90 chip: inside it, launching a kernel compiles it and runs nothing, so
the host code under inspection chooses its own tile sizes and its tensors' strides decide what the compiler may assume.
That a kernel compiles without spills says nothing about its results; those are judged elsewhere.
"""

# mypy: disable-error-code="import-untyped"
# Triton ships neither stubs nor py.typed.

from __future__ import annotations

import math
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from assay.audits import machine_code

ARCHITECTURES = (80, 90, 100)
"""A100, H100 and H200, B200."""


@dataclass(frozen=True)
class CompileReport:
    """What one compiled kernel takes from a chip. Numbers are per thread, but `shared` is bytes per program."""

    kernel: str
    arch: int
    registers: int
    stack: int
    shared: int
    spills: int
    """Loads and stores of local memory (LDL, STL)."""
    wide_loads: int
    """128-bit loads from global memory (LDG.E.128)."""
    narrow_loads: int
    wide_stores: int
    """128-bit stores to global memory (STG.E.128)."""
    narrow_stores: int
    late_loads: int
    """Loads from global memory that stand after the first store to it, and may have to wait for it."""
    instructions: int
    special: int = 0
    """Instructions for the unit of special functions (MUFU, conversions)."""
    loops: tuple[tuple[int, int], ...] = ()
    """(instructions, special ones) of one turn of each loop, in their order."""
    in_flight: int = 0
    """Bytes of global memory that a thread has asked for at once."""
    warps: int = 0
    """Of one program."""
    programs: int = 0
    """Of the launch."""

    @property
    def spilled(self) -> bool:
        """Whether any value lives in local memory instead of a register."""
        return bool(self.stack or self.spills)


class OfflineError(RuntimeError):
    """Nothing could be compiled: no Triton, an interpreting Triton, or one whose internals this file does not know."""


class _AbsentDriver:
    """What Triton asks a driver before it compiles."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_device(self) -> int:
        """A device number per chip: Triton keeps its compiled kernels by device."""
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.arch, 32)


@contextmanager
def offline(arch: int) -> Iterator[list[CompileReport]]:
    """Launches inside the block compile for sm_`arch` and run nothing; their reports appear in the list.

    The list is complete when the block ends. Tensors may live on the meta device: only their dtypes, strides and (as
    all meta tensors start at 0) perfect alignment are looked at. Not for several threads at once.

    Raises OfflineError where Triton is missing or decorated the kernels for its interpreter.
    """
    try:
        import triton
        from triton.runtime.driver import driver
        from triton.runtime.jit import JITFunction
    except ImportError as error:
        raise OfflineError(f"offline compilation needs Triton 3.5 to 3.9: {error}") from error
    if triton.knobs.runtime.interpret:
        raise OfflineError(
            "TRITON_INTERPRET=1 is set, so kernels are decorated for the interpreter and cannot be compiled"
        )
    launched: list[tuple[Any, int]] = []
    reports: list[CompileReport] = []
    run, before = JITFunction.run, driver._active

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        launched.append((kernel, math.prod(grid)))
        return kernel

    JITFunction.run = compile_only
    driver.set_active(_AbsentDriver(arch))
    try:
        yield reports
    finally:
        JITFunction.run = run
        driver._active = before
    for kernel, programs in launched:
        report = inspect_cubin(kernel.metadata.name, arch, kernel.asm["cubin"])
        reports.append(replace(report, warps=kernel.metadata.num_warps, programs=programs))


def inspect_cubin(name: str, arch: int, cubin: bytes) -> CompileReport:
    """Read registers, stack and shared memory from a cubin's header and read its code. Neither tells the launch."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        header = _tool("cuobjdump", "--dump-resource-usage", str(path))
        listing = _tool("nvdisasm", "-c", str(path))
    resources = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|SHARED):(\d+)", header)}
    code = machine_code.instructions(listing)
    opcodes = [each.opcode for each in code]

    def count(pattern: str) -> int:
        return sum(re.match(pattern, opcode) is not None for opcode in opcodes)

    first_store = next((at for at, opcode in enumerate(opcodes) if opcode.startswith("STG")), len(opcodes))
    wide_loads, wide_stores = count(r"LDG\.(\w+\.)*128"), count(r"STG\.(\w+\.)*128")
    return CompileReport(
        kernel=name, arch=arch, registers=resources["REG"], stack=resources["STACK"], shared=resources["SHARED"],
        spills=count(r"LDL|STL"), wide_loads=wide_loads, narrow_loads=count("LDG") - wide_loads,
        wide_stores=wide_stores, narrow_stores=count("STG") - wide_stores,
        late_loads=sum(opcode.startswith("LDG") for opcode in opcodes[first_store:]),
        instructions=len(code), special=machine_code.special(code), loops=machine_code.loops(code),
        in_flight=machine_code.bytes_in_flight(code),
    )  # fmt: skip


def _tool(name: str, *arguments: str) -> str:
    """The output of a CUDA tool from Triton's own wheel."""
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    if not path.exists():
        raise OfflineError(f"Triton {triton.__version__} brings no {name}: {path} is missing")
    return subprocess.run([path, *arguments], check=True, capture_output=True, text=True).stdout


def table(reports: Mapping[str, CompileReport]) -> str:
    """The reports as aligned text, one line each under the name that it goes by."""
    heads = ("what", "chip", "regs", "stack", "spills", "shared", "LDG.128", "LDG", "STG.128", "STG", "late", "code")
    rows = [heads] + [
        (
            name, f"sm_{r.arch}", f"{r.registers}", f"{r.stack}", f"{r.spills}", f"{r.shared}", f"{r.wide_loads}",
            f"{r.narrow_loads}", f"{r.wide_stores}", f"{r.narrow_stores}", f"{r.late_loads}", f"{r.instructions}",
        )
        for name, r in reports.items()
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
