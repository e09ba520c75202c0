"""What every benchmark needs: its files are found by name, and a candidate is timed only when its audit is green."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import cache
from pathlib import Path

import pytest
from pytest_benchmark.session import PerformanceRegression

from assay.audits import registry
from assay.audits.choose import Request, UsageError, plan
from assay.audits.render import tables
from assay.audits.run import Options, audit
from assay.audits.terms import Candidate, Operation, Verdict
from assay.benchmarks import admission
from assay.benchmarks.nouns import Offer, Provider

Green = Callable[[str, str], tuple[Operation, Candidate]]
"""From the names of an operation and of a candidate to both, once the candidate has passed."""
Judged = Callable[[str, Provider, Offer], str]
"""From an operation, a provider and its offer to why it is not timed; empty where it is."""


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Benchmarks are files named ``bench_*.py``: the test suite does not collect them."""
    return pytest.Module.from_parent(parent, path=file_path) if file_path.match("bench_*.py") else None


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None, None, None]:
    """Say it in a line where pytest-benchmark, which has named the slower ones, ends in a traceback."""
    try:
        yield
    except PerformanceRegression:
        kept = _set_aside(terminalreporter.config)
        pytest.exit(f"slower than the stored run: the names and the numbers are above{kept}", returncode=1)


def _set_aside(config: pytest.Config) -> str:
    """The run that was slower is not what the next one is compared with: else it would be forgotten by then."""
    session = config._benchmarksession  # type: ignore[attr-defined]  # noqa: SLF001 - pytest-benchmark's only door
    if not (session.autosave or session.save):
        return ""
    newest = max(Path(session.storage.path).glob("*/*.json"), key=lambda path: path.stat().st_mtime)
    slower = newest.rename(newest.with_suffix(".slower"))
    return f". It is kept as {slower.name}, to which nothing is compared; rename it to .json to accept it"


@pytest.fixture(scope="session")
def green() -> Green:
    """Audit a candidate once in a session, and refuse to time it unless it passes."""
    return cache(_green)


@pytest.fixture(scope="session")
def judged() -> Judged:
    """Audit the function of a provider once in a session; why it is not timed, or nothing."""
    return cache(lambda *asked: admission.red(*asked)[0])


def _green(operation_name: str, name: str) -> tuple[Operation, Candidate]:
    operation = registry.operation(operation_name)
    try:
        [(_, candidate)] = plan(Request(targets=(operation_name,), candidate=name))
    except UsageError as error:
        pytest.fail(str(error), pytrace=False)
    report = audit(operation, candidate, Options(examples=2))
    if report.verdict > Verdict.WAIVED:
        rules = ", ".join(sorted({finding.rule for finding in report.findings}))
        said = f"{report.verdict.name}, {tables.counts_line(report)}: {rules}"
        pytest.fail(f"{operation_name} {name} is not timed, its audit is not green: {said}", pytrace=False)
    return operation, candidate
