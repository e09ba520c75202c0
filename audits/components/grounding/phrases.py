"""``grounding.phrases``: a data set of phrases and boxes, and whether the phrases tell their targets apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from assay.audits.candidates import of_reference
from assay.audits.components.grounding import samples
from assay.audits.fields import Count, Size
from assay.audits.generators import seeded
from assay.audits.terms import Form, Operation, Outputs, Relations

NAME = "grounding.phrases"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """``seed`` int64 [1] of what the data set draws; how many samples are read at most, ``limit``.

    ``classes``: its phrases are declared to be names of classes, which many targets share.
    """

    seed: Tensor
    limit: int
    classes: bool


@dataclass(frozen=True, kw_only=True)
class Case:
    """Parameters of a case."""

    seed: Count = 0
    limit: Size = 2000
    classes: bool = False


def build(case: Case, _dtype: torch.dtype, device: torch.device) -> Inputs:
    """The case itself, with its seed as a tensor."""
    return Inputs(seed=torch.tensor([case.seed], device=device), limit=case.limit, classes=case.classes)


def reference(inputs: Inputs) -> Outputs:
    """A set as it should be: what is compared with is not another set, but what laws say of any."""
    return samples.told(samples.made_up(int(inputs.seed))[: inputs.limit])


def _dataset(function: Any, inputs: Inputs) -> Outputs:
    with seeded(int(inputs.seed)):
        return samples.read(function() if callable(function) else function, inputs.limit)


_call: Callable[..., Outputs] = _dataset
FORMS = (
    Form(
        name="dataset",
        summary="function() -> a data set, or the data set itself: samples with image_id (or file_name, image), phrase "
        "(or expression, sentences) and bbox (or boxes); the phrase describes the target",
        parameters=(),
        call=_call,
        fixes={"classes": False},
    ),
    Form(
        name="classes",
        summary="as dataset, whose phrases are names of classes that many targets share",
        parameters=("classes",),
        call=_call,
        fixes={"classes": True},
    ),
)

OPERATION = Operation(
    name=NAME,
    summary="a data set of phrases and boxes: phrases are there, and tell their targets apart",
    params=Case,
    build=build,
    outputs=("samples",),
    expect=Relations(),
    forms=FORMS,
    cases={"whole": Case()},
    dtypes=("int64",),
)

CANDIDATES = (of_reference(NAME, f"{__name__}:reference", origin="assay.audits.components.grounding.samples"),)
