"""How a report is cut up and worded for a reader: numbers, places and groups, shared by the outputs for people."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from assay.audits.terms import Check, Finding, Report, Verdict

_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_ILLEGIBLE = re.compile("[^\t\n\u0020-\u007e\u00a0-\u2027\u202f-\u2065\u2070-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Control and direction characters, surrogates, line separators: all but what prints."""
_Item = TypeVar("_Item", Finding, Check)
DIGITS = 3
"""Significant digits of a reported number: more would differ from machine to machine."""
EXACT = 17
"""Significant digits that tell any two numbers apart."""


def rounded(number: float, digits: int = DIGITS) -> float:
    """A number at three significant digits, or at more."""
    return float(f"{number:.{digits}g}") if math.isfinite(number) else number


def digits(measured: float | str, limit: float | str) -> int:
    """How many significant digits tell two different numbers apart, and no fewer than ordinary ones have."""
    if isinstance(measured, str) or isinstance(limit, str) or measured == limit:
        return DIGITS
    return next((n for n in range(DIGITS, EXACT) if f"{measured:.{n}g}" != f"{limit:.{n}g}"), EXACT)


def amount(value: float | str) -> str:
    """A measured value or a limit in words: three significant digits, or the text itself."""
    return value if isinstance(value, str) else f"{value:.{DIGITS}g}"


def amounts(finding: Finding) -> tuple[str, str]:
    """What was measured and its limit in words: as they are where three significant digits do not tell them apart."""
    alike = digits(finding.measured, finding.limit) > DIGITS
    measured, limit = (repr(value) if alike else amount(value) for value in (finding.measured, finding.limit))
    return measured, limit


def compared(finding: Finding) -> str:
    """What was measured beside its limit."""
    return ", limit ".join(amounts(finding))


def legible(report: Report) -> Report:
    """The report without the control characters that foreign text may bring: no output can write or shows them all."""
    return replace(
        report,
        findings=tuple(_cleaned(finding) for finding in report.findings),
        checks=tuple(
            replace(_cleaned(check), inapplicable={_clean(why): n for why, n in check.inapplicable.items()})
            for check in report.checks
        ),
        environment={_clean(name): _clean(value) for name, value in report.environment.items()},
    )


def _cleaned(item: _Item) -> _Item:
    values: dict[str, Any] = {field.name: getattr(item, field.name) for field in fields(item)}
    cleaned: dict[str, Any] = {name: _clean(v) if isinstance(v, str) else v for name, v in values.items()}
    return type(item)(**cleaned)


def _clean(text: str) -> str:
    return _ILLEGIBLE.sub("?", text)


def number(value: float | str) -> float | None:
    """A measured value as a number, also where it is the name of one that is not finite; None where it is text."""
    return _NOT_FINITE.get(value) if isinstance(value, str) else value


def place(finding: Finding) -> str:
    """Where it broke: the tensor and its worst index, or the text span."""
    return finding.where + (str(list(finding.index)) if finding.index else "")


def circumstances(finding: Finding) -> str:
    """The case, its dtype, and how many cases broke the same law."""
    case = ", ".join(part for part in (finding.case, finding.dtype) if part) or "-"
    return f"{case} ({finding.cases_broken} cases broken)" if finding.cases_broken > 1 else case


def finding_key(finding: Finding) -> tuple[str, ...]:
    """The order of findings, the same in every output."""
    return (finding.operation, finding.candidate, finding.rule, finding.case, finding.dtype, finding.fingerprint)


def check_key(check: Check) -> tuple[str, str]:
    """The order of checks, the same in every output."""
    return (check.rule, check.candidate)


def counts(report: Report) -> dict[str, int]:
    """Findings by verdict, then checks: looked at, exercised, inapplicable."""
    by = Counter(finding.verdict for finding in report.findings)
    return {
        "failed": by[Verdict.FAIL],
        "unknown": by[Verdict.UNKNOWN],
        "waived": by[Verdict.WAIVED],
        "checked": report.checked,
        "exercised": report.exercised,
        "inapplicable": report.inapplicable,
    }


