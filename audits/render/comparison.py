"""The gate's result for a reader, in lines that are good Markdown and good text alike."""

from __future__ import annotations

from collections.abc import Iterator

from assay.audits.gate import GateResult
from assay.audits.render import tables
from assay.audits.terms import Finding, Verdict


def render(result: GateResult) -> str:
    """The result as text: new, worse, disappeared and unsettled, then what was fixed; empty parts are left out."""
    return "\n".join(_lines(result)) + "\n"


def _lines(result: GateResult) -> Iterator[str]:
    yield f"gate: {result.verdict.name}"
    if result.empty:
        yield from ("", "The head report exercised nothing.")
    yield from _part("New", [_told(finding) for finding in tables.worst_first(result.new)])
    yield from _part("Worse", [f"{_named(pair.head)}: {pair.why}" for pair in result.worse])
    yield from _part("Disappeared checks", [f"{i.check.rule} {i.check.candidate}: {i.why}" for i in result.disappeared])
    yield from _part("Not fixed, nothing looked", [_named(finding) for finding in result.hidden])
    unsettled = [f"{check.verdict.name} {check.rule} {check.candidate}: no finding" for check in result.unsettled]
    yield from _part("Newly unsettled", unsettled)
    yield from _part("Fixed", [_named(finding) for finding in result.fixed])
    yield from _part("Different surroundings", list(result.environment))
    if result.known:
        worst = sum(1 for finding in result.known if finding.verdict > Verdict.WAIVED)
        yield from ("", f"{len(result.known)} findings as before, {worst} of them not waived.")


def _part(title: str, lines: list[str]) -> Iterator[str]:
    if lines:
        yield from ("", f"{title}:", "", *(f"* {line}" for line in lines))


def _named(finding: Finding) -> str:
    where = f"{tables.place(finding)}, {tables.circumstances(finding)}"
    return f"{finding.verdict.name} {finding.rule} {finding.candidate}: {where}"


def _told(finding: Finding) -> str:
    limit = f"measured {tables.compared(finding)}"
    return f"{_named(finding)}: {finding.message}; {limit}\n  `{finding.repro}`"
