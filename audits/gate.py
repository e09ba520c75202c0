"""The regression gate: what a change made worse, by comparing the report before it with the report after it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from assay.audits.render import tables
from assay.audits.terms import Check, Finding, Report, Verdict

TOLERANCE = 0.10
"""The part by which a measured number may grow before it counts as worse."""


@dataclass(frozen=True, kw_only=True)
class Worse:
    """A finding that both reports have, and what became worse about it."""

    base: Finding
    head: Finding
    why: str


@dataclass(frozen=True, kw_only=True)
class Disappeared:
    """A check that the base exercised and the head did not."""

    check: Check
    why: str


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """What became of every finding and check between two reports.

    ``hidden`` are findings of the base that are gone because nothing looked any more: they are not ``fixed``.
    ``unsettled`` are checks that became UNKNOWN or worse without a finding that says why.
    """

    new: tuple[Finding, ...]
    worse: tuple[Worse, ...]
    disappeared: tuple[Disappeared, ...]
    hidden: tuple[Finding, ...]
    unsettled: tuple[Check, ...]
    fixed: tuple[Finding, ...]
    known: tuple[Finding, ...]
    environment: tuple[str, ...]
    empty: bool

    @property
    def verdict(self) -> Verdict:
        """FAIL for what is new, worse or disappeared; UNKNOWN for what is only newly unknown, and for an empty head."""
        verdicts = [finding.verdict for finding in self.new]
        verdicts += [pair.head.verdict for pair in self.worse]
        verdicts += [check.verdict for check in self.unsettled]
        verdicts += [Verdict.FAIL] if self.disappeared or self.hidden else []
        verdicts += [Verdict.UNKNOWN] if self.empty else []
        return max(verdicts, default=Verdict.PASS)


def gate(base: Report, head: Report) -> GateResult:
    """Compare two reports by the fingerprints of their findings and by their checks."""
    before = {finding.fingerprint: finding for finding in base.findings}
    after = {finding.fingerprint: finding for finding in head.findings}
    gone = _in_order(f for key, f in before.items() if key not in after)
    worse = tuple(_worse(before, after))
    grown = {pair.head.fingerprint for pair in worse}
    return GateResult(
        new=_in_order(f for key, f in after.items() if key not in before),
        worse=worse,
        disappeared=tuple(_disappeared(base, head)),
        hidden=tuple(f for f in gone if not _looked(f, base, head)),
        unsettled=tuple(_unsettled(base, head)),
        fixed=tuple(f for f in gone if _looked(f, base, head)),
        known=_in_order(f for key, f in after.items() if key in before and key not in grown),
        environment=tuple(_environment(base, head)),
        empty=not head.exercised,
    )


def _in_order(findings: Iterator[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=tables.finding_key))


def _worse(before: dict[str, Finding], after: dict[str, Finding]) -> Iterator[Worse]:
    for head in _in_order(iter(after.values())):
        base = before.get(head.fingerprint)
        if base is not None and (why := _why_worse(base, head)):
            yield Worse(base=base, head=head, why=why)


def _why_worse(base: Finding, head: Finding) -> str:
    """What is worse; empty when nothing is, or when a waiver accepts it."""
    if head.verdict <= Verdict.WAIVED:
        return ""
    if head.verdict > base.verdict:
        return f"{base.verdict.name} became {head.verdict.name}"
    left, right = tables.number(base.measured), tables.number(head.measured)
    if left is None or right is None or not _grew(left, right):
        return ""
    return f"{tables.amount(base.measured)} became {tables.amount(head.measured)}"


def _grew(base: float, head: float) -> bool:
    if math.isnan(base) or math.isnan(head):
        return math.isnan(head) and not math.isnan(base)
    return head > base + TOLERANCE * abs(base)


def _disappeared(base: Report, head: Report) -> Iterator[Disappeared]:
    now = {(check.rule, check.candidate): check for check in head.checks}
    for check in sorted(base.checks, key=tables.check_key):
        why = _why_gone(now.get((check.rule, check.candidate)))
        if check.exercised and why:
            yield Disappeared(check=check, why=why)


def _why_gone(check: Check | None) -> str:
    if check is None:
        return "not in the head report"
    if check.exercised:
        return ""
    return f"inapplicable now: {tables.reasons(check)}" if check.inapplicable else "not exercised any more"


def _looked(finding: Finding, base: Report, head: Report) -> bool:
    """Whether the head looked where a finding of the base was.

    That is its own check, if the base exercised one. Findings of the judge itself (``*.raises``) have none: then any
    check of their operation and candidate. Findings about waivers need a head that is not filtered.
    """
    if finding.rule.startswith("waiver."):
        return not head.filtered
    own = any(c.exercised and (c.rule, c.candidate) == (finding.rule, finding.candidate) for c in base.checks)
    exercised = [check for check in head.checks if check.exercised and check.candidate == finding.candidate]
    if own:
        return any(check.rule == finding.rule for check in exercised)
    return any(tables.operation_of(check) == finding.operation for check in exercised)


def _unsettled(base: Report, head: Report) -> Iterator[Check]:
    """Checks that are UNKNOWN or worse in the head with no finding that says so, and were not in the base."""
    before = {(check.rule, check.candidate): check.verdict for check in base.checks}
    told = {(finding.rule, finding.candidate) for finding in head.findings}
    for check in sorted(head.checks, key=tables.check_key):
        key = (check.rule, check.candidate)
        if check.verdict > max(Verdict.WAIVED, before.get(key, Verdict.PASS)) and key not in told:
            yield check


def _environment(base: Report, head: Report) -> Iterator[str]:
    """What differs between the two surroundings: a difference may come from there."""
    for name in sorted({*base.environment, *head.environment}):
        left, right = base.environment.get(name, "none"), head.environment.get(name, "none")
        if left != right:
            yield f"{name} {left} -> {right}"
