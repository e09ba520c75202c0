"""The JSON report: there and back, the same text each time, and an error with the place where it is broken."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from assay.audits.render import schema, tables
from assay.audits.render.example import FAR, REPORT
from assay.audits.terms import Report, Verdict

SCHEMA_FILE = Path(__file__).parent.parent / "docs" / "report.schema.json"


def test_a_report_survives_the_way_there_and_back() -> None:
    text = schema.dump(REPORT)
    assert schema.load(text) == schema.canonical(REPORT)
    assert schema.dump(schema.load(text)) == text


def test_order_does_not_matter() -> None:
    shuffled = replace(
        REPORT,
        findings=REPORT.findings[::-1],
        checks=REPORT.checks[::-1],
        environment=dict(reversed(list(REPORT.environment.items()))),
        request=dict(reversed(list(REPORT.request.items()))),
    )
    assert schema.dump(shuffled) == schema.dump(REPORT)


@pytest.mark.parametrize(
    ("measured", "written"),
    [(0.0123456, 0.0123), (123456.0, 123000.0), (math.nan, "nan"), (-math.inf, "-inf"), ("0 calls", "0 calls")],
)
def test_numbers_have_three_digits_and_always_are_json(measured: float | str, written: float | str) -> None:
    told = json.loads(schema.dump(replace(REPORT, findings=(replace(FAR, measured=measured),))))
    assert told["findings"][0]["measured"] == written


def test_numbers_that_three_digits_do_not_tell_apart_stay_as_they_are() -> None:
    near = replace(REPORT, findings=(replace(FAR, measured=0.012346, limit=0.012343),))
    told = json.loads(schema.dump(near))["findings"][0]
    assert (told["measured"], told["limit"]) == (0.012346, 0.012343)
    assert tables.compared(schema.canonical(near).findings[0]) == "0.012346, limit 0.012343"
    assert tables.compared(replace(FAR, measured=0.0123456, limit=0.0124)) == "0.0123, limit 0.0124"
    assert tables.compared(replace(FAR, measured=math.inf, limit=math.inf)) == "inf, limit inf"


def test_the_report_fits_its_published_schema() -> None:
    jsonschema.validate(json.loads(schema.dump(REPORT)), json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))


def test_the_published_schema_is_up_to_date() -> None:
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema.json_schema(), (
        "write it anew: python -c 'from assay.audits.render import schema; print(schema.json_schema(), end=\"\")'"
    )


def test_an_audit_of_nothing_is_unknown() -> None:
    told = json.loads(schema.dump(Report(findings=(), checks=(), environment={})))
    assert told["verdict"] == "UNKNOWN"


def _broken(change: object, *path: str | int) -> str:
    told = json.loads(schema.dump(REPORT))
    place = told
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = change
    return json.dumps(told)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"schema_version": 1,\n  oops}', "r.json: not JSON at line 2, column 3"),
        ("[]", "r.json: Input should be a valid dictionary"),
        (_broken("BAD", "findings", 1, "verdict"), "r.json: findings[1].verdict: Input should be 'PASS'"),
        (_broken(0, "findings", 0, "cases_broken"), "r.json: findings[0].cases_broken: "),
        (_broken("x", "checks", 2, "extra"), "r.json: checks[2].extra: Extra inputs are not permitted"),
        (_broken(2, "schema_version"), "r.json: schema_version: Input should be 1"),
        (
            _broken("PASS", "verdict"),
            "r.json: Value error, verdict says PASS, but its checks and findings come to FAIL",
        ),
        (_broken(0, "counts", "failed"), "r.json: Value error, counts do not match"),
    ],
)
def test_a_broken_report_names_the_place(text: str, place: str) -> None:
    with pytest.raises(schema.ReportError) as caught:
        schema.load(text, "r.json")
    assert str(caught.value).startswith(place)


def test_every_verdict_survives() -> None:
    findings = tuple(replace(FAR, verdict=v, fingerprint=str(v)) for v in Verdict if v is not Verdict.PASS)
    report = replace(REPORT, findings=findings)
    assert [f.verdict for f in schema.load(schema.dump(report)).findings] == [f.verdict for f in findings]
