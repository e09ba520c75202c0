"""``masked_loss.total``: several named losses and their weights, to the one number that is trained.

Letters: P parameters of a component.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from assay.audits.candidates import of_reference
from assay.audits.fields import Count, Finite, Size
from assay.audits.strategies import st
from assay.audits.terms import Form, Numeric, Operation, Outputs
from assay.reference import masked_loss

NAME = "masked_loss.total"
COMPONENTS = ("lm", "detection", "teacher", "student")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The parameters [P] of each component, whose loss is the mean of their squares; None where there is none.

    ``weights`` are those of the components that are there, in their order.
    """

    lm: Tensor
    detection: Tensor | None
    teacher: Tensor | None
    student: Tensor | None
    weights: tuple[float, ...]

    def losses(self) -> dict[str, Tensor]:
        """Each component's loss, 0-d, attached to its parameters."""
        return {name: value.square().mean() for name, value in self.parameters().items()}

    def parameters(self) -> dict[str, Tensor]:
        """The parameters of the components that are there."""
        every = {name: getattr(self, name) for name in COMPONENTS}
        return {name: value for name, value in every.items() if value is not None}

    def weight_of(self) -> dict[str, float]:
        """The weight of each component that is there."""
        return dict(zip(self.parameters(), self.weights, strict=True))


@dataclass(frozen=True, kw_only=True)
class Case:
    """Parameters of a case: the weights, one for each component that is there."""

    seed: Count = 0
    size: Size = 5
    weights: tuple[Finite, ...] = (1.0, 1.0, 0.3, 1.0)


def build(case: Case, dtype: torch.dtype, device: torch.device) -> Inputs:
    """Parameters from the case's own generator, of another size for each component."""
    generator = torch.Generator().manual_seed(case.seed)
    made: dict[str, Tensor | None] = dict.fromkeys(COMPONENTS)
    for place, name in enumerate(COMPONENTS[: len(case.weights)]):
        made[name] = (torch.randn(case.size + place, generator=generator) * (place + 1)).to(device, dtype)
    fields: dict[str, Any] = dict(made)
    return Inputs(**fields, weights=case.weights)


def supports(case: Case) -> str | None:
    """Between one component and all of them."""
    return None if 1 <= len(case.weights) <= len(COMPONENTS) else f"there are 1 to {len(COMPONENTS)} components"


def reference(inputs: Inputs) -> Outputs:
    """The specification."""
    recorded = any(value.requires_grad for value in inputs.parameters().values())
    frozen = [n for n, value in inputs.parameters().items() if not value.requires_grad] if recorded else COMPONENTS
    constant = [name for name in frozen if name in inputs.parameters()]
    return {"total": masked_loss.total_loss(inputs.losses(), inputs.weight_of(), constant=constant).value}


def reach(inputs: Inputs, upstream: Outputs | None) -> Outputs:
    """The largest weighted loss; of each gradient, its largest element."""
    weight = inputs.weight_of()
    losses = {name: float(loss.detach()) * abs(weight[name]) for name, loss in inputs.losses().items()}
    found = {"total": torch.tensor(max(losses.values()), dtype=torch.float64)}
    if upstream is not None:
        size = float(upstream["total"].abs())
        for name, value in inputs.parameters().items():
            slope = 2 * float(value.detach().abs().amax()) / len(value) * abs(weight[name])
            found[f"grad:{name}"] = torch.full((1,), size * slope, dtype=torch.float64)
    return found


def draws(inputs: Inputs) -> Iterator[Inputs]:
    """Other parameters of the same size."""
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        fresh: Mapping[str, Any] = {
            name: torch.randn(len(value), generator=generator).to(value) for name, value in inputs.parameters().items()
        }
        yield dataclasses.replace(inputs, **fresh)


def strategy() -> st.SearchStrategy[Case]:
    """One to four components with weights of any size, zero among them."""
    weight = st.sampled_from([0.0, 0.3, 1.0, 2.5, -0.5, 1e-3])
    weights = st.lists(weight, min_size=1, max_size=len(COMPONENTS)).map(tuple)
    return st.builds(Case, seed=st.integers(0, 2**16), size=st.integers(1, 9), weights=weights)


def _assay(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    weights = dict(reversed(inputs.weight_of().items()))  # by name: their order means nothing
    made = function(inputs.losses(), weights)
    return {"total": getattr(made, "value", made)}


def _four(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    losses, weights = inputs.losses(), inputs.weight_of()
    return {"total": function(*losses.values(), *weights.values())}


FORMS = (
    Form(
        name="assay",
        summary="function(losses, weights): dicts by name; the total, or a record with it in `value`",
        parameters=("losses", "weights"),
        call=_assay,
    ),
    Form(
        name="four",
        summary="function(lm, detection, teacher, student, *their four weights): the total",
        parameters=("lm", "detection", "teacher", "student"),
        call=_four,
        accepts=lambda inputs: None if len(inputs.weights) == len(COMPONENTS) else "the form has four components",
    ),
)

OPERATION = Operation(
    name=NAME,
    summary="several named losses and their weights to one total, in which each stays attached to its parameters",
    params=Case,
    build=build,
    outputs=("total",),
    expect=Numeric(oracle=reference, eager=reference, reach=reach, draws=draws),
    forms=FORMS,
    cases={
        "four": Case(),
        "one": Case(weights=(1.0,), seed=1),
        "two": Case(weights=(1.0, 0.25), seed=2),
        "without-one": Case(weights=(1.0, 0.0, 0.5), seed=3),
        "far-apart": Case(weights=(1.0, 1e-3, 40.0, 2.0), seed=4),
    },
    strategy=strategy,
    differentiable=COMPONENTS,
    scalars=True,
    dtypes=("float32",),
    supports=supports,
)

CANDIDATES = (of_reference(NAME, f"{__name__}:total_loss", origin="assay.reference.masked_loss", form="assay"),)


def total_loss(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The specification as a function of losses; what comes without a gradient was meant to."""
    constant = [name for name, loss in losses.items() if not loss.requires_grad]
    return masked_loss.total_loss(losses, weights, constant=constant).value
