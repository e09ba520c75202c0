"""Patches of whole models: what they change, whether it runs, and whether the model trains as it did without."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated

import torch

from assay.audits.families import discovery
from assay.audits.fields import Count, one_of
from assay.audits.patch_runs import CONTENT, Training
from assay.audits.terms import Candidate, Operation, Relations

NAME = "patch"
FACTORY = "assay.audits.patches:implementation"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A short training run. ``content``: ``text``, ``image``, or ``all`` that the family takes."""

    content: Annotated[str, one_of((*CONTENT, "all"))] = "image"
    padding: Annotated[str, one_of(("right", "left"))] = "right"
    seed: Count = 0
    train: bool = True
    steps: Count = 3


def build(case: Case, dtype: torch.dtype, device: torch.device) -> Training:
    """The run that a case describes; its batch is made where the model is, by the family's own processor."""
    return Training(**dataclasses.asdict(case), dtype=str(dtype).removeprefix("torch."), device=str(device))


CASES = {
    "all": Case(content="all"),  # every kind of content: whatever a patch replaced has the chance to run
    "left": Case(padding="left", seed=1),  # what most attention backends ask for in generation
    "text": Case(content="text", train=False, seed=2),  # no image: the paths that patches tend to forget
}

OPERATION = Operation(
    name=NAME,
    summary="a family's tiny model, trained for a few steps with and without a patch",
    params=Case,
    build=build,
    outputs=("loss", "logits"),
    expect=Relations(),
    cases=CASES,
    dtypes=("float32",),
    level="family",
)

OPERATIONS = (OPERATION,)


def _own(name: str, patch: str) -> Candidate:
    target = {"kind": "factory", "ref": FACTORY, "family": "qwen2_5_vl", "patch": patch}
    return Candidate(operation=NAME, name=name, target=target, origin=patch)


CANDIDATES = (
    _own("reference", "assay.audits.components.patch.faults:reference"),
    _own("kernel", "assay.audits.components.patch.faults:kernel"),
)
"""The project's own rotations, in the family that most reports are about."""


def family_candidate(operation: str, name: str, patch: str) -> Candidate | None:
    """The patch ``package.module:apply`` in the family ``name``; None where there is no patch or no such family."""
    if not patch or isinstance(discovery.family(name), str):
        return None
    target = {"kind": "factory", "ref": FACTORY, "family": name, "patch": patch}
    return Candidate(operation=operation, name=f"{name}+{patch}", target=target, origin=patch)
