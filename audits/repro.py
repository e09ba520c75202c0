"""Runs the command of one finding again, and says whether it showed again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from assay.audits.render.tables import finding_key
from assay.audits.terms import Finding, Report, Verdict
from assay.audits.usage import BadUsage


def chosen(report: Report, name: str) -> Finding:
    """The finding with this fingerprint, unique prefix of one, or rule. BadUsage lists the findings otherwise."""
    found = [f for f in report.findings if f.fingerprint == name]
    found = found or [f for f in report.findings if f.rule == name]
    found = found or [f for f in report.findings if name and f.fingerprint.startswith(name)]
    if len(found) == 1:
        return found[0]
    problem = f"{len(found)} findings are named {name!r}" if found else f"no finding is named {name!r}"
    among = sorted(found or report.findings, key=finding_key)
    listed = "".join(f"\n  {f.fingerprint}  {f.rule}  {f.candidate}  {f.dtype}  {f.where}" for f in among)
    message = f"{problem}; {'the report has' if among else 'the report has no findings'}{':' if among else ''}{listed}"
    raise BadUsage(message)


def arguments(finding: Finding) -> list[str]:
    """The arguments of ``assay audit`` that show a finding again. BadUsage when its command is another one."""
    words = shlex.split(finding.repro)
    if words[:2] != ["assay", "audit"]:
        message = f"the command of {finding.fingerprint} is not an audit: {finding.repro!r}"
        raise BadUsage(message)
    return words[2:]


def outcome(finding: Finding, again: Report) -> tuple[str, Verdict]:
    """What came of running a finding again, in a sentence and as a verdict."""
    for other in again.findings:
        if other.fingerprint == finding.fingerprint:
            return f"showed again: {other.verdict.name} {other.rule}", other.verdict
    same = _of_same_rule(finding, again.findings)
    if same:
        return f"showed again, in another place: {same[0].where} instead of {finding.where}", same[0].verdict
    if not again.exercised:
        return "nothing was exercised: nothing is known", Verdict.UNKNOWN
    if again.verdict > Verdict.WAIVED:
        others = ", ".join(sorted({other.rule for other in again.findings if other.verdict > Verdict.WAIVED}))
        return f"did not show again, but there is: {others}", again.verdict
    return "did not show again", Verdict.PASS


def _of_same_rule(finding: Finding, findings: Sequence[Finding]) -> list[Finding]:
    key = (finding.rule, finding.candidate)
    return sorted((f for f in findings if (f.rule, f.candidate) == key), key=lambda f: (-f.verdict, *finding_key(f)))
