"""JUnit and SARIF: what the programs that read them rely on.

SARIF is checked against the types of ``sarif-pydantic``, with no field left over but two of the standard that it does
not know, and against the official schema of SARIF 2.1.0 where ``ASSAY_SARIF_SCHEMA`` names a copy of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import jsonschema
import pytest
import sarif_pydantic
from pydantic import BaseModel

from assay.audits.render import junit, sarif
from assay.audits.render.example import CANDIDATE, FAR, NEVER_RAN, REPORT, WAIVED
from assay.audits.terms import Report

PAGES = {FAR.rule: "Close to the truth.\n\nWhy: rounding adds up."}
REQUIRED = {
    "": {"version", "runs"},
    "runs": {"tool", "results"},
    "rules": {"id", "help", "shortDescription"},
    "results": {"ruleId", "ruleIndex", "level", "message", "locations", "partialFingerprints"},
    "suppressions": {"kind", "status", "justification"},
}


def _suites(report: Report) -> dict[str, ET.Element]:
    root = ET.fromstring(junit.render(report))
    return {suite.attrib["name"]: suite for suite in root}


def test_junit_counts_and_statuses() -> None:
    suites = _suites(REPORT)
    told = {
        name: [suite.attrib[key] for key in ("tests", "failures", "errors", "skipped")]
        for name, suite in suites.items()
    }
    assert told == {
        "mrope.positions[qwen2_5_vl]": ["3", "0", "2", "0"],
        "mrope.rotate[kernel]": ["2", "0", "0", "0"],
        f"mrope.rotate[{CANDIDATE}]": ["4", "1", "0", "2"],
    }


def test_junit_tells_each_law_once() -> None:
    suite = _suites(REPORT)[f"mrope.rotate[{CANDIDATE}]"]
    statuses = {test.attrib["name"]: [child.tag for child in test] for test in suite}
    assert statuses == {"grad-parity": ["skipped"], "norm": [], "parity": ["failure"], "text-only": ["skipped"]}
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert failure.attrib["message"] == FAR.message
    assert FAR.repro in (failure.text or "")


def test_junit_of_nothing_is_an_error() -> None:
    (suite,) = _suites(Report(findings=(), checks=(), environment={})).values()
    assert suite.attrib["errors"] == "1"


def _log(report: Report = REPORT) -> dict[str, Any]:
    log: dict[str, Any] = json.loads(sarif.render(report, PAGES, "0.1.0"))
    return log


def _left_over(model: Any, path: str = "sarif") -> Iterator[str]:
    if isinstance(model, BaseModel):
        yield from (f"{path}.{name}" for name in model.model_extra or {} if name != "$schema")
        for name in type(model).model_fields:
            if name != "properties":
                yield from _left_over(getattr(model, name), f"{path}.{name}")
    elif isinstance(model, list):
        for number, item in enumerate(model):
            yield from _left_over(item, f"{path}[{number}]")


def _objects(value: Any, name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict):
        yield name, value
        for key, item in value.items():
            yield from _objects(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from _objects(item, name)


def test_sarif_has_the_standard_types_and_no_field_of_its_own() -> None:
    left = {path.rpartition(".")[2] for path in _left_over(sarif_pydantic.Sarif.model_validate(_log()))}
    assert left == {"columnKind", "suppressions"}


def test_sarif_has_what_is_required() -> None:
    seen = set()
    for name, value in _objects(_log()):
        if name in REQUIRED:
            seen.add(name)
            assert REQUIRED[name] <= set(value), name
    assert seen == set(REQUIRED)


@pytest.mark.skipif("ASSAY_SARIF_SCHEMA" not in os.environ, reason="ASSAY_SARIF_SCHEMA names no official schema")
@pytest.mark.parametrize("report", [REPORT, Report(findings=(), checks=(), environment={})], ids=["full", "empty"])
def test_sarif_fits_the_official_schema(report: Report) -> None:
    official = json.loads(Path(os.environ["ASSAY_SARIF_SCHEMA"]).read_text(encoding="utf-8"))
    jsonschema.validate(_log(report), official)


def test_sarif_results() -> None:
    results = {result["ruleId"]: result for result in _log()["runs"][0]["results"]}
    assert {rule: result["level"] for rule, result in results.items()} == {
        FAR.rule: "error",
        WAIVED.rule: "error",
        NEVER_RAN.rule: "warning",
    }
    assert {rule: len(result["suppressions"]) for rule, result in results.items()} == {
        FAR.rule: 0,
        WAIVED.rule: 1,
        NEVER_RAN.rule: 0,
    }
    assert results[WAIVED.rule]["suppressions"][0]["justification"] == WAIVED.waiver
    assert results[FAR.rule]["partialFingerprints"] == {sarif.FINGERPRINT: FAR.fingerprint}


def test_sarif_rules_carry_the_manual_and_are_pointed_at() -> None:
    run = _log()["runs"][0]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == sorted({rule["id"] for rule in rules})
    assert all(rules[result["ruleIndex"]]["id"] == result["ruleId"] for result in run["results"])
    (parity,) = (rule for rule in rules if rule["id"] == FAR.rule)
    assert parity["shortDescription"]["text"] == "Close to the truth."
    assert "rounding adds up" in parity["help"]["markdown"]


@pytest.mark.parametrize(
    ("candidate", "rule", "uri"),
    [
        (CANDIDATE, FAR.rule, "mytrain/patches.py"),
        ("kernel", FAR.rule, "kernels/mrope.py"),
        ("reference", FAR.rule, "reference/mrope.py"),
        ("qwen2_5_vl", FAR.rule, "pyproject.toml"),
        ("*", "waiver.stale", "waivers.toml"),
    ],
)
def test_sarif_shows_a_finding_at_a_file(candidate: str, rule: str, uri: str) -> None:
    assert sarif.artifact(replace(FAR, candidate=candidate, rule=rule)) == uri
