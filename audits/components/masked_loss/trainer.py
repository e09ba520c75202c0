"""``masked_loss.trainer``: one optimiser step of transformers' own Trainer, over micro-batches of unequal counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from assay.audits.candidates import of_family
from assay.audits.components.masked_loss.model import KERNEL
from assay.audits.families import causal
from assay.audits.families.trainer_run import StepCall
from assay.audits.fields import Count, Samples, Size
from assay.audits.terms import Candidate, Operation, Relations

NAME = "masked_loss.trainer"
FACTORY = "assay.audits.families.trainer_run:implementation"
DEFAULT_FAMILY = "llama"
FAMILIES = ("llama", "qwen2_5_vl", "bart")
"""Of the default audit: a family that is counted right, one that the Trainer hands no count, one that ignores it."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Parameters of a case: the samples of a step, and in how many micro-batches they come.

    ``smoothing`` is the Trainer's ``label_smoothing_factor``. ``packed``: each micro-batch is one row of its samples.
    """

    family: str = DEFAULT_FAMILY
    samples: Samples = ("t9", "t3", "t6", "t4")
    micro: Size = 4
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    packed: bool = False
    seed: Count = 0


def build(case: Case, dtype: torch.dtype, _device: torch.device) -> StepCall:
    """The step of a case; its micro-batches are made beside the model, in the worker."""
    return StepCall(
        samples=case.samples, micro=case.micro, smoothing=case.smoothing, seed=case.seed, packed=case.packed,
        dtype=str(dtype).rpartition(".")[2],
    )  # fmt: skip


def supports(case: Case) -> str | None:
    """Whether the samples go evenly into the micro-batches."""
    if len(case.samples) % case.micro:
        return f"{len(case.samples)} samples do not go into {case.micro} micro-batches"
    return None


CASES = {
    "accumulated": Case(),
    "smoothed": Case(smoothing=0.1, seed=1),
    "packed": Case(micro=2, packed=True, seed=2),
}

OPERATION = Operation(
    name=NAME,
    summary="one step of transformers' Trainer on a family's tiny model, over micro-batches of unequal counts",
    params=Case,
    build=build,
    outputs=("loss",),
    expect=Relations(),
    cases=CASES,
    supports=supports,
    dtypes=("float32",),
    level="pipeline",
)


def _candidate(name: str, patch: str = "") -> Candidate:
    return of_family(NAME, name, patch, factory=FACTORY, scope={"family": name})


CANDIDATES = (*(_candidate(name) for name in FAMILIES), _candidate(DEFAULT_FAMILY, KERNEL))


def for_family(name: str, patch: str) -> Candidate | None:
    """The Trainer on a family's model, under a patch if there is one; None for a family that has no such loss."""
    return _candidate(name, patch) if causal.is_known(name) else None
