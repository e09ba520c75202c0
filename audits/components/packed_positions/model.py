"""``packed_positions.model``: a whole model of a family on samples in one row, by what it is told of their places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from assay.audits.candidates import of_family
from assay.audits.families import causal
from assay.audits.families.batch_case import BatchCase
from assay.audits.families.packed_run import ATTENTIONS, TOLD, PackedCall
from assay.audits.fields import Samples, Size, one_of
from assay.audits.terms import Candidate, Operation, Relations

NAME = "packed_positions.model"
FACTORY = "assay.audits.families.packed_run:implementation"
DEFAULT_FAMILY = "qwen3_vl"
"""The family of a case that names none."""
TEXT_FAMILIES = ("llama", "gemma2", "opt", "qwen3_next")
"""Families of text of the default audit: rotary and learned positions, windows, linear attention. Others by name."""
IMAGE_FAMILIES = ("qwen2_5_vl", "qwen3_vl")
"""Families with several axes of the default audit; all others by ``--family``."""


@dataclass(frozen=True, kw_only=True)
class Case(BatchCase):
    """Parameters of a case: samples in so many rows, how the model is told where they begin, and its attention."""

    family: str = DEFAULT_FAMILY
    samples: Samples = ("t5", "t1", "t7", "t4")
    told: Annotated[str, one_of(TOLD)] = "ids"
    rows: Size = 1
    attention: Annotated[str, one_of(ATTENTIONS)] = "default"


def build(case: Case, dtype: torch.dtype, _device: torch.device) -> PackedCall:
    """The call of a case."""
    return PackedCall(**case.call(dtype), told=case.told, rows=case.rows, attention=case.attention)


IMAGES = ("t4 i4x6 t3", "t3", "t2 i6x4 t1 i2x4 t2")
"""Images of different shape, on both sides of a sample without one."""

VIDEOS = ("t3 v4x4x6@1 t2", "t2", "t1 v2x4x4@2 t1 i4x6 t2")
"""Videos of different length, shape and rate, one of them beside an image."""
CROWD = ("t70", "t1", "t2", "t61", "t3", "t1", "t5", "t2", "t4", "t30")
"""More samples than eight, in a row that is longer than a tile of 128 tokens and cut anywhere."""

CASES = {
    "ids": Case(),
    "ids-eager": Case(attention="eager"),
    "ids-flex": Case(attention="flex_attention"),
    "one": Case(samples=("t6",)),
    "ones-and-long": Case(samples=("t1", "t40", "t1", "t1"), seed=3),
    "ids-flash": Case(attention="flash_attention_2"),
    "lengths": Case(told="lengths"),
    "lengths-eager": Case(told="lengths", attention="eager"),
    "lengths-flex": Case(told="lengths", attention="flex_attention"),
    "lengths-flash": Case(told="lengths", attention="flash_attention_2"),
    "mask": Case(told="mask"),
    "mask-eager": Case(told="mask", attention="eager"),
    "mask-flex": Case(told="mask", attention="flex_attention"),
    "mask-of-ones": Case(told="ones"),
    "mask-of-ones-eager": Case(told="ones", attention="eager"),
    "cached": Case(told="cached"),
    "trainer": Case(told="trainer"),
    "crowd": Case(samples=CROWD, seed=4),
    "two-rows": Case(samples=("t5", "t3", "t2", "t6"), rows=2),
    "images": Case(samples=IMAGES),
    "images-eager": Case(samples=IMAGES, attention="eager"),
    "images-flex": Case(samples=IMAGES, attention="flex_attention"),
    "images-flash": Case(samples=IMAGES, attention="flash_attention_2"),
    "images-flat": Case(samples=IMAGES, told="flat"),
    "images-lengths": Case(samples=IMAGES, told="lengths"),
    "images-trainer": Case(samples=IMAGES, told="trainer"),
    "images-two-rows": Case(samples=("t4 i4x6 t3", "t3", "t3", "t4 i4x6 t3"), rows=2),
    "videos": Case(samples=VIDEOS, seed=1),
    "images-mask": Case(samples=IMAGES, told="mask"),
    "images-mask-eager": Case(samples=IMAGES, told="mask", attention="eager"),
    "images-mask-of-ones": Case(samples=IMAGES, told="ones"),
}

OPERATION = Operation(
    name=NAME,
    summary="a tiny model of a family on packed samples: what it keeps apart of what it is told to",
    params=Case,
    build=build,
    outputs=("logits:0",),
    expect=Relations(),
    cases=CASES,
    supports=causal.untaken,
    dtypes=("float64",),
    level="family",
)


def _candidate(name: str, patch: str = "") -> Candidate:
    return of_family(NAME, name, patch, factory=FACTORY, scope={"family": name})


CANDIDATES = tuple(_candidate(name) for name in TEXT_FAMILIES)


def for_family(name: str, patch: str) -> Candidate | None:
    """The family's model, under a patch if there is one; None for a family without a causal language model."""
    return _candidate(name, patch) if causal.is_known(name) else None
