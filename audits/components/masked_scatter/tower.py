"""``masked_scatter.tower``: which pixels each of a family's features is made of, and what its neighbours do to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from assay.audits.candidates import of_family
from assay.audits.families import causal, discovery
from assay.audits.families.batch_case import BatchCase
from assay.audits.families.tower_run import TowerCall
from assay.audits.fields import Samples
from assay.audits.terms import Candidate, Operation, Relations

NAME = "masked_scatter.tower"
FACTORY = "assay.audits.families.tower_run:implementation"
DEFAULT_FAMILY = "qwen3_vl"
"""The family of a case that names none: learned positions, deepstack."""
FAMILIES = ("qwen2_5_vl", "qwen3_vl")
"""The default audit: windows, and inner features. Any other by name."""


@dataclass(frozen=True, kw_only=True)
class Case(BatchCase):
    """Parameters of a case: samples of images or of videos, whose words are passed over."""

    family: str = DEFAULT_FAMILY
    samples: Samples = ("i4x6", "i6x4 i2x2")


def build(case: Case, dtype: torch.dtype, _device: torch.device) -> TowerCall:
    """The call of a case."""
    return TowerCall(**case.call(dtype))


CASES = {
    "images": Case(),
    "one": Case(samples=("i2x8",), seed=1),
    "least": Case(samples=("i2x2", "i2x2", "i4x2"), seed=2),
    "windows": Case(samples=("i6x10", "i2x2"), seed=3),
    "videos": Case(samples=("v2x2x4", "v4x4x2"), seed=4),
}

OPERATION = Operation(
    name=NAME,
    summary="what a family's vision tower makes its features of: patches of their own place, and no other picture",
    params=Case,
    build=build,
    outputs=("features",),
    expect=Relations(),
    cases=CASES,
    supports=causal.untaken,
    dtypes=("float64",),
    level="family",
)


def _candidate(name: str, patch: str = "") -> Candidate:
    return of_family(NAME, name, patch, factory=FACTORY, scope={"family": name})


CANDIDATES = tuple(map(_candidate, FAMILIES))


def for_family(name: str, patch: str) -> Candidate | None:
    """The family's model, under a patch if there is one; None for one whose processor is not written down here."""
    return _candidate(name, patch) if name in discovery.installed_families() else None
