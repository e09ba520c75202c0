"""The report on a terminal: one block per operation and candidate, its findings under it, the counts last."""

from __future__ import annotations

import io
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from assay.audits.render import tables
from assay.audits.terms import Check, Report, Verdict

OTHERS, NAME = 37, 24
"""Columns that verdict and counts take without the laws, and that the name of a candidate gets before it is broken."""
STYLES = {Verdict.PASS: "green", Verdict.WAIVED: "cyan", Verdict.UNKNOWN: "yellow", Verdict.FAIL: "bold red"}


def render(report: Report, *, width: int = 100, color: bool = False) -> str:
    """The report as text, wrapped at ``width``; with ``color``, with ANSI styles."""
    out = io.StringIO()
    console = Console(
        file=out,
        width=width,
        force_terminal=color,
        color_system="standard" if color else None,
        legacy_windows=False,
    )
    show(report, console)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def show(report: Report, console: Console) -> None:
    """Print the report on a console."""
    report = tables.legible(report)
    console.print(_overview(report, console.width))
    _show_findings(report, console)
    for check in _silent(report):
        console.print(_silence(check))
    for line in _inapplicable(report):
        console.print(line)
    console.print()
    conclude(report, console)


def conclude(report: Report, console: Console) -> None:
    """Print the last line: the verdict and the counts."""
    empty = "; nothing was audited" if not report.checks else ""
    line = Text.assemble(_verdict(report.verdict), f"  {tables.counts_line(report)}{empty}")
    console.print(line, soft_wrap=True)


def findings(report: Report, *, width: int = 100) -> str:
    """The findings alone, as text: what a failed test shows."""
    report = tables.legible(report)
    out = io.StringIO()
    _show_findings(report, Console(file=out, width=width, color_system=None))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _show_findings(report: Report, console: Console) -> None:
    for broken in tables.broken(report.findings):
        console.print(_finding(broken))
        # Not wrapped: a command that is copied must stay one line.
        console.print(Text(f"  $ {broken.finding.repro}", style="blue"), soft_wrap=True)


def _overview(report: Report, width: int) -> RenderableType:
    groups = tables.groups(report)
    longest = [max((len(name) for name in names), default=0) for names in zip(*map(_texts, groups), strict=True)]
    wide = width >= sum(longest) + OTHERS
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    if wide:
        table.add_column("operation", no_wrap=True)
    table.add_column("candidate", overflow="fold")
    table.add_column("verdict", no_wrap=True)
    for name in ("laws", "inapplicable", "findings"):
        table.add_column(name, justify="right", no_wrap=True)
    told = None
    for group in groups:
        operation = Text(group.operation or "-")
        if not wide and group.operation != told:
            told = group.operation
            table.add_row(operation)
        table.add_row(
            *([operation, Text(group.candidate)] if wide else [Text(f"  {group.candidate}")]),
            _verdict(group.verdict),
            _laws(group),
            str(group.inapplicable or "-"),
            str(len(group.findings) or "-"),
        )
    return table


def _texts(group: tables.Group) -> tuple[str, str, str]:
    return group.operation or "-", group.candidate[:NAME], _laws(group)


def _laws(group: tables.Group) -> str:
    return f"{group.exercised} of {group.applicable}"


def _verdict(verdict: Verdict) -> Text:
    return Text(verdict.name, style=STYLES[verdict])


def _finding(broken: tables.Broken) -> RenderableType:
    finding = broken.finding
    title = Text.assemble("\n", (finding.verdict.name, STYLES[finding.verdict]), "  ", (finding.rule, "bold"))
    title.append(f"  {finding.candidate}", style="dim")
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(broken):
        table.add_row(name, Text(value))
    return Group(
        title, Padding(Text(finding.message), (0, 0, 0, 2), expand=False), Padding(table, (0, 0, 0, 2), expand=False)
    )


def _rows(broken: tables.Broken) -> Iterator[tuple[str, str]]:
    finding = broken.finding
    yield "where", tables.place(finding)
    yield "case", tables.circumstances(finding)
    yield "measured", tables.compared(finding)
    if broken.more:
        yield "also", broken.others
    if finding.waiver:
        yield "waiver", finding.waiver


def _silent(report: Report) -> list[Check]:
    told = {(finding.rule, finding.candidate) for finding in report.findings}
    silent = (c for c in report.checks if c.verdict > Verdict.WAIVED and (c.rule, c.candidate) not in told)
    return sorted(silent, key=tables.check_key)


def _silence(check: Check) -> Text:
    reason = "exercised, without a verdict" if check.exercised else "not exercised: no case reached it"
    if check.inapplicable:
        reason += f"; inapplicable where {tables.reasons(check)}"
    text = Text.assemble("\n", _verdict(check.verdict), "  ", (check.rule, "bold"), (f"  {check.candidate}", "dim"))
    return text.append(f"\n  {reason}")


def _inapplicable(report: Report) -> Iterator[Text]:
    """One line a rule; where several candidates are excused, one of their reasons: the JSON report has them all."""
    by: dict[str, list[str]] = {}
    for check in report.checks:
        if tables.status(check) == "inapplicable":
            by.setdefault(check.rule, []).append("; ".join(sorted(check.inapplicable)))
    if by:
        yield Text("\nInapplicable", style="dim")
    for rule, reasons in sorted(by.items()):
        among = f"  ({len(reasons)} candidates, such as this)" if len(reasons) > 1 else ""
        yield Text.assemble("  ", rule, (f"  {min(reasons, key=len)}{among}", "dim"))
