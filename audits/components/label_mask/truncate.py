"""``label_mask.truncate``: a labelled sequence cut to a length.

Letters: S tokens, L tokens that are left, N images.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import AfterValidator
from torch import Tensor

from assay.audits.candidates import of_reference
from assay.audits.components.label_mask import label_forms
from assay.audits.fields import Count, Size, one_of
from assay.audits.strategies import st
from assay.audits.terms import Exact, Form, Operation, Outputs
from assay.reference import label_truncation
from assay.reference.label_mask import IGNORE

NAME = "label_mask.truncate"
START, END, IMAGE = 151_652, 151_653, 151_655
"""Qwen's ids of the markers around an image, and of what stands for a part of it."""
_SEGMENT = re.compile(r"([pai])([1-9]\d*)")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """``input_ids`` and ``labels`` int64 [S]; ``blocks`` int64 [N,2], each image with its markers; what is asked.

    ``divided``: an image that the cut falls into is an ``error``, or ``drop``ped whole.
    """

    input_ids: Tensor
    labels: Tensor
    blocks: Tensor
    max_length: int
    side: str
    divided: str

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The blocks as numbers."""
        return tuple((int(first), int(last)) for first, last in self.blocks.tolist())

    def cut(self, length: int) -> int:
        """The place at which the sequence is cut to a length; its own length or 0 where nothing is."""
        whole = len(self.input_ids)
        return min(whole, length) if self.side == "right" else max(0, whole - length)

    def divides(self, length: int) -> bool:
        """Whether cutting to a length falls into an image."""
        return any(first < self.cut(length) < last for first, last in self.pairs)


def segments(text: str) -> tuple[tuple[str, int], ...]:
    """Kinds and sizes: ``p5 i6 a4`` is a prompt, an image and an answer of so many tokens. ValueError for others."""
    found = [_SEGMENT.fullmatch(word) for word in text.split()]
    if not found or not all(found):
        raise ValueError(f"expected segments such as p5 i6 a4, got {text!r}")
    return tuple((match[1], int(match[2])) for match in found if match)


def _readable(text: str) -> str:
    segments(text)
    return text


@dataclass(frozen=True, kw_only=True)
class Case:
    """Parameters of a case: ``layout`` is prompts, answers and images of so many tokens, without their markers."""

    seed: Count = 0
    layout: Annotated[str, AfterValidator(_readable)] = "p5 i6 p3 a7"
    max_length: Size = 20
    side: Annotated[str, one_of(("right", "left"))] = "right"
    divided: Annotated[str, one_of(("error", "drop"))] = "error"


def build(case: Case, _dtype: torch.dtype, device: torch.device) -> Inputs:
    """Ids that no two tokens of text share, so that each tells where it comes from."""
    ids: list[int] = []
    labels: list[int] = []
    blocks: list[tuple[int, int]] = []
    for kind, count in segments(case.layout):
        fresh = [1000 + 97 * case.seed + len(ids) + place for place in range(count)]
        if kind == "a" and 0 not in ids:  # an id like any other, and the one that is mistaken for none
            fresh[0] = 0
        own = [START, *[IMAGE] * count, END] if kind == "i" else fresh
        if kind == "i":
            blocks.append((len(ids), len(ids) + len(own)))
        ids += own
        labels += own if kind == "a" else [IGNORE] * len(own)
    return Inputs(
        input_ids=torch.tensor(ids, device=device),
        labels=torch.tensor(labels, device=device),
        blocks=torch.tensor(blocks, dtype=torch.int64, device=device).reshape(-1, 2),
        max_length=case.max_length,
        side=case.side,
        divided=case.divided,
    )


def supports(case: Case) -> str | None:
    """What is an error is asked by laws of its own."""
    inputs = build(case, torch.int64, torch.device("cpu"))
    if case.divided == "error" and inputs.divides(case.max_length):
        return "the cut falls into an image: asked by the law of its own"
    left = label_truncation.truncate(
        inputs.input_ids, inputs.labels, case.max_length, side=_side(case.side), blocks=inputs.pairs, divided="drop",
        untrained="report",
    )  # fmt: skip
    return None if left.trained else "nothing is left to train on: asked by the law of its own"


def _side(side: str) -> label_truncation.Side:
    return "left" if side == "left" else "right"


def reference(inputs: Inputs) -> Outputs:
    """The specification."""
    return _assay(label_truncation.truncate, inputs)


def _assay(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    found = function(
        inputs.input_ids, inputs.labels, inputs.max_length, side=inputs.side, blocks=inputs.pairs,
        divided=inputs.divided,
    )  # fmt: skip
    return {"input_ids": found.input_ids, "labels": found.labels}


def _pair(function: Callable[..., Any], inputs: Inputs, **more: Any) -> Outputs:
    ids, labels = function(inputs.input_ids, inputs.labels, inputs.max_length, **more)
    return {"input_ids": label_forms.flat(ids), "labels": label_forms.flat(labels)}


FORMS = (
    Form(
        name="assay",
        summary="truncate(input_ids, labels, max_length, *, side, blocks, divided) -> a record with both",
        parameters=("input_ids", "labels", "max_length", "side", "blocks"),
        call=_assay,
    ),
    Form(
        name="pair",
        summary="function(input_ids, labels, max_length) -> (input_ids, labels), cut off at the right; images by "
        "the ids of Qwen's vocabulary",
        parameters=("input_ids", "labels", "max_length"),
        call=_pair,
        fixes={"side": "right", "divided": "error"},
    ),
    Form(
        name="pair-side",
        summary="function(input_ids, labels, max_length, side) -> the same, cut off at either side",
        parameters=("input_ids", "labels", "max_length", "side"),
        call=lambda function, inputs: _pair(function, inputs, side=inputs.side),
        fixes={"divided": "error"},
    ),
)

CASES = {
    "right": Case(),
    "left": Case(side="left", max_length=14, layout="p2 i6 p9 a7", seed=1),
    "whole": Case(max_length=99, seed=2),
    "exact": Case(max_length=23, seed=3),
    "one-less": Case(max_length=22, seed=4),
    "at-an-image": Case(layout="p3 a4 i6 p2 a5", max_length=7, seed=5),  # the cut is the image's first token
    "after-an-image": Case(layout="p3 a4 i6 p2 a5", max_length=15, seed=6),
    "left-at-an-image": Case(layout="p3 a4 i6 p2 a5", max_length=15, side="left", seed=7),
    "left-after-an-image": Case(layout="p3 a4 i6 p2 a5", max_length=7, side="left", seed=8),
    "turns": Case(layout="p4 a3 p2 a5 p3 a8", max_length=19, seed=9),
    "left-turns": Case(layout="p4 a3 p2 a5 p3 a8", max_length=19, side="left", seed=10),
    "adjacent-images": Case(layout="a2 i1 i4 p2 a6", max_length=16, seed=11),
    "images-first": Case(layout="i4 i3 p2 a6", max_length=9, side="left", seed=12),
    "one-token": Case(layout="a6 p3", max_length=1, seed=13),
    "drop": Case(layout="p2 a4 i6 p3 a5", max_length=10, divided="drop", seed=14),
    "drop-left": Case(layout="p2 a4 i6 p3 a5", max_length=12, divided="drop", side="left", seed=15),
    "drop-of-two": Case(layout="a3 i4 i5 a4", max_length=14, divided="drop", seed=16),
    "three-images": Case(layout="a3 i2 i3 p2 i4 a5", max_length=24, divided="drop", seed=18),
    "longer": Case(layout="a5000 p90 i300 a3500", max_length=8500, seed=19),  # more than lengths are often limited to
    "long": Case(layout="p40 i200 p17 a90 p30 a150", max_length=400, seed=17),
}


def strategy() -> st.SearchStrategy[Case]:
    """One to seven segments, cut anywhere."""
    segment = st.builds("{}{}".format, st.sampled_from("ppaai"), st.integers(1, 9))
    return st.builds(
        Case,
        seed=st.integers(0, 1000),
        layout=st.lists(segment, min_size=1, max_size=7).map(" ".join),
        max_length=st.integers(1, 60),
        side=st.sampled_from(("right", "left")),
        divided=st.sampled_from(("error", "drop")),
    )


OPERATION = Operation(
    name=NAME,
    summary="a labelled sequence cut to a length: no image in two, never to nothing unnoticed",
    params=Case,
    build=build,
    outputs=("input_ids", "labels"),
    expect=Exact(reference),
    forms=FORMS,
    cases=CASES,
    strategy=strategy,
    supports=supports,
    dtypes=("int64",),
)

REFERENCE = of_reference(NAME, f"{__name__}:reference", origin="assay.reference.label_truncation")
