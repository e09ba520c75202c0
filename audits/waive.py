"""Applies waivers to a report: findings accepted until a date, up to a number, for a reason.

A waiver is a ``[[waiver]]`` table with the fields of :class:`~assay.audits.terms.Waiver`::

    [[waiver]]
    rule = "mrope.rotate.parity"       # glob; so are candidate, case and where (the tensor), both "*" if left out
    candidate = "hf.ernie4_5_vl_moe"
    worst = 0.0123                     # the worst accepted number; not needed where the measured value is text
    versions = "transformers>=5.17"    # a bare range is one of transformers
    reason = "the tables are rounded to bfloat16 before the rotation"
    issue = "https://github.com/huggingface/transformers/issues/1"
    until = "2027-01-31"               # 90 days ahead at most

It covers a FAIL or an UNKNOWN. What is worse than ``worst`` is not covered, and neither is a number without ``worst``.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fnmatch import fnmatchcase

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from assay.audits.laws.shared import MACHINE_RULES
from assay.audits.render.tables import amount, number, operation_of, rounded
from assay.audits.terms import Check, Finding, Report, Verdict, Waiver

_IDENTITY = ("rule", "candidate", "case", "where", "versions")
LONGEST = dt.timedelta(days=90)
"""How far ahead a waiver may last."""


def version_range(text: str) -> tuple[str, SpecifierSet]:
    """The package and range of a waiver's ``versions``; ``>=5.17`` is of transformers. ValueError when neither."""
    try:
        return "transformers", SpecifierSet(text)
    except InvalidSpecifier:
        return _named_range(text)


def _named_range(text: str) -> tuple[str, SpecifierSet]:
    message = f"expected a version range such as '>=5.17' or 'torch<2.10', got {text!r}"
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        raise ValueError(message) from error
    if not requirement.specifier or requirement.marker or requirement.extras or requirement.url:
        raise ValueError(message)
    return requirement.name, requirement.specifier


def apply(report: Report, waivers: Iterable[Waiver], today: dt.date) -> Report:
    """The report after its waivers: covered findings are WAIVED, expired and stale waivers are findings that FAIL.

    A waiver whose version range does not hold here says nothing. An expired one covers nothing; in a filtered run it
    is a finding only where it matches one. A waiver is stale when a check of its rule and candidate was exercised and
    nothing matched; a filtered run cannot tell.
    """
    active = [(place, item) for place, item in enumerate(waivers, 1) if _in_range(item, report)]
    findings = tuple(_judged(finding, [item for _, item in active], today) for finding in report.findings)
    trouble = tuple(found for place, item in active for found in _trouble(report, place, item, today))
    checks = tuple(_follow(check, report.findings, findings) for check in report.checks)
    return replace(report, findings=findings + trouble, checks=checks)


def _in_range(waiver: Waiver, report: Report) -> bool:
    if not waiver.versions:
        return True
    package, versions = version_range(waiver.versions)
    installed = report.environment.get(package)
    return installed is not None and versions.contains(installed, prereleases=True)


def _matches(waiver: Waiver, finding: Finding) -> bool:
    pairs = (
        (finding.rule, waiver.rule),
        (finding.candidate, waiver.candidate),
        (finding.case, waiver.case),
        (finding.where, waiver.where),
    )
    return finding.verdict >= Verdict.UNKNOWN and all(fnmatchcase(value, pattern) for value, pattern in pairs)


def _expired(waiver: Waiver, today: dt.date) -> bool:
    return dt.date.fromisoformat(waiver.until) < today


def _judged(finding: Finding, waivers: list[Waiver], today: dt.date) -> Finding:
    notes = []
    for waiver in (waiver for waiver in waivers if _matches(waiver, finding)):
        refusal = _refusal(waiver, finding, today)
        if not refusal:
            note = f"accepted until {waiver.until}: {waiver.reason} ({waiver.issue})"
            return replace(finding, verdict=Verdict.WAIVED, waiver=note)
        notes.append(f"not covered: {refusal}")
    return replace(finding, waiver="; ".join(notes)) if notes else finding


