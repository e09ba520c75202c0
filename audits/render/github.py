"""GitHub Actions: an annotation per finding, and the Markdown report in the step summary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from assay.audits.render import markdown, tables
from assay.audits.terms import Finding, Report, Verdict

_COMMANDS = {Verdict.WAIVED: "notice", Verdict.UNKNOWN: "warning", Verdict.FAIL: "error"}
SUMMARY_LIMIT = 1_000_000
"""Bytes. GitHub drops a step summary of more than 1 MiB altogether."""
CUT = "\n\n(cut: the whole report is in the other outputs)\n"


def active(environ: Mapping[str, str]) -> bool:
    """Whether this process runs as a step of GitHub Actions."""
    return environ.get("GITHUB_ACTIONS") == "true"


def commands(report: Report) -> str:
    """One workflow command per finding, the worst first; GitHub shows the first ten of each kind."""
    return "".join(f"{_annotation(finding)}\n" for finding in tables.worst_first(tables.legible(report).findings))


def summarise(report: Report, environ: Mapping[str, str]) -> None:
    """Append the report as Markdown to the step summary."""
    append(markdown.render(report), environ)


def append(text: str, environ: Mapping[str, str]) -> None:
    """Append Markdown to the file that ``GITHUB_STEP_SUMMARY`` names, where it names one."""
    if path := environ.get("GITHUB_STEP_SUMMARY"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(summary(text))


def summary(text: str) -> str:
    """A text for the step summary: whole, or cut at a line where GitHub would refuse it."""
    if len(text.encode()) <= SUMMARY_LIMIT:
        return text
    kept = text.encode()[: SUMMARY_LIMIT - len(CUT)].decode(errors="ignore")
    return kept.rpartition("\n")[0] + CUT


def _annotation(finding: Finding) -> str:
    title = _property(f"{finding.rule} ({finding.candidate})")
    return f"::{_COMMANDS.get(finding.verdict, 'notice')} title={title}::{_data(chr(10).join(_lines(finding)))}"


def _lines(finding: Finding) -> Iterator[str]:
    yield finding.message
    yield f"{tables.place(finding)}, {tables.circumstances(finding)}"
    yield f"measured {tables.compared(finding)}"
    if finding.waiver:
        yield finding.waiver
    yield finding.repro


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
