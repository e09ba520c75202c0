"""The report as SARIF 2.1.0: for code scanning."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from assay.audits.render import tables
from assay.audits.terms import Finding, Report, Verdict

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
LEVELS = {Verdict.PASS: "none", Verdict.WAIVED: "error", Verdict.UNKNOWN: "warning", Verdict.FAIL: "error"}
FINGERPRINT = "assayFinding/v1"
_REFERENCE = re.compile(r"(?P<module>[A-Za-z_][\w.]*):[A-Za-z_][\w.]*")


def render(report: Report, pages: Mapping[str, str] | None = None, version: str = "") -> str:
    """The report as SARIF. ``pages`` are manual pages by rule, ``version`` is that of the tool."""
    report, manual = tables.legible(report), pages or {}
    rules = sorted({check.rule for check in report.checks} | {finding.rule for finding in report.findings})
    driver: dict[str, Any] = {"name": "assay", "rules": [_rule(rule, manual.get(rule, "")) for rule in rules]}
    if version:
        driver["version"] = version
    run = {
        "tool": {"driver": driver},
        "columnKind": "utf16CodeUnits",
        "invocations": [{"executionSuccessful": True}],
        "results": [_result(f, rules.index(f.rule)) for f in sorted(report.findings, key=tables.finding_key)],
        "properties": {"verdict": report.verdict.name, **tables.counts(report)},
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2, ensure_ascii=False) + "\n"


def _rule(rule: str, page: str) -> dict[str, Any]:
    first = page.partition("\n")[0].strip() or rule
    return {
        "id": rule,
        "name": "".join(word.capitalize() for word in re.split(r"\W+", rule)),
        "shortDescription": {"text": first},
        "fullDescription": {"text": page.strip() or rule},
        "help": {
            "text": page.strip() or f"assay explain {rule}",
            "markdown": page.strip() or f"`assay explain {rule}`",
        },
        "defaultConfiguration": {"level": "error"},
    }


def _result(finding: Finding, rule_index: int) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": finding.rule,
        "ruleIndex": rule_index,
        "kind": "fail",
        "level": LEVELS[finding.verdict],
        "message": {"text": _message(finding)},
        "locations": [_location(finding)],
        "partialFingerprints": {FINGERPRINT: finding.fingerprint},
        "suppressions": [],
        "properties": {"case": finding.case, "dtype": finding.dtype, "repro": finding.repro},
    }
    if finding.verdict is Verdict.WAIVED:
        result["suppressions"] = [{"kind": "external", "status": "accepted", "justification": finding.waiver}]
    return result


def _message(finding: Finding) -> str:
    measured = f"measured {tables.compared(finding)}"
    where = f"{tables.place(finding)}, {tables.circumstances(finding)}"
    return f"{finding.candidate}: {finding.message}. {where}: {measured}. Again: {finding.repro}"


def _location(finding: Finding) -> dict[str, Any]:
    name = f"{finding.operation}/{finding.candidate}/{tables.place(finding)}"
    return {
        "physicalLocation": {"artifactLocation": {"uri": artifact(finding)}, "region": {"startLine": 1}},
        "logicalLocations": [{"name": finding.candidate, "fullyQualifiedName": name}],
    }


def artifact(finding: Finding) -> str:
    """The file to show a finding at, relative to the repository: GitHub refuses results without one.

    A candidate named ``package.module:function`` is shown at its module's file, the project's own at theirs, a waiver
    at ``waivers.toml``; everything else comes from an installed package, which ``pyproject.toml`` brings in.
    """
    component = finding.operation.partition(".")[0]
    if finding.rule.startswith("waiver."):
        return "waivers.toml"
    if found := _REFERENCE.fullmatch(finding.candidate):
        return found["module"].replace(".", "/") + ".py"
    rooms = {"reference": f"reference/{component}.py", "kernel": f"kernels/{component}.py"}
    return rooms.get(finding.candidate, "pyproject.toml")
