"""``mrope.model``: a whole model of a family, on real batches, by what it does with its positions."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

import torch

from assay.audits.components.mrope.rotate import family_name
from assay.audits.families import discovery, samples
from assay.audits.families.run import ModelCall
from assay.audits.fields import Count, Samples, one_of
from assay.audits.terms import Candidate, Family, Operation, Relations

NAME = "mrope.model"
DEFAULT_FAMILY = "qwen3_vl"
"""The family of a case that names none: one that transformers 5.23.0 has right."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Parameters of a case: samples in the notation of ``audits.families.samples``, and the family they go to."""

    family: str = DEFAULT_FAMILY
    samples: Samples = ("t5 i4x6 t3", "t2 i2x4 t1 i6x4 t4")
    padding: Annotated[str, one_of(("right", "left"))] = "right"
    seed: Count = 0

    @property
    def modalities(self) -> frozenset[str]:
        """What the samples hold besides text."""
        return frozenset().union(*(samples.parse(sample).modalities for sample in self.samples))


def build(case: Case, dtype: torch.dtype, _device: torch.device) -> ModelCall:
    """The call of a case. The batch itself is made beside the model, in the worker."""
    return ModelCall(
        samples=case.samples,
        keys=tuple(range(len(case.samples))),
        padding=case.padding,
        seed=case.seed,
        dtype=str(dtype).rpartition(".")[2],
    )


def supports(case: Case) -> str | None:
    """Whether the family takes such samples."""
    family = discovery.family(case.family)
    if isinstance(family, str):
        return None
    lacking = sorted(case.modalities - set(family.modalities))
    if lacking:
        return f"{case.family} takes no {' or '.join(lacking)}"
    if family.exclusive and len(case.modalities) > 1:
        return f"{case.family} takes images or videos, not both in a batch"
    return None


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
    forms=(),
    cases=CASES,
    strategy=None,
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
    return Candidate(
        operation=NAME, name=family_name(name, patch), origin="transformers", scope={"family": name},
        target={
            "kind": "factory", "ref": "assay.audits.families.run:implementation", "operation": NAME,
            "family": name, "patch": patch,
        },
    )  # fmt: skip


def in_float32(call: ModelCall) -> ModelCall:
    """The same call in float32: how far apart the two are is the ordinary error of such a model."""
    return dataclasses.replace(call, dtype="float32")


def options_of(params: Any) -> Family:
    """The family of a case. LookupError when it has no tiny model."""
    family = discovery.family(params.family)
    if isinstance(family, str):
        raise LookupError(family)
    return family
