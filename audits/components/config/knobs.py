"""``config.knobs``: settings whose change changes nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from assay.audits.candidates import of_family as candidate_of_family
from assay.audits.components.config.knob_run import KnobCall, answer
from assay.audits.terms import Candidate, Form, Operation, Relations

NAME = "config.knobs"
OWN = "assay.audits.components.config.knob_own"
FACTORY = "assay.audits.components.config.knob_families:implementation"


@dataclass(frozen=True, kw_only=True)
class Case:
    """``knob``: one setting alone; all of them where none is named."""

    knob: str = ""


def build(case: Case, _dtype: torch.dtype, _device: torch.device) -> KnobCall:
    """The call of a case."""
    return KnobCall(knob=case.knob)


FORM = Form(
    name="make",
    summary="make(): `build(**settings)`, `settings` with two values each, a `batch`; `together`, `inert`",
    parameters=(),
    call=answer,
)

OPERATION = Operation(
    name=NAME,
    summary="settings of something that is built, each changed in turn: whether anything changes",
    params=Case,
    build=build,
    outputs=(),
    expect=Relations(),
    forms=(FORM,),
    cases={"all": Case()},
    dtypes=("float32",),
    level="pipeline",
)


def _own(name: str) -> Candidate:
    ref = f"{OWN}:{name.replace('-', '_')}"
    return Candidate(
        operation=NAME, name=name, form=FORM.name, origin=ref,
        target={"kind": "import", "ref": ref, "operation": NAME},
    )  # fmt: skip


CANDIDATES = (_own("block"),)
"""A transformer block of our own with a dozen settings."""


def of_family(name: str) -> Candidate:
    """The fields of a family's tiny configuration, where the operation is asked for by name too."""
    return replace(candidate_of_family(NAME, name, "", factory=FACTORY, scope={}), by_name=True)
