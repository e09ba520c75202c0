"""``loading.paths``: a training script's way of loading a model beside an inference script's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from assay.audits.components.loading.path_run import PathCall, answer
from assay.audits.fields import Count, one_of
from assay.audits.terms import Candidate, Form, Operation, Relations

NAME = "loading.paths"
OWN = "assay.audits.components.loading.path_own"
BATCHES = ("text", "padded", "picture", "own")


@dataclass(frozen=True, kw_only=True)
class Case:
    """What both models are run on: ``text``, a ``padded`` batch, a ``picture``, or the ``own`` batch of make()."""

    batch: Annotated[str, one_of(BATCHES)] = "text"
    seed: Count = 0


def build(case: Case, _dtype: torch.dtype, _device: torch.device) -> PathCall:
    """The call of a case."""
    return PathCall(batch=case.batch, seed=case.seed)


FORM = Form(
    name="make",
    summary="make(): `training` and `inference`, each a function that loads (model, processor); `declared` names",
    parameters=(),
    call=answer,
)

OPERATION = Operation(
    name=NAME,
    summary="two ways of loading a model, for training and for inference: whether they give the same",
    params=Case,
    build=build,
    outputs=(),
    expect=Relations(),
    forms=(FORM,),
    cases={name: Case(batch=name) for name in BATCHES},
    dtypes=("float64",),
    level="pipeline",
)


def _own(name: str) -> Candidate:
    ref = f"{OWN}:{name.replace('-', '_')}"
    return Candidate(
        operation=NAME, name=name, form=FORM.name, origin=ref,
        target={"kind": "import", "ref": ref, "operation": NAME, "pipeline": ref},
    )  # fmt: skip


CANDIDATES = tuple(map(_own, ("saved", "wrapped", "adapted")))
"""A tiny model that is saved and loaded, one in a wrapper with a head of its own, and one with adapters."""
