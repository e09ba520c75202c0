"""The report as Markdown: for a pull request comment or a step summary."""

from __future__ import annotations

from collections.abc import Iterator

from assay.audits.render import tables
from assay.audits.terms import Report, Verdict

MARKS = {Verdict.PASS: "✅", Verdict.WAIVED: "🔵", Verdict.UNKNOWN: "❔", Verdict.FAIL: "❌"}


def render(report: Report) -> str:
    """The report as GitHub-flavoured Markdown."""
    return "\n".join(_lines(tables.legible(report))) + "\n"


def _lines(report: Report) -> Iterator[str]:
    yield f"## {MARKS[report.verdict]} assay: {report.verdict.name}"
    yield ""
    yield tables.counts_line(report)
    yield ""
    yield from _overview(report)
    for broken in tables.broken(report.findings):
        yield from _finding(broken)
    yield from _unsettled(report)
    yield from _environment(report)


def _overview(report: Report) -> Iterator[str]:
    yield "| operation | candidate | verdict | laws exercised | inapplicable | findings |"
    yield "| --- | --- | --- | --: | --: | --: |"
    for group in tables.groups(report):
        verdict = f"{MARKS[group.verdict]} {group.verdict.name}"
        laws = f"{group.exercised} of {group.applicable}"
        cells = (group.operation, group.candidate, verdict, laws, str(group.inapplicable), str(len(group.findings)))
        yield f"| {' | '.join(map(_prose, cells))} |"
    yield ""


def _finding(broken: tables.Broken) -> Iterator[str]:
    finding = broken.finding
    opened = " open" if finding.verdict is Verdict.FAIL else ""
    heading = f"{MARKS[finding.verdict]} <b>{_text(finding.rule)}</b> {_text(finding.candidate)}"
    yield f"<details{opened}><summary>{heading}</summary>"
    yield ""
    yield _prose(finding.message)
    yield ""
    yield f"* where: {_code(tables.place(finding))}"
    yield f"* case: {_code(tables.circumstances(finding))}"
    yield "* measured: {}, limit {}".format(*map(_code, tables.amounts(finding)))
    if broken.more:
        yield f"* also: {_code(broken.others)}"
    if finding.waiver:
        yield f"* waiver: {_prose(finding.waiver)}"
    yield ""
    fence = "`" * max(3, 1 + _longest_ticks(finding.repro))
    yield from (f"{fence}sh", finding.repro, fence, "", "</details>", "")


def _unsettled(report: Report) -> Iterator[str]:
    rows = [c for c in sorted(report.checks, key=tables.check_key) if not c.exercised or c.inapplicable]
    if not rows:
        return
    yield "<details><summary>Laws that were not exercised, or not everywhere</summary>"
    yield ""
    yield "| law | candidate | | cases | inapplicable where |"
    yield "| --- | --- | --- | --: | --- |"
    for check in rows:
        cells = (check.rule, check.candidate, tables.status(check), str(check.exercised), tables.reasons(check))
        yield f"| {' | '.join(map(_prose, cells))} |"
    yield from ("", "</details>", "")


def _environment(report: Report) -> Iterator[str]:
    told = ", ".join(f"{name} {value}" for name, value in sorted(report.environment.items()))
    if told:
        yield f"<sub>{_text(told)}</sub>"


def _text(text: str) -> str:
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").split())


def _prose(text: str) -> str:
    return _text("".join(f"\\{char}" if char in "\\`*[]|" else char for char in text))


def _code(text: str) -> str:
    flat = " ".join(text.split())
    ticks = "`" * (1 + _longest_ticks(flat))
    pad = " " if flat.startswith("`") or flat.endswith("`") else ""
    return f"{ticks}{pad}{flat}{pad}{ticks}"


def _longest_ticks(text: str) -> int:
    longest = run = 0
    for char in text:
        run = run + 1 if char == "`" else 0
        longest = max(longest, run)
    return longest