def counts_line(report: Report) -> str:
    """The counts in one sentence."""
    found = counts(report)
    findings = f"{found['failed']} failed, {found['unknown']} unknown, {found['waived']} waived"
    plural = "" if found["checked"] == 1 else "s"
    checks = f"{found['checked']} check{plural}: {found['exercised']} exercised, {found['inapplicable']} inapplicable"
    rest = found["checked"] - found["exercised"] - found["inapplicable"]
    narrowed = " (narrowed: not everything was asked for)" if report.filtered else ""
    return f"{findings}; {checks}" + (f", {rest} not exercised" if rest else "") + narrowed


def reasons(check: Check) -> str:
    """Why a law said nothing about some cases."""
    return "; ".join(f"{reason} ({count})" for reason, count in sorted(check.inapplicable.items()))


def status(check: Check) -> str:
    """A check's state in one word: its verdict, or that its law did not apply. Not exercised is not passed."""
    if check.exercised or check.verdict is not Verdict.PASS:
        return check.verdict.name
    return "inapplicable" if check.inapplicable else Verdict.UNKNOWN.name


@dataclass(frozen=True, kw_only=True)
class Group:
    """What one candidate of one operation came to."""

    operation: str
    candidate: str
    checks: tuple[Check, ...]
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst of its checks and findings."""
        return max([check.verdict for check in self.checks] + [finding.verdict for finding in self.findings])

    @property
    def applicable(self) -> int:
        """Checks that did not declare themselves inapplicable."""
        return len(self.checks) - self.inapplicable

    @property
    def exercised(self) -> int:
        """Checks exercised at least once."""
        return sum(1 for check in self.checks if check.exercised)

    @property
    def inapplicable(self) -> int:
        """Checks whose law applied to no case."""
        return sum(1 for check in self.checks if not check.exercised and check.inapplicable)


def operation_of(check: Check) -> str:
    """The operation a check's rule belongs to: all but its last word."""
    return check.rule.rpartition(".")[0]


def groups(report: Report) -> tuple[Group, ...]:
    """The report by operation and candidate, in order."""
    keys = {(operation_of(c), c.candidate) for c in report.checks}
    keys |= {(f.operation, f.candidate) for f in report.findings}
    return tuple(_group(report, *key) for key in sorted(keys))


def _group(report: Report, operation: str, candidate: str) -> Group:
    checks = [c for c in report.checks if (operation_of(c), c.candidate) == (operation, candidate)]
    findings = [f for f in report.findings if (f.operation, f.candidate) == (operation, candidate)]
    return Group(
        operation=operation,
        candidate=candidate,
        checks=tuple(sorted(checks, key=check_key)),
        findings=tuple(sorted(findings, key=finding_key)),
    )


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Findings with the worst verdicts in front."""
    return sorted(findings, key=lambda finding: (-finding.verdict, *finding_key(finding)))


@dataclass(frozen=True, kw_only=True)
class Broken:
    """One law broken by one candidate: the finding that shows it best, and the same in other dtypes and places."""

    finding: Finding
    more: tuple[Finding, ...]

    @property
    def others(self) -> str:
        """The other findings in one line; empty where there are none."""
        told = [f"{place(f)} {f.dtype} {amount(f.measured)}".replace("  ", " ") for f in self.more[:SHOWN]]
        rest = len(self.more) - len(told)
        return ", ".join(told) + (f" and {rest} more" if rest else "")


SHOWN = 3
"""How many further findings of one law are named in the outputs for people; the JSON report has them all."""


def broken(findings: Iterable[Finding]) -> list[Broken]:
    """Findings by verdict, candidate and rule: the worst verdicts first, in each the furthest beyond its limit."""
    by: dict[tuple[str, ...], list[Finding]] = {}
    for finding in worst_first(findings):
        by.setdefault((finding.verdict.name, finding.candidate, finding.rule, finding.waiver), []).append(finding)
    gathered = [sorted(group, key=_excess, reverse=True) for group in by.values()]
    return [Broken(finding=group[0], more=tuple(group[1:])) for group in gathered]


def _excess(finding: Finding) -> float:
    """How many times its limit a finding measured; a number that is not finite is beyond all."""
    measured, limit = number(finding.measured), number(finding.limit)
    if measured is None or limit is None:
        return 0.0
    return measured / limit if math.isfinite(measured) and limit else math.inf
