"""``loading.quantisation``: a model whose weights were to be quantised, and whether they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from assay.audits.components.loading.quantised import QuantisedCall, answer
from assay.audits.fields import Count
from assay.audits.terms import Candidate, Form, Operation, Relations

NAME = "loading.quantisation"
OWN = "assay.audits.components.loading.quantisation_own"
LIBRARIES = "assay.audits.components.loading.quantisation_libraries"


@dataclass(frozen=True, kw_only=True)
class Case:
    """What both models are run on."""

    seed: Count = 0


def build(case: Case, _dtype: torch.dtype, _device: torch.device) -> QuantisedCall:
    """The call of a case."""
    return QuantisedCall(seed=case.seed)


FORM = Form(
    name="make",
    summary="make(): `model`, its `original`, the `bits` that were asked for; `group`, `exclude`, `float`",
    parameters=(),
    call=answer,
)

OPERATION = Operation(
    name=NAME,
    summary="a model whose weights were to be quantised: whether what was requested is in effect",
    params=Case,
    build=build,
    outputs=(),
    expect=Relations(),
    forms=(FORM,),
    cases={"ordinary": Case(), "others": Case(seed=1)},
    dtypes=("float32",),
    level="pipeline",
)


def _own(name: str, module: str, *, by_name: bool = False) -> Candidate:
    ref = f"{module}:{name.replace('-', '_')}"
    return Candidate(
        operation=NAME, name=name, form=FORM.name, origin=ref, by_name=by_name,
        target={"kind": "import", "ref": ref, "operation": NAME, "pipeline": ref},
    )  # fmt: skip


CANDIDATES = (
    *(_own(name, OWN) for name in ("four-bits", "eight-bits")),
    *(_own(name, LIBRARIES, by_name=True) for name in ("bitsandbytes-nf4", "bitsandbytes-int8", "torchao-int8")),
)
"""Packed weights of our own; and of libraries that may not be installed, asked for by name: UNKNOWN without them."""
