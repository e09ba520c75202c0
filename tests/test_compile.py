"""What the kernels cost on A100, H100/H200 and B200, compiled here without any of them.

Each file of `benchmarks/compiled` says which kernels are compiled for which shapes (`jobs`, and `few` of them for the
chips that differ less), how (`compile_one`), and what each may cost (`check`). Compiling needs kernels that are not
decorated for the interpreter, so jobs are compiled by child processes. `nox -s compile` compiles those of the page.
"""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from assay.audits.compile import ARCHITECTURES, CompileReport, OfflineError, offline, table
from assay.benchmarks.offline import SETS, Compiled, Job, compile_jobs, faults, load


def check(name: str, jobs: list[Job]) -> None:
    """No stack and no spill in any kernel, and what its own file asks for."""
    reports = compile_jobs(name, jobs)
    print("\n" + table({" ".join(map(str, job)): report for job, report in reports.items()}))
    assert reports
    assert not list(faults([Compiled(name, job, report) for job, report in reports.items()]))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SETS)
def test_hopper(name: str) -> None:
    check(name, load(name).jobs((90,)))


@pytest.mark.timeout(600)
@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_other_chips(name: str) -> None:
    check(name, load(name).few((80, 100)))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SETS)
def test_full_grid(name: str) -> None:
    check(name, load(name).jobs(ARCHITECTURES))


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
