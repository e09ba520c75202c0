"""What becomes of a call that does not return, and of a checker that fails: rules with their evidence."""

from __future__ import annotations

import re

from assay.audits.laws import parity
from assay.audits.laws.trial import Broken, Trial
from assay.audits.terms import Evidence, Outcome, Verdict


def misfit(trial: Trial) -> list[tuple[str, Evidence]]:
    """What is wrong with the form of the candidate's answer: a law that fails on such is not at fault."""
    if parity.has_oracle(trial.operation, trial.params):
        return []
    try:
        return [("returns", item) for item in parity.returns(trial)]
    except Broken as broken:
        return [ended(broken.outcome)]
    except Exception:  # noqa: BLE001 - then the checker itself failed, which is said
        return []


def checker_failed(where: str, error: Exception) -> Evidence:
    """Evidence that a law, or what it needs, did not work."""
    text = _stable(f"{where}: {type(error).__name__}: {error}")[:500]
    return Evidence(where=where, measured=text, limit="no error", message="the checker failed", verdict=Verdict.UNKNOWN)


def ended(outcome: Outcome) -> tuple[str, Evidence]:
    """How a call ended that did not return, as a rule and its evidence."""
    raised = outcome.raised
    assert raised is not None
    special = {"timeout": "timeout", "unloadable": "unloadable", "BadReturn": "returns"}
    rule = special.get(raised.kind, "raises")
    verdict = Verdict.UNKNOWN if rule in {"timeout", "unloadable"} else Verdict.FAIL
    place = [] if rule == "returns" else raised.traceback.strip().splitlines()[-3:-1]
    printed = outcome.stdout.strip().splitlines()[-1:] if raised.kind in {"exit", "signal", "timeout"} else []
    text = " ".join([raised.message, *(line.strip() for line in place), *(f"(it printed: {line})" for line in printed)])
    evidence = Evidence(
        where="call", measured=raised.kind, limit="returns", message=_stable(text).strip()[:600], verdict=verdict
    )
    return rule, evidence


def _stable(text: str) -> str:
    """Without what differs from run to run and from machine to machine: addresses in memory, folders of a traceback."""
    text = re.sub(r'File "[^"]*/([^"/]+)", line', r'File "\1", line', text)
    return re.sub(r"\b0x[0-9a-f]{6,}\b", "0x...", text)
