"""The pytest plugin: what its fixture asks the judge, how it fails, what it leaves behind, and what it costs unused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from assay.audits import address, session
from assay.audits.choose import Request
from assay.audits.render import terminal
from assay.audits.render.example import CANDIDATE, FAR, REPORT
from assay.audits.run import Options
from assay.audits.terms import Report, Verdict
from assay.audits.usage import BadUsage

pytest_plugins = ["pytester"]

CLEAN = replace(REPORT, findings=(), checks=REPORT.checks[4:6])
BROKEN = replace(CLEAN, findings=(FAR,))
TEST = """
import pytest

def rotate(q):
    return q

{marker}
def test_it(assay_audit):
    {body}
"""


@dataclass
class Judge:
    """Stands in for the judge."""

    answer: Report = CLEAN
    asked: list[tuple[Request, Options]] = field(default_factory=list)

    def conduct(self, request: Request, options: Options) -> Report:
        """Remember what was asked, and answer."""
        self.asked.append((request, options))
        return self.answer


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Judge:
    """A judge that answers at once.

    pytester forgets the modules that an inner run imports: rich must be loaded before, or its halves do not fit.
    """
    terminal.render(REPORT)
    fake = Judge()
    monkeypatch.setattr(session, "conduct", fake.conduct)
    return fake


def _run(
    pytester: pytest.Pytester, *arguments: str, body: str = "assay_audit.clean('mrope.rotate', 'm:f')", marker: str = ""
) -> pytest.RunResult:
    pytester.makepyfile(TEST.format(body=body, marker=marker))
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", *arguments)


def test_a_clean_candidate_passes(pytester: pytest.Pytester, judge: Judge) -> None:
    result = _run(pytester)
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*assay findings*")
    assert judge.asked == [
        (
            Request(targets=("mrope.rotate",), candidate="m:f", form=None, families=(), patch=None),
            Options(seed=0, examples=20),
        )
    ]


def test_a_broken_candidate_fails_with_what_was_found(pytester: pytest.Pytester, judge: Judge) -> None:
    judge.answer = BROKEN
    result = _run(pytester)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "assay: FAIL, 1 failed, 0 unknown, 0 waived; *",
            f"FAIL  {FAR.rule}  {CANDIDATE}",
            "  measured 0.813, limit 0.00781",
            f"  $ {FAR.repro}",
            "*= assay findings =*",
            f"*::test_it  {FAR.rule}  FAIL {CANDIDATE}: q[[]0, 3, 40000, 17[]]*",
        ]
    )
    assert str(result.stdout).count("::test_it  mrope.rotate.parity") == 1


@pytest.mark.parametrize(("verdict", "outcome"), [(Verdict.UNKNOWN, "failed"), (Verdict.WAIVED, "passed")])
def test_unknown_fails_and_waived_passes(
    pytester: pytest.Pytester, judge: Judge, verdict: Verdict, outcome: str
) -> None:
    judge.answer = replace(CLEAN, findings=(replace(FAR, verdict=verdict),))
    result = _run(pytester)
    result.assert_outcomes(**{outcome: 1})
    result.stdout.fnmatch_lines([f"*::test_it  {FAR.rule}  {verdict.name} *"])


def test_a_report_can_be_looked_at_without_failing(pytester: pytest.Pytester, judge: Judge) -> None:
    judge.answer = BROKEN
    body = "assert assay_audit('mrope.rotate', rotate).verdict.name == 'FAIL'"
    _run(pytester, body=body).assert_outcomes(passed=1)
    ((request, _),) = judge.asked
    assert str(request.candidate).endswith(":rotate")


def test_the_marker_wins_over_the_option_and_that_over_the_ini_key(pytester: pytest.Pytester, judge: Judge) -> None:
    pytester.makeini("[pytest]\nassay_seed = 1\nassay_examples = 2\n")
    _run(pytester)
    _run(pytester, "--assay-seed", "3", "--assay-examples", "4")
    _run(pytester, "--assay-seed", "3", marker="@pytest.mark.assay(seed=5, laws=['norm'])")
    _run(pytester, body="assay_audit('mrope.rotate', 'm:f', seed=6)", marker="@pytest.mark.assay(seed=5)")
    asked = [(options.seed, options.examples, options.laws) for _, options in judge.asked]
    assert asked == [(1, 2, ()), (3, 4, ()), (5, 2, ("norm",)), (6, 2, ())]


def test_an_ini_key_that_is_no_number_is_named(pytester: pytest.Pytester, judge: Judge) -> None:
    pytester.makeini("[pytest]\nassay_seed = seven\n")
    result = _run(pytester)
    assert judge.asked == []
    result.stdout.fnmatch_lines(["*assay_seed: expected a whole number, got 'seven'"])


def test_waivers_of_the_ini_key_are_applied(pytester: pytest.Pytester, judge: Judge) -> None:
    judge.answer = BROKEN
    fields = {"rule": FAR.rule, "candidate": "*", "reason": "r", "issue": "i", "until": session.today().isoformat()}
    text = "".join(f'{key} = "{value}"\n' for key, value in fields.items())
    (pytester.path / "mine.toml").write_text(f"[[waiver]]\n{text}worst = 1\n", encoding="utf-8")
    pytester.makeini("[pytest]\nassay_waivers = mine.toml\n")
    _run(pytester).assert_outcomes(passed=1)


def test_findings_are_in_the_junit_file(pytester: pytest.Pytester, judge: Judge) -> None:
    judge.answer = BROKEN
    _run(pytester, "--junitxml=out.xml")
    root = ET.parse(pytester.path / "out.xml").getroot()
    told = {item.attrib["name"]: item.attrib["value"] for item in root.iter("property")}
    assert list(told) == [f"assay: {FAR.rule}"]
    assert "measured 0.813, limit 0.00781" in told[f"assay: {FAR.rule}"]


@pytest.mark.parametrize("body", ["assay_audit('mrope.rotate', lambda q: q)", "assay_audit('mrope.rotate', test_it)"])
def test_a_function_that_a_worker_cannot_import_is_refused(pytester: pytest.Pytester, judge: Judge, body: str) -> None:
    arguments = ["--import-mode=importlib"] if "test_it" in body else []
    result = _run(pytester, *arguments, body=body)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*cannot be audited: it runs in a worker process, and *"])
    assert judge.asked == []


def _decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    wrapped = partial(function)
    wrapped.__module__, wrapped.__qualname__ = function.__module__, function.__qualname__  # type: ignore[attr-defined]  # partials take names
    return wrapped


def _elsewhere() -> Callable[..., Any]:
    """A function of a module that only this process has loaded."""
    wrapped = partial(print)
    wrapped.__module__, wrapped.__qualname__ = "loaded_here_only", "function"  # type: ignore[attr-defined]  # partials take names
    return wrapped


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (partial(print), "it has no name"),
        (lambda q: q, "it is a lambda or local"),
        (_elsewhere(), "is not on the import path"),
        (_decorated(address.of), "is another object"),
    ],
    ids=["partial", "lambda", "test module", "wrapped"],
)
def test_why_a_function_has_no_address(function: Callable[..., Any], why: str) -> None:
    with pytest.raises(BadUsage, match=why):
        address.of(function)


def test_the_address_of_a_function() -> None:
    assert address.of(address.of) == "assay.audits.address:of"
    assert address.of(json.JSONDecoder.decode) == "json.decoder:JSONDecoder.decode"


def test_the_plugin_costs_nothing_unused() -> None:
    heavy = {"torch", "transformers", "hypothesis", "rich", "pydantic", "jinja2", "assay.audits.terms"}
    code = "import sys, pytest; before = set(sys.modules); import assay.audits.plugin; "
    code += f"print(sorted((set(sys.modules) - before) & {heavy}))"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert told.strip() == "[]"
