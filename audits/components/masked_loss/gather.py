"""``masked_loss.gather``: the tokens that a mask chooses, sample by sample, ragged.

Letters: B batch, T tokens of the grid, M chosen tokens of the longest sample, D features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from assay.audits.candidates import of_reference
from assay.audits.components.masked_loss import tokens
from assay.audits.fields import Count, Size
from assay.audits.laws.limits import row_reach
from assay.audits.strategies import st
from assay.audits.terms import Form, Numeric, Operation, Outputs
from assay.reference import masked_loss

NAME = "masked_loss.gather"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """``features`` [B,T,D]; ``indices`` [B,M] int64 in rising order, padded with 0; ``valid`` [B,M] bool."""

    features: Tensor
    indices: Tensor
    valid: Tensor

    def chosen(self) -> Tensor:
        """[B,T] bool: the tokens that valid indices point to."""
        return tokens.pointed_at(self.indices, self.valid, self.features.shape[1])


@dataclass(frozen=True, kw_only=True)
class Case:
    """Parameters of a case. ``counts``: how many tokens each sample chooses."""

    seed: Count = 0
    tokens: Size = 9
    features: Size = 5
    counts: tuple[Count, ...] = (3, 5, 1)


def build(case: Case, dtype: torch.dtype, device: torch.device) -> Inputs:
    """Features of different size, and places drawn without repetition; token 0 is chosen by some samples only."""
    generator = torch.Generator().manual_seed(case.seed)
    features = torch.randn((len(case.counts), case.tokens, case.features), generator=generator)
    longest = max(case.counts, default=0)
    indices = torch.zeros((len(case.counts), longest), dtype=torch.int64)
    for sample, count in enumerate(case.counts):
        indices[sample, :count] = torch.randperm(case.tokens, generator=generator)[:count].sort().values
    valid = torch.arange(longest) < torch.tensor(case.counts, dtype=torch.int64)[:, None]
    return Inputs(features=features.to(device, dtype), indices=indices.to(device), valid=valid.to(device))


def supports(case: Case) -> str | None:
    """No sample can choose more tokens than there are."""
    return None if max(case.counts, default=0) <= case.tokens else "a sample chooses more tokens than there are"


def reference(inputs: Inputs) -> Outputs:
    """The specification."""
    return {"gathered": masked_loss.gather_masked(inputs.features, inputs.indices, inputs.valid)}


def reach(inputs: Inputs, upstream: Outputs | None) -> Outputs:
    """Nothing is computed: an error is relative to the largest feature, of the gradient to the largest upstream."""
    largest = row_reach(inputs.features).amax(dim=1, keepdim=True)
    found = {"gathered": largest}
    if upstream is not None:
        rows = row_reach(upstream["gathered"])
        found["grad:features"] = rows.amax(dim=1, keepdim=True) if rows.shape[1] else rows.sum(1, keepdim=True)
    return found


def draws(inputs: Inputs) -> Iterator[Inputs]:
    """Other features."""
    yield dataclasses.replace(inputs, features=inputs.features.detach().flip(-1) + 1)


def strategy() -> st.SearchStrategy[Case]:
    """Ragged counts, zero and all among them."""
    counts = st.lists(st.integers(0, 9), min_size=0, max_size=4).map(tuple)
    return st.builds(Case, seed=st.integers(0, 2**16), features=st.integers(1, 9), counts=counts)


def _assay(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    return {"gathered": function(inputs.features, inputs.indices, inputs.valid)}


def _boolean(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    return {"gathered": function(inputs.features, inputs.chosen())}


FORMS = (
    Form(
        name="assay",
        summary="function(features, indices, valid): [B,M,D], zero where not valid",
        parameters=("features", "indices", "valid"),
        call=_assay,
    ),
    Form(
        name="boolean",
        summary="function(features, mask): the tokens where mask [B,T] is True; ragged: zeros at the end, or an error",
        parameters=("features", "mask"),
        call=_boolean,
        accepts=lambda inputs: None if bool(inputs.valid.all()) else "ragged: asked by the law of that name alone",
    ),
)

OPERATION = Operation(
    name=NAME,
    summary="the tokens that a mask chooses, sample by sample, with zeros and no gradient at the pads",
    params=Case,
    build=build,
    outputs=("gathered",),
    expect=Numeric(oracle=reference, eager=reference, reach=reach, draws=draws),
    forms=FORMS,
    cases={
        "ragged": Case(),
        "equal": Case(counts=(4, 4), seed=1),
        "one-empty": Case(counts=(0, 3), seed=2),
        "all": Case(counts=(9, 9), seed=3),
        "one": Case(counts=(2,), tokens=3, seed=4),
        "none": Case(counts=(0, 0), seed=5),
        "no-sample": Case(counts=(), seed=6),
    },
    strategy=strategy,
    differentiable=("features",),
    dtypes=("float32", "bfloat16"),
    further_dtypes=("float16",),
    supports=supports,
)

CANDIDATES = (of_reference(NAME, f"{__name__}:reference", origin="assay.reference.masked_loss"),)
