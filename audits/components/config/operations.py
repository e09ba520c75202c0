"""Configurations: task switches against what the data holds, and fields whose change changes nothing."""

from __future__ import annotations

from assay.audits.components.config import knobs, tasks
from assay.audits.families import causal
from assay.audits.terms import Candidate

OPERATIONS = (tasks.OPERATION, knobs.OPERATION)
CANDIDATES = (*tasks.CANDIDATES, *knobs.CANDIDATES)


def family_candidate(operation: str, name: str, patch: str) -> Candidate | None:
    """The fields of a family's own configuration; None where there is a patch, which changes no configuration."""
    if operation != knobs.NAME or patch or not causal.is_known(name):
        return None
    return knobs.of_family(name)


def on_request(_candidate: Candidate) -> bool:
    """Every field of a configuration is a model of its own: families are asked by name."""
    return True
