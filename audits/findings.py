"""Turns what a law saw into a finding: rounded numbers, a fingerprint, and the command that shows it again."""

from __future__ import annotations

import hashlib
import math
import shlex
from dataclasses import dataclass
from typing import Any

from assay.audits.laws.shared import MACHINE_RULES
from assay.audits.options import Options
from assay.audits.render import tables
from assay.audits.terms import Candidate, Evidence, Finding, Operation

DEFAULT = Options()


@dataclass(frozen=True, kw_only=True)
class Broke:
    """Evidence with the rule, case and dtype it belongs to, and the law that was looking.

    ``params`` are those of the case; ``alone`` is false where the case shows it only after others.
    """

    rule: str
    case: str
    dtype: str
    evidence: Evidence
    law: str = ""
    params: Any = None
    alone: bool = True

    @property
    def asks(self) -> tuple[str, ...]:
        """The laws whose calls show it: none in particular where it was the judge who saw how a call ended."""
        if self.rule in MACHINE_RULES or (self.rule == "returns" and self.law != self.rule):
            return ()
        return tuple(dict.fromkeys((self.rule, self.law or self.rule)))


def finding(operation: Operation, candidate: Candidate, broke: Broke, cases_broken: int, options: Options) -> Finding:
    """The finding that a piece of evidence amounts to."""
    evidence, rule = broke.evidence, f"{operation.name}.{broke.rule}"
    digits = tables.digits(evidence.measured, evidence.limit)
    return Finding(
        rule=rule,
        candidate=candidate.name,
        operation=operation.name,
        case=broke.case,
        dtype=broke.dtype,
        where=evidence.where,
        measured=rounded(evidence.measured, digits),
        limit=rounded(evidence.limit, digits),
        message=evidence.message,
        repro=repro(operation, candidate, broke, options),
        fingerprint=fingerprint(rule, candidate.name, broke.dtype, evidence.where),
        verdict=evidence.verdict,
        index=evidence.index,
        cases_broken=cases_broken,
    )


def rounded(number: float | str, digits: int = tables.DIGITS) -> float | str:
    """A number to some significant digits, by its name where it is not finite; text as it is."""
    if isinstance(number, str) or not math.isfinite(number):
        return number if isinstance(number, str) else str(number)
    return tables.rounded(number, digits)


def fingerprint(*parts: str) -> str:
    """Twelve hex digits that stay the same while rule, candidate, dtype and place do."""
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:12]


def repro(operation: Operation, candidate: Candidate, broke: Broke, options: Options) -> str:
    """One command that runs this law on this case again."""
    target = candidate.target
    own_name = target.get("pipeline") != candidate.name
    by_family = "family" in target and "peer" not in target
    words = ["assay", "audit", operation.name]
    if not own_name:
        words += ["--pipeline", candidate.name]
    if by_family:
        words += ["--family", str(target["family"])]
    if target.get("patch") and by_family:
        words += ["--patch", str(target["patch"])]
    if not by_family and own_name:
        name = candidate.name.removesuffix(f"@{candidate.judged_as}")
        words += ["--peer", str(target["peer"])] if "peer" in target else []
        words += ["--candidate", str(target["ref"]) if target.get("public") else name]
        words += ["--form", candidate.form] if target.get("public") and candidate.form else []
        words += ["--family", candidate.judged_as] if candidate.judged_as else []
    if broke.alone:
        words += [word for law in broke.asks for word in ("--law", law)]
        words += ["--case", broke.case] if broke.case else []
        words += ["--dtype", broke.dtype]
    words += ["--seed", str(options.seed)]
    words += ["--python", options.python] if options.python and not candidate.trusted else []
    words += ["--examples", str(options.examples)] if not broke.alone and options.examples != DEFAULT.examples else []
    words += ["--device", options.device] if options.device != DEFAULT.device else []
    words += ["--time-limit", f"{options.time_limit:g}"] if options.time_limit != DEFAULT.time_limit else []
    return shlex.join(words)
