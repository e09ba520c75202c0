"""``mrope.model``: a whole model of a family, on real batches, by what it does with its positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch

from assay.audits.candidates import of_family
from assay.audits.families import discovery
from assay.audits.families.batch_case import BatchCase
from assay.audits.families.run import ModelCall
from assay.audits.fields import Samples, one_of
from assay.audits.terms import Candidate, Family, Operation, Relations

NAME = "mrope.model"
DEFAULT_FAMILY = "qwen3_vl"
"""The family of a case that names none: one that transformers 5.23.0 has right."""


@dataclass(frozen=True, kw_only=True)
class Case(BatchCase):
    """Parameters of a case."""

    family: str = DEFAULT_FAMILY
    samples: Samples = ("t5 i4x6 t3", "t2 i2x4 t1 i6x4 t4")
    padding: Annotated[str, one_of(("right", "left"))] = "right"


def build(case: Case, dtype: torch.dtype, _device: torch.device) -> ModelCall:
    """The call of a case."""
    return ModelCall(**case.call(dtype), padding=case.padding)


def supports(case: Case) -> str | None:
    """Whether the family takes such samples."""
    family = discovery.family(case.family)
    if isinstance(family, str):
        return None
    if family.exclusive and len(case.modalities) > 1:
        return f"{case.family} takes images or videos, not both in a batch"
    return case.untaken(family)


CASES = {
    "images": Case(),
    "text": Case(samples=("t9", "t4")),
    "video": Case(samples=("t3 v4x4x6@2 t4", "t6")),
    "long-video": Case(samples=("t2 v12x4x4@2 t5",)),
    "mixed": Case(samples=("t2 v4x4x4@1 t2 i4x6 t2", "t3 i6x2 t1")),
    "audio": Case(samples=("t2 a1.2 t3 i4x4 t1", "t5")),
}

OPERATION = Operation(
    name=NAME,
    summary="a tiny model of a family on real batches: the positions it uses, and what they do to its logits",
    params=Case,
    build=build,
    outputs=("logits",),
    expect=Relations(),
    cases=CASES,
    supports=supports,
    dtypes=("float64",),
    level="family",
)

CANDIDATES = ()


def for_family(family: Family, patch: str) -> Candidate:
    """The family's model, under a patch if there is one."""
    return _candidate(family.name, patch)


def unbuilt(name: str) -> Candidate:
    """A family that has no tiny model here: its candidate says so when it is loaded."""
    return _candidate(name, "")


def _candidate(name: str, patch: str) -> Candidate:
    return of_family(NAME, name, patch, factory="assay.audits.families.run:implementation", scope={"family": name})


def family_of(params: Any) -> Family:
    """The family of a case. LookupError when it has no tiny model."""
    return discovery.loaded(params.family)
