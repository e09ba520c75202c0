"""A small operation to try the judge on, a vector times a number, and what is asked of its report."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from assay.audits.laws.trial import Trial
from assay.audits.run import Options, audit
from assay.audits.terms import Candidate, Evidence, Finding, Form, Law, Numeric, Operation, Outputs, Report, Verdict

PASS, UNKNOWN, FAIL = Verdict.PASS, Verdict.UNKNOWN, Verdict.FAIL


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """One vector."""

    x: Tensor
    scale: float


@dataclass(frozen=True, kw_only=True)
class Case:
    """Its length and what it is multiplied by."""

    seed: int = 0
    size: int = 3
    scale: float = 2.0


def build(case: Case, dtype: torch.dtype, device: torch.device) -> Inputs:
    """Positive numbers."""
    if case.size > 90:
        message = "too long to build"
        raise MemoryError(message)
    x = torch.rand(case.size, generator=torch.Generator().manual_seed(case.seed)) + 1
    return Inputs(x=x.to(device, dtype), scale=case.scale)


def oracle(inputs: Inputs) -> Outputs:
    """The product."""
    return {"y": inputs.x * inputs.scale}


def supports(case: Case) -> str | None:
    """Nothing of negative length."""
    return "there are no negative sizes" if case.size < 0 else None


OPERATION = Operation(
    name="toy.scale",
    summary="a vector times a number",
    params=Case,
    build=build,
    outputs=("y",),
    expect=Numeric(
        oracle=oracle,
        eager=oracle,
        reach=lambda inputs, _upstream: {"y": inputs.x.abs() * abs(inputs.scale), "grad:x": torch.tensor(inputs.scale)},
    ),
    forms=(
        Form(name="plain", summary="f(x, scale)", parameters=("x", "scale"), call=lambda f, i: {"y": f(i.x, i.scale)}),
    ),
    cases={"three": Case(), "one": Case(size=1), "none": Case(size=0)},
    strategy=lambda: st.builds(
        Case, seed=st.integers(0, 9), size=st.integers(0, 40), scale=st.sampled_from([1.0, 2.0, 3.0])
    ),
    differentiable=("x",),
    dtypes=("float32", "bfloat16"),
    supports=supports,
)


def law(check: Callable[[Trial], Iterable[Evidence]], applies: Callable[..., str | None] = lambda *_: None) -> Law:
    """A law of the toy's."""
    return Law(name=check.__name__, operations=(OPERATION.name,), check=check, applies=applies, doc="A law.")


def judge(house: dict[str, Any], run: Callable[[Inputs], Any], options: Options | None = None, **more: Any) -> Report:
    """The report on a trusted candidate."""
    house["run"] = run
    candidate = Candidate(operation=OPERATION.name, name="it", target={}, trusted=True, **more)
    return audit(house["operation"], candidate, options)


def named(report: Report, rule: str) -> list[Finding]:
    """The findings under a rule."""
    return [f for f in report.findings if f.rule == f"toy.scale.{rule}"]


def wrong_when(condition: Callable[[Inputs], bool]) -> Callable[[Inputs], Outputs]:
    """Right, except where it is not."""
    return lambda inputs: {"y": inputs.x * inputs.scale * (1.5 if condition(inputs) else 1)}
