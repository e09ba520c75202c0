"""What is known of an answer before it is timed: how wrong it is, and the memory that it needs."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from assay.benchmarks import counts, errors, measure
from assay.benchmarks.nouns import Arguments, Call, Offer, Problem, Provider, Tensors


@dataclass(frozen=True, kw_only=True)
class Truth:
    """A problem's outputs and gradients in float64, and what storing them in its dtype costs."""

    tensors: Tensors
    rounding: dict[str, float]

    @classmethod
    def of(cls, problem: Problem) -> Truth:
        """Computed now."""
        assert problem.truth is not None
        tensors = problem.truth()
        dtype = problem.tensors[problem.differentiable[0]].dtype
        wide = {name: x for name, x in tensors.items() if not name.startswith("loss")}
        return cls(tensors=tensors, rounding=errors.rounding(wide, dtype))


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a provider's answer to a problem before it is timed; ``seconds`` of one call, roughly."""

    provider: Provider
    offer: Offer
    call: Call
    errors: dict[str, float]
    rounding: dict[str, float]
    memory: int
    seconds: float

    @classmethod
    def of(
        cls, provider: Provider, offer: Offer, call: Call, problem: Problem, sets: measure.Sets, truth: Truth | None
    ) -> Facts:  # fmt: skip
        """Answer once for the errors, twice for the memory: the first call may make what later ones keep."""
        wrong = _errors(call, problem, offer, sets, truth.tensors) if truth else {}
        run = measure.Run(measure.step(call, problem, "both"), sets, offer.consumes)
        run()
        run.restore()
        if sets.device.type == "cuda":
            torch.cuda.synchronize()  # the first call may still be running
        start = time.perf_counter()
        memory = counts.peak_memory(run.act, sets.device)
        took = time.perf_counter() - start
        run.restore_all()
        return cls(
            provider=provider, offer=offer, call=call, errors=wrong, rounding=truth.rounding if truth else {},
            memory=memory, seconds=took,
        )  # fmt: skip


def _errors(
    call: Call, problem: Problem, offer: Offer, sets: measure.Sets, truth: Tensors
) -> dict[str, float]:  # fmt: skip
    """How far outputs and gradients are from the truth.

    Memory that is free is filled with NaN first, so that what is never written is noticed.
    """
    own = Arguments(tensors=problem.tensors, upstream=tuple(x.clone() for x in problem.upstream))
    run = measure.Run(lambda _arguments: _answers(call, own, problem), sets, offer.consumes)
    run.restore_all()
    _poison(problem)
    got = run.act()
    run.restore_all()
    return errors.errors(got, truth)


def _answers(call: Call, arguments: Arguments, problem: Problem) -> dict[str, torch.Tensor]:
    with torch.enable_grad():
        out = call(arguments.tensors)
        kept = [x.detach().clone() for x in out]  # some write their gradients over their outputs, or their inputs
        grads = measure.gradients(out, arguments, problem, keep=False)
    return {
        **dict(zip(problem.outputs, kept, strict=True)),
        **{f"grad:{name}": grad.clone() for name, grad in zip(problem.differentiable, grads, strict=True)},
    }


def _poison(problem: Problem) -> None:
    """Leave NaN in the memory that the allocator hands out next: twice as much of each kind as gradients need."""
    held = [torch.full_like(problem.tensors[name], torch.nan) for name in problem.differentiable for _ in range(2)]
    del held
