"""Waivers: what they cover and what not, when they fail, and what is said of a file that is wrong."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from assay.audits import waive, waivers
from assay.audits.render.example import CANDIDATE, FAR, NEVER_RAN
from assay.audits.terms import Check, Finding, Report, Verdict, Waiver

TODAY = dt.date(2026, 11, 21)
WAIVER = Waiver(rule=FAR.rule, candidate=CANDIDATE, reason="known", issue="#7", until="2026-12-31", worst=0.9)
PASSING = Check(rule=FAR.rule, candidate=CANDIDATE, exercised=5)
FAILING = replace(PASSING, verdict=Verdict.FAIL)


def _report(*findings: Finding, check: Check = FAILING, filtered: bool = False) -> Report:
    return Report(findings=findings, checks=(check,), environment={"transformers": "5.20.0"}, filtered=filtered)


def _apply(finding: Finding, **changes: Any) -> Report:
    return waive.apply(_report(finding), [replace(WAIVER, **changes)], TODAY)


def test_a_covered_finding_is_waived_and_says_why_and_until_when() -> None:
    report = _apply(FAR)
    (finding,) = report.findings
    assert finding == replace(FAR, verdict=Verdict.WAIVED, waiver="accepted until 2026-12-31: known (#7)")
    assert report.checks[0].verdict is Verdict.WAIVED
    assert report.verdict is Verdict.WAIVED


def test_the_report_that_went_in_is_unchanged() -> None:
    before = _report(FAR)
    waive.apply(before, [WAIVER], TODAY)
    assert before == _report(FAR)


@pytest.mark.parametrize(
    "changes",
    [
        {"rule": "mrope.*"},
        {"candidate": "mytrain.*"},
        {"case": "far-*"},
        {"where": "q"},
        {"worst": 0.813},
        {"versions": ">=5.17,<6"},
        {"versions": "transformers==5.20.*"},
        {"until": "2026-11-21"},
    ],
    ids=str,
)
def test_covered(changes: dict[str, Any]) -> None:
    assert _apply(FAR, **changes).findings[0].verdict is Verdict.WAIVED


@pytest.mark.parametrize(
    "changes",
    [
        {"rule": "mrope.rotate.norm"},
        {"candidate": "kernel"},
        {"case": "near-*"},
        {"where": "k"},
        {"worst": 0.812},
        {"worst": None},
        {"versions": "<5.17"},
        {"versions": "liger-kernel>=0.8"},
        {"until": "2026-11-20"},
    ],
    ids=str,
)
def test_not_covered(changes: dict[str, Any]) -> None:
    report = _apply(FAR, **changes)
    assert FAR.fingerprint in {f.fingerprint for f in report.findings if f.verdict is Verdict.FAIL}
    assert report.checks[0].verdict is Verdict.FAIL
    assert report.verdict is Verdict.FAIL


@pytest.mark.parametrize("measured", [float("nan"), "nan", "inf", 0.9051])
def test_what_is_worse_than_the_accepted_number_is_not_covered(measured: float | str) -> None:
    (finding,) = _apply(replace(FAR, measured=measured)).findings
    assert finding.verdict is Verdict.FAIL
    assert finding.waiver.startswith("not covered: ")


def test_a_number_is_compared_as_it_is_shown() -> None:
    assert _apply(replace(FAR, measured=0.81349), worst=0.813).findings[0].verdict is Verdict.WAIVED


def test_text_needs_no_number_and_unknown_can_be_waived() -> None:
    check = Check(rule=NEVER_RAN.rule, candidate=NEVER_RAN.candidate, exercised=0, verdict=Verdict.UNKNOWN)
    accepted = replace(WAIVER, rule="patch.*", candidate="qwen*", worst=None)
    report = waive.apply(_report(NEVER_RAN, check=check), [accepted], TODAY)
    assert [report.findings[0].verdict, report.checks[0].verdict] == [Verdict.WAIVED, Verdict.WAIVED]


def test_a_check_is_waived_only_when_all_its_findings_are() -> None:
    other = replace(FAR, where="k", fingerprint="other", measured=5.0)
    report = waive.apply(_report(FAR, other), [WAIVER], TODAY)
    assert [f.verdict for f in report.findings] == [Verdict.WAIVED, Verdict.FAIL]
    assert report.checks[0].verdict is Verdict.FAIL


def test_a_check_that_is_worse_than_its_findings_stays() -> None:
    unknown = replace(FAR, verdict=Verdict.UNKNOWN)
    assert waive.apply(_report(unknown), [WAIVER], TODAY).checks[0].verdict is Verdict.FAIL


def test_a_check_follows_what_the_judge_says_about_its_law() -> None:
    silent = replace(NEVER_RAN, rule="mrope.rotate.not-exercised", operation="mrope.rotate", where="norm")
    check = Check(rule="mrope.rotate.norm", candidate=silent.candidate, exercised=0, verdict=Verdict.UNKNOWN)
    accepted = replace(WAIVER, rule=silent.rule, candidate="*")
    assert waive.apply(_report(silent, check=check), [accepted], TODAY).checks[0].verdict is Verdict.WAIVED


def test_an_expired_waiver_covers_nothing_and_is_a_finding() -> None:
    report = _apply(FAR, until="2026-11-20")
    assert [(f.rule, f.verdict) for f in report.findings] == [
        (FAR.rule, Verdict.FAIL),
        ("waiver.expired", Verdict.FAIL),
    ]
    assert report.findings[0].waiver == "not covered: the waiver expired on 2026-11-20"


@pytest.mark.parametrize(("filtered", "rules"), [(False, ["waiver.expired"]), (True, [])])
def test_an_expired_waiver_that_matches_nothing_fails_in_a_whole_run(filtered: bool, rules: list[str]) -> None:
    report = _report(check=PASSING, filtered=filtered)
    expired = replace(WAIVER, until="2026-01-01")
    assert [f.rule for f in waive.apply(report, [expired], TODAY).findings] == rules


@pytest.mark.parametrize(
    ("report", "changes", "rules"),
    [
        (_report(check=PASSING), {}, ["waiver.stale"]),
        (_report(check=PASSING), {"rule": "mrope.rotate.p*"}, ["waiver.stale"]),
        (_report(check=PASSING), {"rule": "mrope.rotate.raises"}, ["waiver.stale"]),
        (_report(check=PASSING, filtered=True), {}, []),
        (_report(check=replace(PASSING, exercised=0)), {}, []),
        (_report(check=replace(PASSING, candidate="kernel")), {}, []),
        (_report(check=replace(PASSING, rule="mrope.positions.parity")), {}, []),
        (_report(check=PASSING), {"versions": ">=6"}, []),
    ],
    ids=["stale", "glob", "judge's rule", "filtered", "not exercised", "another candidate", "another rule", "version"],
)
def test_stale(report: Report, changes: dict[str, Any], rules: list[str]) -> None:
    after = waive.apply(report, [replace(WAIVER, **changes)], TODAY)
    assert [finding.rule for finding in after.findings] == rules
    assert after.verdict is (Verdict.FAIL if rules else report.verdict)


def test_a_waiver_whose_finding_got_worse_is_not_stale() -> None:
    assert [f.rule for f in _apply(FAR, worst=0.1).findings] == [FAR.rule]


def test_the_fingerprint_of_a_stale_waiver_does_not_depend_on_its_place_or_reason() -> None:
    report = _report(check=PASSING)
    first = waive.apply(report, [WAIVER], TODAY).findings[0]
    later = waive.apply(report, [replace(WAIVER, rule="other"), replace(WAIVER, reason="x")], TODAY).findings[0]
    assert first.fingerprint == later.fingerprint


GOOD = """
[[waiver]]
rule = "mrope.rotate.parity"
candidate = "hf.*"
reason = "rounded tables"
issue = "https://example.org/1"
until = 2027-02-19
worst = 1
versions = "transformers>=5.17"
"""


def _load(tmp_path: Path, text: str) -> tuple[Waiver, ...]:
    file = tmp_path / "waivers.toml"
    file.write_text(text, encoding="utf-8")
    return waivers.load(file, TODAY)


def test_a_file_is_read(tmp_path: Path) -> None:
    (waiver,) = _load(tmp_path, GOOD)
    assert waiver == Waiver(
        rule="mrope.rotate.parity",
        candidate="hf.*",
        reason="rounded tables",
        issue="https://example.org/1",
        until="2027-02-19",
        worst=1,
        versions="transformers>=5.17",
    )


def test_no_tables_no_waivers(tmp_path: Path) -> None:
    assert _load(tmp_path, "") == ()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("worst", "worts", "[[waiver]] 1 (mrope.rotate.parity): unknown key 'worts'; the keys are rule, "),
        ('reason = "rounded tables"', "", "[[waiver]] 1 (mrope.rotate.parity): 'reason' is missing"),
        ('"rounded tables"', '" "', "[[waiver]] 1 (mrope.rotate.parity): 'reason': is empty"),
        ('issue = "https://example.org/1"', "", "'issue' is missing"),
        ("2027-02-19", "2027-02-20", "'until': 2027-02-20 is more than 90 days ahead; at most 2027-02-19"),
        ("2027-02-19", '"soon"', "'until': expected a date such as 2027-01-31, got 'soon'"),
        ("2027-02-19", "2027-02-19T00:00:00", "'until': expected a date"),
        ("2027-02-19", "7", "'until': expected a date"),
        ("worst = 1", 'worst = "1"', "'worst': expected a number, got '1'"),
        ("worst = 1", "worst = true", "'worst': expected a number, got True"),
        ("worst = 1", "worst = nan", "'worst': expected a number, got nan"),
        ('"transformers>=5.17"', '"five"', "'versions': expected a version range"),
        ('"transformers>=5.17"', '">=>5"', "'versions': expected a version range"),
        ('"hf.*"', "3", "'candidate': expected text, got 3"),
        ("[[waiver]]", "[waiver]", "'waiver' is not an array of tables"),
        ("[[waiver]]", "[[waivers]]", "unknown key 'waivers'"),
        ("[[waiver]]", "[[waiver]", "not TOML: "),
    ],
)
def test_a_wrong_file_is_an_error_with_the_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(waivers.WaiverError) as caught:
        _load(tmp_path, GOOD.replace(old, new))
    assert str(caught.value).startswith(f"{tmp_path / 'waivers.toml'}: ")
    assert message in str(caught.value)


def test_every_error_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(waivers.WaiverError) as caught:
        _load(tmp_path, GOOD.replace("worst", "worts") + GOOD.replace("issue", "isue"))
    assert [line.partition("]] ")[2][0] for line in str(caught.value).splitlines()] == ["1", "2", "2"]


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(waivers.WaiverError, match="cannot be read"):
        waivers.load(tmp_path / "none.toml", TODAY)


def test_a_waived_end_of_an_audit_covers_the_laws_that_it_kept_from_running() -> None:
    end = replace(FAR, rule="mrope.rotate.unloadable", verdict=Verdict.UNKNOWN, measured="unloadable", limit="returns")
    silent = Check(rule="mrope.rotate.norm", candidate=end.candidate, exercised=0, verdict=Verdict.UNKNOWN)
    report = Report(findings=(end,), checks=(silent,), environment={}, filtered=True)
    waiver = Waiver(
        rule=end.rule, candidate=end.candidate, reason="not built", issue="https://x.test/1", until="2026-12-01"
    )
    after = waive.apply(report, (waiver,), TODAY)
    assert [finding.verdict for finding in after.findings] == [Verdict.WAIVED]
    assert [check.verdict for check in after.checks] == [Verdict.WAIVED]
