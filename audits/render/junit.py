"""The report as JUnit XML: a suite per operation and candidate, a test per law."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from assay.audits.render import tables
from assay.audits.terms import Check, Finding, Report, Verdict

_COUNTED = {"failures": "failure", "errors": "error", "skipped": "skipped"}


def render(report: Report) -> str:
    """The report as JUnit XML. FAIL is a failure, UNKNOWN an error, WAIVED and inapplicable are skipped."""
    root = ET.Element("testsuites", name="assay")
    for group in tables.groups(tables.legible(report)):
        root.append(_suite(group))
    if not len(root):
        root.append(_nothing())
    _count(root)
    ET.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _nothing() -> ET.Element:
    """An audit of nothing is not green: a file without tests would be."""
    suite = ET.Element("testsuite", name="assay")
    test = ET.SubElement(suite, "testcase", classname="assay", name="audit")
    ET.SubElement(test, "error", message="nothing was audited", type=Verdict.UNKNOWN.name)
    _count(suite)
    return suite


def _suite(group: tables.Group) -> ET.Element:
    suite = ET.Element("testsuite", name=f"{group.operation}[{group.candidate}]")
    by_rule: dict[str, list[Finding]] = {}
    for finding in group.findings:
        by_rule.setdefault(finding.rule, []).append(finding)
    checks = {check.rule: check for check in group.checks}
    for rule in sorted({*checks, *by_rule}):
        suite.append(_test(rule, group, checks.get(rule), by_rule.get(rule, [])))
    _count(suite)
    return suite


def _test(rule: str, group: tables.Group, check: Check | None, findings: list[Finding]) -> ET.Element:
    name = rule.removeprefix(f"{group.operation}.")
    test = ET.Element("testcase", classname=f"{group.operation}.{group.candidate}", name=name)
    ranked = tables.worst_first(findings)
    verdict = max([f.verdict for f in findings] + ([check.verdict] if check else []))
    text = "\n\n".join(_told(finding) for finding in ranked)
    if verdict is Verdict.PASS:
        if check and tables.status(check) == "inapplicable":
            ET.SubElement(test, "skipped", message=f"inapplicable: {tables.reasons(check)}")
        return test
    tag = {Verdict.FAIL: "failure", Verdict.UNKNOWN: "error", Verdict.WAIVED: "skipped"}[verdict]
    message = ranked[0].message if ranked else "not exercised: no case reached it"
    element = ET.SubElement(test, tag, message=message, type=verdict.name)
    element.text = text
    return test


def _told(finding: Finding) -> str:
    lines = [
        f"{finding.verdict.name} {finding.rule}: {finding.message}",
        f"where: {tables.place(finding)}",
        f"case: {tables.circumstances(finding)}",
        f"measured: {tables.compared(finding)}",
        *([f"waiver: {finding.waiver}"] if finding.waiver else []),
        f"again: {finding.repro}",
    ]
    return "\n".join(lines)


def _count(element: ET.Element) -> None:
    element.set("tests", str(len(list(element.iter("testcase")))))
    for attribute, tag in _COUNTED.items():
        element.set(attribute, str(len(list(element.iter(tag)))))
