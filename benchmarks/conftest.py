"""What every benchmark needs: its files are found by name, and a candidate is timed only when its audit is green."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

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
