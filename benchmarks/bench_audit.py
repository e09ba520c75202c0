"""How long an audit takes, and how long the rotation that it compares with takes, on the CPU."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
import torch

from assay.audits.components.mrope import rotate
from assay.audits.run import Options, audit
from assay.audits.terms import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_benchmark.fixture import BenchmarkFixture

    from assay.audits.terms import Candidate, Operation

    Green = Callable[[str, str], tuple[Operation, Candidate]]

TOKENS = 512
"""Tokens of the timed rotation: heads and channels are those of Qwen2.5-VL 7B."""


@pytest.mark.benchmark(group="audit of mrope.rotate, reference")
@pytest.mark.parametrize("laws", [(), ("parity",), ("relative",)], ids=["all-laws", "parity", "relative"])
def test_audit(benchmark: BenchmarkFixture, green: Green, laws: tuple[str, ...]) -> None:
    """The named cases, without a search: all laws, and one law by itself."""
    operation, candidate = green("mrope.rotate", "reference")
    options = Options(laws=laws, examples=0)
    report = benchmark.pedantic(audit, args=(operation, candidate, options), rounds=3, iterations=1)  # type: ignore[no-untyped-call]  # pytest-benchmark leaves it untyped
    assert report.verdict == Verdict.PASS


@pytest.mark.benchmark(group=f"rotation of {TOKENS} tokens")
@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "bfloat16"], ids=["oracle-float64", "eager-float32", "eager-bfloat16"]
)
def test_rotation(benchmark: BenchmarkFixture, green: Green, dtype: str) -> None:
    """The reference: as the oracle in float64, and as the ordinary form in the dtypes that models use."""
    green("mrope.rotate", "reference")
    case = dataclasses.replace(rotate.CASES["qwen2.5-vl"], batch=1, tokens=TOKENS)
    inputs = rotate.build(case, getattr(torch, dtype), torch.device("cpu"))
    out = benchmark(rotate.reference, inputs)
    assert out["q"].shape == inputs.q.shape
