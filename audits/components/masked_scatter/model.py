"""``masked_scatter.model``: what a family's own forward puts where, up to the call of its text model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from assay.audits.candidates import of_family
from assay.audits.families import scattering
from assay.audits.families.batch_case import BatchCase
from assay.audits.families.scatter_run import ScatterCall
from assay.audits.fields import Samples, one_of
from assay.audits.terms import Candidate, Operation, Relations

NAME = "masked_scatter.model"
FACTORY = "assay.audits.families.scatter_run:implementation"
DEFAULT_FAMILY = "qwen3_vl"
"""The family of a case that names none: images, videos, deepstack."""
FAMILIES = ("llava", "gemma3", "idefics3", "qwen2_5_omni", "qwen3_vl")
"""The default audit: lists and stacks, a helper of its own, sounds, deepstack. Any other by name."""

REFERENCE = "assay.audits.patch_scatter:reference"
PATCHED = ("blip_2", "qwen3_vl")
"""Families whose default audit puts the project's own scatter to the same laws."""


@dataclass(frozen=True, kw_only=True)
class Case(BatchCase):
    """Parameters of a case. ``i2x3`` is an image of six placeholders, ``v1x2x2`` a video of four, ``a4`` a sound."""

    family: str = DEFAULT_FAMILY
    samples: Samples = ("t2 i2x2 t1 i2x2 t1", "t5", "i2x2 t2")
    padding: Annotated[str, one_of(("right", "left"))] = "right"


def build(case: Case, dtype: torch.dtype, _device: torch.device) -> ScatterCall:
    """The call of a case."""
    return ScatterCall(**case.call(dtype), padding=case.padding)


CASES = {
    "images": Case(),
    "ragged": Case(samples=("t2 i2x3 t1 i1x2 t3", "t4", "t1 i1x5", "i2x2 t2"), padding="left", seed=1),
    "adjacent": Case(samples=("i2x2 i2x2 t1", "t2 i2x2"), seed=2),
    "videos": Case(samples=("t1 v1x2x2 t2", "t3", "v1x2x2 t1 v1x2x2"), seed=3),
    "mixed": Case(samples=("t1 v1x2x2 t1 i2x2 t1", "i2x2 t1 v1x2x2", "t3 i2x2"), seed=4),
    "crowd": Case(
        samples=("i2x2 t1 i2x2 t1 i2x2 i2x2 t1 i2x2 t2", "t3", "t1 i2x2 i2x2", "i2x2 t1", "i2x2 t1 i2x2 i2x2"), seed=6
    ),
    "sounds": Case(samples=("t2 a4 t1", "a4 t3", "t2"), seed=5),
}

OPERATION = Operation(
    name=NAME,
    summary="what a family puts to its placeholders, with known features, up to the call of its text model",
    params=Case,
    build=build,
    outputs=("embeddings",),
    expect=Relations(),
    cases=CASES,
    dtypes=("float32",),
    further_dtypes=("bfloat16",),
    level="family",
)


def _candidate(name: str, patch: str = "") -> Candidate:
    return of_family(NAME, name, patch, factory=FACTORY, scope={"family": name})


CANDIDATES = (*map(_candidate, FAMILIES), *(_candidate(name, REFERENCE) for name in PATCHED))


def for_family(name: str, patch: str) -> Candidate | None:
    """The family's model, under a patch if there is one; None for one that has no features to place.

    A family that has no tiny model gets a candidate too, which says so when it is loaded.
    """
    return _candidate(name, patch) if name in scattering.installed_families() else None
