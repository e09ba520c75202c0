"""What has been seen of one candidate so far, and the report that it amounts to."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from assay.audits import registry
from assay.audits.environment import environment
from assay.audits.findings import Broke, finding
from assay.audits.options import Options
from assay.audits.terms import Candidate, Check, Evidence, Finding, Law, Operation, Report, Verdict

EXPLAINS = {"raises", "timeout", "unloadable", "device"}
"""Rules whose finding says why other laws were not exercised."""
Confirm = Callable[[list[Broke]], Broke]
"""From evidence of one kind, worst first, to the piece that a finding is made of."""


@dataclass
class Tally:
    """Evidence by law, and how often each law was put to the candidate, exercised to its end, or inapplicable.

    ``gone`` candidates do not answer any more, and are asked no more. ``offered`` counts a law's cases.
    """

    operation: Operation
    candidate: Candidate
    options: Options
    broke: list[Broke] = field(default_factory=list)
    attempted: Counter[str] = field(default_factory=Counter)
    offered: Counter[str] = field(default_factory=Counter)
    exercised: Counter[str] = field(default_factory=Counter)
    inapplicable: dict[str, Counter[str]] = field(default_factory=dict)
    gone: bool = False

    @property
    def scope(self) -> dict[str, Any]:
        """The case parameters that the call form and the candidate fix."""
        form = self.candidate.form
        return {**(registry.form(self.operation.name, form).fixes if form else {}), **self.candidate.scope}

    @property
    def costly(self) -> bool:
        """Whether cases are to be saved: not on a GPU, and not where a case was asked for by name."""
        return self.candidate.costly and self.options.device == "cpu" and not self.options.cases

    def silent(self, law: str) -> bool:
        """Whether a law that applied somewhere was never exercised to its end."""
        return not self.exercised[law] and bool(self.attempted[law] or law not in self.inapplicable)

    def excuse(self, law: str, reason: str) -> None:
        """Count a law that says nothing about a case."""
        self.inapplicable.setdefault(law, Counter())[reason] += 1


def unknown(tally: Tally, rule: str, evidence: Evidence) -> Broke:
    """Evidence about the machine, which belongs to no case."""
    dtype = (tally.options.dtypes or tally.operation.dtypes)[0]
    return Broke(rule=rule, case="", dtype=dtype, evidence=evidence)


def absent(tally: Tally, rule: str, message: str) -> Broke:
    """Evidence that something that an audit needs is not there."""
    return unknown(
        tally, rule,
        Evidence(
            where=tally.operation.name, measured="absent", limit="present", message=message, verdict=Verdict.UNKNOWN
        ),
    )  # fmt: skip


def report(tally: Tally, laws: tuple[Law, ...], confirm: Confirm) -> Report:
    """The report on one candidate."""
    findings = _findings(tally, [*tally.broke, *_not_exercised(tally, laws)], confirm)
    return Report(
        findings=tuple(findings),
        checks=tuple(_check(tally, law, findings) for law in laws),
        environment=environment(tally.options.device),
        filtered=tally.options.filtered,
    )


def _check(tally: Tally, law: Law, findings: list[Finding]) -> Check:
    rule = f"{tally.operation.name}.{law.name}"
    worst = max((f.verdict for f in findings if f.rule == rule), default=Verdict.PASS)
    return Check(
        rule=rule,
        candidate=tally.candidate.name,
        exercised=tally.exercised[law.name],
        inapplicable=dict(sorted(tally.inapplicable.get(law.name, Counter()).items())),
        verdict=max(worst, Verdict.UNKNOWN) if tally.silent(law.name) else worst,
    )


def _not_exercised(tally: Tally, laws: tuple[Law, ...]) -> Iterator[Broke]:
    """Laws that were not exercised, unless a finding already says why."""
    if any(item.rule in EXPLAINS for item in tally.broke):
        return
    for law in laws:
        if tally.silent(law.name):
            yield unknown(
                tally, "not-exercised",
                Evidence(
                    where=law.name, measured="0 cases", limit="at least 1 case", verdict=Verdict.UNKNOWN,
                    message="the law applied and was never exercised to its end",
                ),
            )  # fmt: skip


def _findings(tally: Tally, broke: list[Broke], confirm: Confirm) -> list[Finding]:
    """One finding per rule, dtype and place: the case that breaks it worst, with the number of cases that do."""
    groups: dict[tuple[str, str, str], list[Broke]] = {}
    for item in broke:
        groups.setdefault((item.rule, item.dtype, item.evidence.where), []).append(item)
    found = [
        finding(
            tally.operation, tally.candidate, confirm(sorted(group, key=_severity, reverse=True)),
            len({item.case for item in group}), tally.options,
        )
        for group in groups.values()
    ]  # fmt: skip
    return sorted(found, key=lambda f: (-f.verdict, f.rule, f.dtype, f.where))


def _severity(item: Broke) -> tuple[int, float, bool, bool]:
    measured, limit = item.evidence.measured, item.evidence.limit
    ratio = 0.0
    if isinstance(measured, float) and isinstance(limit, float) and limit:
        ratio = measured / limit if not math.isnan(measured) else math.inf
    return int(item.evidence.verdict), ratio, item.law == item.rule, not item.case.startswith("{")


def merge(reports: Iterable[Report]) -> Report:
    """Several reports as one."""
    parts = list(reports)
    return Report(
        findings=tuple(f for part in parts for f in part.findings),
        checks=tuple(c for part in parts for c in part.checks),
        environment=parts[0].environment if parts else {},
        filtered=any(part.filtered for part in parts),
    )
