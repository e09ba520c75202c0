"""The pytest plugin: audits as tests. Nothing heavy is imported before a test asks for ``assay_audit``.

A test audits an implementation and fails with what was found::

    def test_my_rotation(assay_audit):
        assay_audit.clean("mrope.rotate", "mytrain.rope:rotate")

Options ``--assay-seed`` and ``--assay-examples``, ini keys ``assay_seed``, ``assay_examples`` and ``assay_waivers``,
marker ``@pytest.mark.assay(seed=..., examples=..., laws=...)``: the marker wins over the option, that over the ini key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from assay.audits.terms import Report

MARKER = "assay(seed, examples, laws, cases, dtypes, device, time_limit): how assay_audit audits in this test"
PROPERTY = "assay: "
"""What the names of the properties begin with that a finding leaves on its test, in JUnit XML too."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options and the ini keys."""
    group = parser.getgroup("assay", "audits of training components")
    group.addoption("--assay-seed", type=int, default=None, metavar="N", help="seed of the searched cases")
    group.addoption("--assay-examples", type=int, default=None, metavar="N", help="cases to search for each dtype")
    parser.addini("assay_seed", "seed of the searched cases (default 0)", default="0")
    parser.addini("assay_examples", "cases to search for each dtype (default 20)", default="20")
    parser.addini("assay_waivers", "waiver file, relative to the root directory", default="")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", MARKER)


@dataclass(frozen=True)
class Auditor:
    """What the fixture ``assay_audit`` gives to a test."""

    request: pytest.FixtureRequest

    def __call__(
        self, operation: str, candidate: str | Callable[..., Any], *, form: str | None = None, **options: Any
    ) -> Report:
        """Audit a function, given itself or as ``package.module:function``; ``options`` are those of an audit."""
        from assay.audits import address, session
        from assay.audits.choose import Request
        from assay.audits.run import Options

        ref = candidate if isinstance(candidate, str) else address.of(candidate)
        asked = Request(targets=(operation,), candidate=ref, form=form, families=(), patch=None)
        found = session.conduct(asked, Options(**(self._defaults() | options)))
        report = session.excused(found, self._waivers())
        self._remember(report)
        return report

    def clean(self, operation: str, candidate: str | Callable[..., Any], **options: Any) -> Report:
        """Audit, and fail the test with the findings unless the verdict is pass or waived."""
        __tracebackhide__ = True
        report = self(operation, candidate, **options)
        assert_clean(report)
        return report

    def _defaults(self) -> dict[str, Any]:
        config = self.request.config
        chosen: dict[str, Any] = {}
        for name in ("seed", "examples"):
            option = config.getoption(f"assay_{name}")
            chosen[name] = _whole(config, f"assay_{name}") if option is None else option
        for marker in reversed(list(self.request.node.iter_markers("assay"))):
            chosen |= {key: tuple(v) if isinstance(v, list) else v for key, v in marker.kwargs.items()}
        return chosen

    def _waivers(self) -> tuple[Any, ...]:
        from assay.audits import session

        named = self.request.config.getini("assay_waivers")
        return session.excuses(self.request.config.rootpath / Path(named)) if named else ()

    def _remember(self, report: Report) -> None:
        from assay.audits.render import tables

        for f in tables.worst_first(report.findings):
            told = f"{f.verdict.name} {f.candidate}: {tables.place(f)}, {tables.circumstances(f)}: measured "
            told += tables.compared(f)
            self.request.node.user_properties.append((f"{PROPERTY}{f.rule}", told))


def _whole(config: pytest.Config, name: str) -> int:
    text = config.getini(name)
    try:
        return int(text)
    except ValueError as error:
        message = f"{name}: expected a whole number, got {text!r}"
        raise pytest.UsageError(message) from error


def assert_clean(report: Report) -> None:
    """Fail the test with the findings of a report unless its verdict is pass or waived."""
    __tracebackhide__ = True
    from assay.audits.render import tables, terminal
    from assay.audits.terms import Verdict

    if report.verdict > Verdict.WAIVED:
        head = f"assay: {report.verdict.name}, {tables.counts_line(report)}"
        pytest.fail(f"{head}\n{terminal.findings(report)}".rstrip(), pytrace=False)


@pytest.fixture
def assay_audit(request: pytest.FixtureRequest) -> Auditor:
    """Audit a candidate of an operation: call it for a report, or its ``clean`` to fail with what was found."""
    return Auditor(request)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the findings of all tests."""
    lines = sorted(set(_findings(terminalreporter)))
    if lines:
        terminalreporter.section("assay findings")
    for line in lines:
        terminalreporter.write_line(line)


def _findings(reporter: pytest.TerminalReporter) -> Iterator[str]:
    """From the reports of the tests' teardown, which carry every property once, under xdist too."""
    for item in [item for items in reporter.stats.values() for item in items]:
        if getattr(item, "when", None) == "teardown" or getattr(item, "failed", False):
            for name, told in getattr(item, "user_properties", ()):
                if str(name).startswith(PROPERTY):
                    yield f"{item.nodeid}  {str(name).removeprefix(PROPERTY)}  {told}"
