"""``masked_loss.model``: the loss that a whole model of a family computes from labels, and the gradients it gives."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from assay.audits.candidates import of_family
from assay.audits.families import causal
from assay.audits.families.batch_case import BatchCase
from assay.audits.families.loss_run import LossCall
from assay.audits.fields import Samples
from assay.audits.terms import Candidate, Operation, Relations

NAME = "masked_loss.model"
FACTORY = "assay.audits.families.loss_run:implementation"
DEFAULT_FAMILY = "qwen3_vl"
"""The family of a case that names none."""
TEXT_FAMILIES = ("llama", "gemma2", "cohere", "gpt2", "mixtral", "llava")
"""Further families of the default audit: soft-caps, logit scales, tied and biased heads, experts. Any other by name."""
KERNEL = "assay.audits.patch_losses:kernel"
PATCHED = ("qwen2_5_vl", "gemma2", "cohere")
"""Families whose default audit puts the project's own fused loss to the same laws."""


@dataclass(frozen=True, kw_only=True)
class Case(BatchCase):
    """Parameters of a case."""

    family: str = DEFAULT_FAMILY
    samples: Samples = ("t9", "t1", "t6")


def build(case: Case, dtype: torch.dtype, _device: torch.device) -> LossCall:
    """The call of a case."""
    return LossCall(**case.call(dtype))


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
    cases=CASES,
    supports=causal.untaken,
    dtypes=("float64",),
    level="family",
)


def _candidate(name: str, patch: str = "") -> Candidate:
    return of_family(NAME, name, patch, factory=FACTORY, scope={"family": name})


CANDIDATES = (
    *(_candidate(name) for name in TEXT_FAMILIES),
    *(_candidate(name, KERNEL) for name in PATCHED),
)


def for_family(name: str, patch: str) -> Candidate | None:
    """The family's model, under a patch if there is one; None for a family that has no loss of this kind.

    A family that has no tiny model gets a candidate too, which says so when it is loaded.
    """
    return _candidate(name, patch) if causal.is_known(name) else None
