"""``masked_loss.model``: the loss that a whole model of a family computes from labels, and the gradients it gives."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from assay.audits.components.mrope.rotate import family_name
from assay.audits.families import causal, discovery, samples
from assay.audits.families.loss_run import LossCall
from assay.audits.fields import Count, Samples
from assay.audits.terms import Candidate, Family, Operation, Relations

NAME = "masked_loss.model"
FACTORY = "assay.audits.families.loss_run:implementation"
DEFAULT_FAMILY = "qwen3_vl"
"""The family of a case that names none."""
TEXT_FAMILIES = (
    "llama", "gemma2", "cohere", "gpt2", "mixtral",
    "llava",
)  # fmt: skip
"""Further families of the default audit: soft-caps, logit scales, tied and biased heads, experts. Any other by name."""
KERNEL = "assay.audits.patch_losses:kernel"
PATCHED = ("qwen2_5_vl", "gemma2", "cohere")
"""Families whose default audit puts the project's own fused loss to the same laws."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Parameters of a case: samples in the notation of ``audits.families.samples``, and the family they go to."""

    family: str = DEFAULT_FAMILY
    samples: Samples = ("t9", "t1", "t6")
    seed: Count = 0

    @property
    def modalities(self) -> frozenset[str]:
        """What the samples hold besides text."""
        return frozenset().union(*(samples.parse(sample).modalities for sample in self.samples))


def build(case: Case, dtype: torch.dtype, _device: torch.device) -> LossCall:
    """The call of a case. The batch itself is made beside the model, in the worker."""
    return LossCall(
        samples=case.samples,
        keys=tuple(range(len(case.samples))),
        seed=case.seed,
        dtype=str(dtype).rpartition(".")[2],
    )


def supports(case: Case) -> str | None:
    """Whether the family takes such samples."""
    family = causal.family(case.family)
    if isinstance(family, str):
        return None
    lacking = sorted(case.modalities - set(family.modalities))
    return f"{case.family} takes no {' or '.join(lacking)}" if lacking else None


CASES = {
    "text": Case(),  # one sample has no token that anything predicts
    "images": Case(samples=("t4 i4x6 t5", "t2 i2x4 t3"), seed=1),
}

OPERATION = Operation(
    name=NAME,
    summary="a tiny model of a family with labels: its loss, and the gradient of every parameter",
    params=Case,
    build=build,
    outputs=("loss",),
    expect=Relations(),
    forms=(),
    cases=CASES,
    strategy=None,
    supports=supports,
    dtypes=("float64",),
    level="family",
)


def _candidate(name: str, patch: str = "") -> Candidate:
    return Candidate(
        operation=NAME, name=family_name(name, patch), origin="transformers", scope={"family": name},
        target={"kind": "factory", "ref": FACTORY, "operation": NAME, "family": name, "patch": patch},
    )  # fmt: skip


CANDIDATES = (
    *(_candidate(name) for name in TEXT_FAMILIES),
    *(_candidate(name, KERNEL) for name in PATCHED),
)


def for_family(name: str, patch: str) -> Candidate | None:
    """The family's model, under a patch if there is one; None for a family that has no loss of this kind.

    A family that has no tiny model gets a candidate too, which says so when it is loaded.
    """
    known = name in causal.classes() or isinstance(discovery.family(name), Family)
    return _candidate(name, patch) if known else None


def in_float32(call: LossCall) -> LossCall:
    """The same call in float32: how far apart the two are is the ordinary error of such a model."""
    return dataclasses.replace(call, dtype="float32")
