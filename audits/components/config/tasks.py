"""``config.tasks``: the switches of tasks in a configuration, against what the data holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from assay.audits.components.config.switches import TaskCall, answer
from assay.audits.terms import Candidate, Form, Operation, Relations

NAME = "config.tasks"
OWN = "assay.audits.components.config.task_own"


@dataclass(frozen=True, kw_only=True)
class Case:
    """There is one case: the configuration and the samples that make() returns."""


def build(_case: Case, _dtype: torch.dtype, _device: torch.device) -> TaskCall:
    """The call of a case."""
    return TaskCall()


FORM = Form(
    name="make",
    summary="make(): `config`, `samples` (or splits of them), `switches` from a key of the one to a field of the other",
    parameters=(),
    call=answer,
)

OPERATION = Operation(
    name=NAME,
    summary="switches of tasks in a configuration, against what the samples hold",
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


CANDIDATES = (_own("three-tasks"),)
"""Captions and boxes that are on and there, masks that are off and absent."""
