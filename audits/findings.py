"""Turns what a law saw into a finding: rounded numbers, a fingerprint, and the command that shows it again."""

from __future__ import annotations

import hashlib
import math
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from assay.audits.laws.shared import MACHINE_RULES
from assay.audits.terms import Candidate, Evidence, Finding, Operation

if TYPE_CHECKING:
    from assay.audits.run import Options


@dataclass(frozen=True, kw_only=True)
class Broke:
    """Evidence with the rule, case and dtype it belongs to."""

    rule: str
    case: str
    dtype: str
    evidence: Evidence


def finding(operation: Operation, candidate: Candidate, broke: Broke, cases_broken: int, options: Options) -> Finding:
    """The finding that a piece of evidence amounts to."""
    evidence, rule = broke.evidence, f"{operation.name}.{broke.rule}"
    return Finding(
        rule=rule,
        candidate=candidate.name,
        operation=operation.name,
        case=broke.case,
        dtype=broke.dtype,
        where=evidence.where,
        measured=rounded(evidence.measured),
        limit=rounded(evidence.limit),
        message=evidence.message,
        repro=repro(operation, candidate, broke, options),
        fingerprint=fingerprint(rule, candidate.name, broke.dtype, evidence.where),
        verdict=evidence.verdict,
        index=evidence.index,
        cases_broken=cases_broken,
    )


def rounded(number: float | str) -> float | str:
    """A number to three significant digits; text as it is."""
    if isinstance(number, str) or not math.isfinite(number):
        return number if isinstance(number, str) else str(number)
    return float(f"{number:.3g}")


def fingerprint(*parts: str) -> str:
    """Twelve hex digits that stay the same while rule, candidate, dtype and place do."""
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:12]


def repro(operation: Operation, candidate: Candidate, broke: Broke, options: Options) -> str:
    """One command that runs this law on this case again."""
    target = candidate.target
    words = ["assay", "audit", operation.name]
    if "family" in target:
        words += ["--family", str(target["family"])]
    if "patch" in target and target["patch"]:
        words += ["--patch", str(target["patch"])]
    if "family" not in target:
        words += ["--candidate", str(target["ref"]) if target.get("public") else candidate.name]
        words += ["--form", candidate.form] if target.get("public") and candidate.form else []
    machine = broke.rule in MACHINE_RULES
    words += [] if machine else ["--law", broke.rule]
    words += ["--case", broke.case] if broke.case else []
    words += ["--dtype", broke.dtype, "--seed", str(options.seed)]
    words += ["--device", options.device] if options.device != "cpu" else []
    return shlex.join(words)
