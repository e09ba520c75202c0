"""The gate: what is new, worse, fixed or out of sight between two reports, and the verdict of that."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from assay.audits.gate import GateResult, gate
from assay.audits.render import comparison
from assay.audits.render.example import CANDIDATE, FAR, NEVER_RAN
from assay.audits.terms import Check, Finding, Report, Verdict

CHECK = Check(rule=FAR.rule, candidate=CANDIDATE, exercised=5, verdict=Verdict.FAIL)
CLEAN = replace(CHECK, verdict=Verdict.PASS)
NORM = Check(rule="mrope.rotate.norm", candidate=CANDIDATE, exercised=5)
RAISES = replace(FAR, rule="mrope.rotate.raises", fingerprint="raises", measured="ValueError")


def _report(*findings: Finding, checks: tuple[Check, ...] = (CHECK, NORM), **changes: Any) -> Report:
    return replace(Report(findings=findings, checks=checks, environment={}), **changes)


def _names(result: GateResult) -> dict[str, list[str]]:
    """The parts of a result that are not empty, by what they name."""
    parts = {
        "new": [f.rule for f in result.new],
        "worse": [pair.why for pair in result.worse],
        "disappeared": [f"{item.check.rule}: {item.why}" for item in result.disappeared],
        "hidden": [f.rule for f in result.hidden],
        "unsettled": [c.rule for c in result.unsettled],
        "fixed": [f.rule for f in result.fixed],
        "known": [f.rule for f in result.known],
    }
    return {name: part for name, part in parts.items() if part}


def test_the_same_report_passes_although_it_fails() -> None:
    result = gate(_report(FAR), _report(FAR))
    assert _names(result) == {"known": [FAR.rule]}
    assert result.verdict is Verdict.PASS


def test_a_new_finding_fails_and_is_named_with_its_command() -> None:
    result = gate(_report(checks=(CLEAN, NORM)), _report(FAR))
    assert _names(result) == {"new": [FAR.rule]}
    assert result.verdict is Verdict.FAIL
    assert FAR.repro in comparison.render(result)


@pytest.mark.parametrize(
    ("verdict", "expected"), [(Verdict.UNKNOWN, Verdict.UNKNOWN), (Verdict.WAIVED, Verdict.WAIVED)]
)
def test_a_new_finding_is_as_bad_as_its_verdict(verdict: Verdict, expected: Verdict) -> None:
    check = replace(CHECK, verdict=verdict)
    assert gate(_report(), _report(replace(FAR, verdict=verdict), checks=(check, NORM))).verdict is expected


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (1.0, 1.11, "1 became 1.11"),
        (1.0, 1.1, ""),
        (1.0, 0.5, ""),
        (1.0, "nan", "1 became nan"),
        (1.0, "inf", "1 became inf"),
        ("nan", 1.0, ""),
        ("inf", "inf", ""),
        ("nan", "nan", ""),
        (0.0, 0.001, "0 became 0.001"),
        ("3 calls", "0 calls", ""),
    ],
)
def test_a_number_is_worse_when_it_grew_by_more_than_a_tenth(before: float | str, after: float | str, why: str) -> None:
    result = gate(_report(replace(FAR, measured=before)), _report(replace(FAR, measured=after)))
    assert [pair.why for pair in result.worse] == ([why] if why else [])
    assert result.verdict is (Verdict.FAIL if why else Verdict.PASS)


@pytest.mark.parametrize("before", [Verdict.WAIVED, Verdict.UNKNOWN])
def test_a_higher_verdict_is_worse(before: Verdict) -> None:
    result = gate(_report(replace(FAR, verdict=before)), _report(FAR))
    assert _names(result) == {"worse": [f"{before.name} became FAIL"]}
    assert result.verdict is Verdict.FAIL


def test_what_a_waiver_accepts_is_not_worse() -> None:
    waived = replace(FAR, verdict=Verdict.WAIVED)
    assert gate(_report(waived), _report(replace(waived, measured=5.0))).verdict is Verdict.PASS


def test_fixed() -> None:
    result = gate(_report(FAR), _report(checks=(CLEAN, NORM)))
    assert _names(result) == {"fixed": [FAR.rule]}
    assert result.verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("checks", "why"),
    [
        ((NORM,), "not in the head report"),
        ((replace(CLEAN, exercised=0), NORM), "not exercised any more"),
        ((replace(CLEAN, exercised=0, inapplicable={"no images": 3}), NORM), "inapplicable now: no images (3)"),
    ],
)
def test_a_check_that_disappeared_is_no_fix(checks: tuple[Check, ...], why: str) -> None:
    result = gate(_report(FAR), _report(checks=checks))
    assert _names(result) == {"disappeared": [f"{FAR.rule}: {why}"], "hidden": [FAR.rule]}
    assert result.verdict is Verdict.FAIL


def test_a_clean_check_that_disappeared_fails_too() -> None:
    assert gate(_report(checks=(CLEAN, NORM)), _report(checks=(CLEAN,))).verdict is Verdict.FAIL


def test_a_finding_of_the_judge_is_fixed_while_its_operation_is_exercised() -> None:
    assert _names(gate(_report(RAISES, checks=(CLEAN,)), _report(checks=(CLEAN,)))) == {
        "fixed": ["mrope.rotate.raises"]
    }
    other = replace(CLEAN, rule="mrope.positions.parity")
    result = gate(_report(RAISES, checks=()), _report(checks=(other,)))
    assert _names(result) == {"hidden": ["mrope.rotate.raises"]}
    assert result.verdict is Verdict.FAIL


def test_an_unknown_finding_of_a_check_that_never_ran_is_fixed_when_it_runs() -> None:
    unbuilt = replace(NEVER_RAN, rule="mrope.positions.deltas")
    never = Check(rule=unbuilt.rule, candidate=unbuilt.candidate, exercised=0, verdict=Verdict.UNKNOWN)
    built = replace(never, exercised=3, verdict=Verdict.PASS)
    assert _names(gate(_report(unbuilt, checks=(never,)), _report(checks=(built,)))) == {"fixed": [unbuilt.rule]}
    beside = replace(built, rule="mrope.positions.padding")
    assert _names(gate(_report(unbuilt, checks=(never,)), _report(checks=(beside,)))) == {"fixed": [unbuilt.rule]}


@pytest.mark.parametrize(("filtered", "part"), [(False, "fixed"), (True, "hidden")])
def test_a_stale_waiver_is_fixed_only_where_a_head_could_tell(filtered: bool, part: str) -> None:
    stale = replace(FAR, rule="waiver.stale", operation="waivers", candidate="*")
    assert _names(gate(_report(stale), _report(filtered=filtered))) == {part: ["waiver.stale"]}


def test_a_check_that_became_unknown_without_a_finding() -> None:
    result = gate(_report(checks=(NORM,)), _report(checks=(replace(NORM, verdict=Verdict.UNKNOWN),)))
    assert _names(result) == {"unsettled": [NORM.rule]}
    assert result.verdict is Verdict.UNKNOWN


def test_a_head_of_nothing_is_unknown() -> None:
    nothing = _report(checks=())
    assert gate(nothing, nothing).verdict is Verdict.UNKNOWN


def test_the_text() -> None:
    other = replace(FAR, fingerprint="other", where="k", index=None)
    base = _report(FAR, other, checks=(CHECK, NORM), environment={"torch": "2.9.0"})
    head = _report(replace(FAR, measured=2.0), checks=(CHECK,), environment={"torch": "2.13.0"})
    expected = f"""\
gate: FAIL

Worse:

* FAIL {FAR.rule} {CANDIDATE}: q[0, 3, 40000, 17], far-1000000, bfloat16 (3 cases broken): 0.813 became 2

Disappeared checks:

* mrope.rotate.norm {CANDIDATE}: not in the head report

Fixed:

* FAIL {FAR.rule} {CANDIDATE}: k, far-1000000, bfloat16 (3 cases broken)

Different surroundings:

* torch 2.9.0 -> 2.13.0
"""
    assert comparison.render(gate(base, head)) == expected
