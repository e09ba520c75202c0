"""``python -m assay.benchmarks.offline``: what the compiler makes of every kernel, without any GPU.

Compiles the kernels for the shapes of the comparison and for every chip, and fails where one uses stack, spills, reads
or writes in pieces, or takes more registers than it may, or than ``docs/kernels.json`` says it took. ``--write`` stores
what was found there and in ``docs/kernels.md``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from assay.audits.compile import ARCHITECTURES, CompileReport, OfflineError
from assay.benchmarks.machine import version

SETS = ("rotary", "cross_entropy", "masked_regression")
"""The files of ``benchmarks/compiled``.

Each has ``jobs`` and ``few`` (what tests compile), ``page`` (what the page shows), ``compile_one(*job)``,
``check(job, report)``, and ``work(job)`` and ``title(job)`` of the page's.
"""
STORED = Path("docs/kernels.json")
PAGE = Path("docs/kernels.md")
Job = tuple[Any, ...]
"""What ``compile_one`` of a set takes; the chip comes last."""


@dataclass(frozen=True)
class Compiled:
    """One kernel of a set, compiled."""

    family: str
    job: Job
    report: CompileReport

    @property
    def name(self) -> str:
        """As it stands in messages and in the stored file."""
        return _name(self.family, self.job)


def load(family: str) -> Any:
    """The module of a set."""
    return importlib.import_module(f"assay.benchmarks.compiled.{family}")


def compile_jobs(family: str, jobs: Sequence[Job], processes: int = 2) -> dict[Job, CompileReport]:
    """The reports of all jobs, from child processes whose Triton does not interpret.

    Raises:
        OfflineError: a child failed; its error is on stderr.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "assay.benchmarks.offline", "--child", family],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        ) for _ in range(processes)
    ]  # fmt: skip
    for at, child in enumerate(children):
        assert child.stdin is not None
        child.stdin.write(json.dumps(list(jobs[at::processes])))
        child.stdin.close()
    reports: dict[Job, CompileReport] = {}
    for child in children:
        assert child.stdout is not None
        output = child.stdout.read()
        if child.wait():
            raise OfflineError(f"compiling {family} failed with status {child.returncode}; its error is above")
        reports |= {tuple(job): _report(fields) for job, fields in json.loads(output)}
    return {job: reports[job] for job in jobs}


def _report(fields: Mapping[str, Any]) -> CompileReport:
    return CompileReport(**{**fields, "loops": tuple(map(tuple, fields["loops"]))})


def _child(family: str) -> None:
    """Compile the jobs that stdin lists and print their reports."""
    compile_one = load(family).compile_one
    print(json.dumps([(job, asdict(compile_one(*job))) for job in json.load(sys.stdin)]))


def faults(found: Sequence[Compiled]) -> Iterator[str]:
    """A line for each kernel that breaks a rule of its set, or lives on the stack."""
    for each in found:
        if each.report.spilled:
            yield f"{each.name}: {each.report.stack} bytes of stack, {each.report.spills} spills"
        try:
            load(each.family).check(each.job, each.report)
        except AssertionError as error:
            yield f"{each.family}: {error}"


def grown(found: Sequence[Compiled], stored: Mapping[str, Any]) -> Iterator[str]:
    """A line for each kernel that takes more registers than the stored file allows.

    Another release of Triton compiles otherwise: then nothing is said.
    """
    if stored["triton"] != version("triton"):
        return
    before = {name: CompileReport(**fields).registers for name, fields in stored["kernels"].items()}
    for each in found:
        if each.report.registers > before.get(each.name, each.report.registers):
            yield f"{each.name}: {each.report.registers} registers, {before[each.name]} are stored in {STORED}"


def to_json(found: Sequence[Compiled]) -> str:
    """The stored file, one kernel a line, so that a commit shows which of them it changed."""
    lines = ",\n".join(f"  {json.dumps(each.name)}: {json.dumps(asdict(each.report))}" for each in found)
    return f'{{\n "triton": "{version("triton")}",\n "kernels": {{\n{lines}\n }}\n}}\n'


def from_json(text: str) -> list[Compiled]:
    """The kernels of the stored file that the sets still have."""
    reports = {name: _report(fields) for name, fields in json.loads(text)["kernels"].items()}
    asked = [(family, job) for family in SETS for job in load(family).page(ARCHITECTURES)]
    return [Compiled(family, job, reports[name]) for family, job in asked if (name := _name(family, job)) in reports]


def _name(family: str, job: Job) -> str:
    return " ".join(map(str, (family, *job)))


def compile_all(processes: int) -> list[Compiled]:
    """Every kernel of the page, for every chip."""
    return [
        Compiled(family, job, report) for family in SETS
        for job, report in compile_jobs(family, load(family).page(ARCHITECTURES), processes).items()
    ]  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Compile and judge; the status is 1 where a gate fails."""
    from assay.benchmarks import offline_page

    parser = argparse.ArgumentParser(prog="python -m assay.benchmarks.offline", description=__doc__)
    parser.add_argument("--write", action="store_true", help="store the numbers and write the page")
    parser.add_argument("--page", action="store_true", help="write the page from the stored numbers, compiling nothing")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--child", choices=SETS, help=argparse.SUPPRESS)
    told = parser.parse_args(arguments)
    if told.child:
        _child(told.child)
        return 0
    found = from_json(STORED.read_text()) if told.page else compile_all(told.processes)
    wrong = list(faults(found))
    if told.write:
        STORED.write_text(to_json(found))
    if told.write or told.page:
        triton = json.loads(STORED.read_text())["triton"]
        PAGE.write_text("\n".join(offline_page.page(found, triton)) + "\n")
    elif STORED.exists():
        wrong += grown(found, json.loads(STORED.read_text()))
    print("\n".join([*wrong, f"{len(found)} launches judged, {len(wrong)} gates failed"]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
