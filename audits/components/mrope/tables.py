"""``mrope.tables``: cosine and sine of every lane's angle, merged over the axes, as attention consumes them.

Letters: A axes, B batch, S tokens, R/2 lanes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from assay.audits.candidates import of_function, of_reference
from assay.audits.components.mrope import rotate
from assay.audits.strategies import st
from assay.audits.terms import Form, Numeric, Operation, Outputs
from assay.reference import mrope

NAME = "mrope.tables"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """``positions`` [A,B,S] int64; ``inv_freq`` [R/2] float32 (float64 for the oracle); ``axes`` [R/2] int64.

    ``like`` is an empty tensor of the dtype that the tables are asked in.
    """

    positions: Tensor
    inv_freq: Tensor
    axes: Tensor
    attention_scaling: float
    like: Tensor


def build(case: rotate.Case, dtype: torch.dtype, device: torch.device) -> Inputs:
    """The tables of a rotation's case."""
    made = rotate.build(case, dtype, device)
    return Inputs(
        positions=made.positions,
        inv_freq=made.inv_freq,
        axes=made.axes,
        attention_scaling=made.attention_scaling,
        like=torch.empty(0, dtype=dtype, device=device),
    )


def reference(inputs: Inputs) -> Outputs:
    """The specification: angles in the dtype of the frequencies, rounded once."""
    cos, sin = mrope.tables(
        inputs.positions, inputs.inv_freq, inputs.axes,
        attention_scaling=inputs.attention_scaling, dtype=inputs.like.dtype,
    )  # fmt: skip
    return {"cos": cos, "sin": sin}


def reach(inputs: Inputs, _upstream: Outputs | None) -> Outputs:
    """No cosine is larger than the attention scaling."""
    scale = torch.full((1, 1, 1), abs(inputs.attention_scaling), dtype=torch.float64)
    return {"cos": scale, "sin": scale}


def draws(inputs: Inputs) -> Iterator[Inputs]:
    """Other positions of the same size, for the scale of the ordinary form's error in small cases."""
    if 0 < inputs.positions.numel() * len(inputs.inv_freq) < rotate.FEW:
        for step in (1, 7):
            yield dataclasses.replace(inputs, positions=inputs.positions + step)


def _assay(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    cos, sin = function(
        inputs.positions, inputs.inv_freq,
        axes=inputs.axes, attention_scaling=inputs.attention_scaling, dtype=inputs.like.dtype,
    )  # fmt: skip
    return {"cos": cos, "sin": sin}


def strategy() -> st.SearchStrategy[rotate.Case]:
    """The cases of a rotation."""
    return rotate.strategy()


KEPT = (
    "image",
    "text",
    "qwen2.5-vl",
    "qwen3-vl",
    "ernie",
    "far",
    "farther",
    "scaled",
    "one-token",
    "no-token",
    "no-sample",
)

OPERATION = Operation(
    name=NAME,
    summary="cosine and sine of every lane's angle, merged over the axes",
    params=rotate.Case,
    build=build,
    outputs=("cos", "sin"),
    expect=Numeric(oracle=reference, eager=reference, reach=reach, draws=draws),
    forms=(
        Form(
            name="assay",
            summary="function(positions, inv_freq, *, axes, attention_scaling, dtype): half tables [B,S,R/2]",
            parameters=("positions", "inv_freq", "axes", "attention_scaling", "dtype"),
            call=_assay,
        ),
    ),
    cases={name: rotate.CASES[name] for name in KEPT},
    strategy=strategy,
    dtypes=("float32", "bfloat16"),
    further_dtypes=("float16",),
)

CANDIDATES = (
    of_reference(NAME, f"{__name__}:reference", origin="assay.reference.mrope"),
    of_function(
        NAME, "kernel", "assay.kernels.mrope:tables", origin="assay.kernels.mrope", form="assay", costly=True
    ),
)  # fmt: skip
