"""Every provider that runs here, on the shapes of the grid for a CPU, or on the first of the full grid with a GPU.

The whole comparison, with interleaved samples, errors and memory, is ``python -m assay.benchmarks``. These are single
numbers for pytest-benchmark's own storage, so that two commits can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

import pytest
import torch

from assay.benchmarks import admission, compare, machine, measure
from assay.benchmarks.nouns import Offer, Provider, Shape

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet
    from pytest_benchmark.fixture import BenchmarkFixture

    Judged = Callable[[str, Provider, Offer], str]

DEVICE = torch.device("cuda" if machine.place() == "cuda" else "cpu")
GRID = {"cuda": "full", "cpu": "small", "interpreter": "tiny"}[machine.place()]
FIRST = 2
"""Shapes of each operation."""


def _cases() -> list[ParameterSet]:
    found: list[ParameterSet] = []
    for name in compare.operation_names():
        operation = import_module(f"assay.benchmarks.operations.{name}")
        shapes = list(operation.shapes(GRID))[:FIRST]
        for provider in compare.all_providers():
            offer = provider.offers.get(name)
            if offer is None or admission.reason_absent(provider, offer):
                continue
            for shape in shapes:
                mark = pytest.mark.benchmark(group=f"{name}: {shape.label}")
                told = f"{name}-{shape.label}-{provider.name}"
                found.append(pytest.param(name, provider, offer, shape, id=told, marks=mark))
    return found


@pytest.mark.parametrize(("name", "provider", "offer", "shape"), _cases())
def test_forward_and_backward(
    benchmark: BenchmarkFixture, judged: Judged, name: str, provider: Provider, offer: Offer, shape: Shape
) -> None:  # fmt: skip
    """One step: the outputs, and the gradients of what has one."""
    if reason := offer.refuses(shape):
        pytest.skip(reason)  # the provider says itself which shapes it does not take
    if reason := judged(name, provider, offer):
        pytest.fail(f"{provider.name}: {reason}", pytrace=False)
    operation = import_module(f"assay.benchmarks.operations.{name}")
    problem = operation.problem(shape, DEVICE, machine.dtype_on(DEVICE))
    run = measure.Run(measure.step(offer.call(shape), problem, "both"), measure.Sets(problem), offer.consumes)
    benchmark.extra_info |= {"provider": provider.name, "shape": shape.label, "device": str(DEVICE)}
    benchmark.pedantic(_finished(run), setup=run.restore, rounds=5, iterations=1, warmup_rounds=1)  # type: ignore[no-untyped-call]  # pytest-benchmark leaves it untyped


def _finished(run: measure.Run) -> Callable[[], None]:
    def act() -> None:
        run.act()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    return act