def _refusal(waiver: Waiver, finding: Finding, today: dt.date) -> str:
    """Why a waiver that matches a finding does not cover it; empty when it does."""
    if _expired(waiver, today):
        return f"the waiver expired on {waiver.until}"
    measured = number(finding.measured)
    if measured is None:
        return ""
    if waiver.worst is None:
        return f"{amount(measured)} was measured, and the waiver gives no worst number"
    # A number is compared as it is shown, so that what a report says can be written down as the worst.
    measured = rounded(measured)
    if math.isnan(measured) or measured > waiver.worst:
        return f"{amount(measured)} is worse than the accepted {waiver.worst:g}"
    return ""


def _trouble(report: Report, place: int, waiver: Waiver, today: dt.date) -> Iterator[Finding]:
    matched = any(_matches(waiver, finding) for finding in report.findings)
    if _expired(waiver, today):
        if matched or not report.filtered:
            message = f"the waiver expired; renew it with a reason or mend what it covers ({waiver.issue})"
            yield _finding("waiver.expired", place, waiver, (f"until {waiver.until}", f"today, {today}"), message)
    elif not matched and not report.filtered and (cases := _exercised(report, waiver)):
        message = f"the waiver matches nothing any more; delete it ({waiver.issue})"
        measured = (f"0 findings in {cases} exercised checks", "at least 1 finding")
        yield _finding("waiver.stale", place, waiver, measured, message)


def _exercised(report: Report, waiver: Waiver) -> int:
    """How many exercised checks lie in a waiver's scope.

    Rules of the judge itself (``mrope.rotate.raises``) have no check: all checks of their operation stand for them.
    """
    mine = [check for check in report.checks if fnmatchcase(check.candidate, waiver.candidate)]
    named = [check for check in mine if fnmatchcase(check.rule, waiver.rule)]
    near = [check for check in mine if waiver.rule.startswith(f"{operation_of(check)}.")]
    return sum(1 for check in (named or near) if check.exercised)


def _finding(rule: str, place: int, waiver: Waiver, values: tuple[str, str], message: str) -> Finding:
    identity = "\0".join([rule, *(getattr(waiver, name) for name in _IDENTITY)])
    return Finding(
        rule=rule,
        candidate=waiver.candidate,
        operation="waivers",
        case=waiver.case,
        dtype="",
        where=f"waiver {place}: {waiver.rule}",
        measured=values[0],
        limit=values[1],
        message=message,
        repro="assay audit --waivers waivers.toml",
        fingerprint=hashlib.sha256(identity.encode()).hexdigest()[:16],
        verdict=Verdict.FAIL,
    )


ENDS = frozenset({"unloadable", "timeout", "device"})
"""Rules of the judge after which a candidate is not asked again."""


def _follow(check: Check, before: tuple[Finding, ...], after: tuple[Finding, ...]) -> Check:
    """A check is as bad as its findings, where they were what made it so."""
    own = [pair for pair in zip(before, after, strict=True) if _belongs(pair[0], check)]
    if not own or check.verdict > max(old.verdict for old, _ in own):
        return check
    return replace(check, verdict=max(new.verdict for _, new in own))


def _belongs(finding: Finding, check: Check) -> bool:
    """A check's own findings, and those of the judge about it.

    ``not-exercised`` names its law as the place; what ended the audit of a candidate is why no other law was exercised.
    """
    if finding.candidate != check.candidate:
        return False
    law = finding.rule.rpartition(".")[2]
    if law in ENDS and check.rule.startswith(f"{finding.operation}.") and not check.exercised:
        return True
    about = law in MACHINE_RULES and f"{finding.operation}.{finding.where}" == check.rule
    return about or finding.rule == check.rule
