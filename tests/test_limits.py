"""The limits: fine enough for a thousandth in float32, and never the fault of correct code."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from assay.audits import matrix, registry
from assay.audits.components.mrope import rotate
from assay.audits.laws.limits import FACTOR, FEW, ULPS, accumulation_eps, difference, excess, floor, norms, relative
from assay.audits.run import Options, audit
from assay.audits.terms import Candidate, Evidence, Outputs, Verdict
from assay.reference import mrope

EPS = accumulation_eps(torch.float32)
INF, NAN = math.inf, math.nan


def judged(got: Tensor, truth: Tensor, ordinary: Tensor, *, reach: Tensor | None = None) -> Evidence | None:
    """The float32 limits applied to an output [rows, width], with the ordinary form's answer beside it."""
    reach = truth.abs().amax(-1, keepdim=True) if reach is None else reach
    errors = [relative(difference(ordinary, truth), reach)]
    allowed = floor([truth], reach, torch.float32)
    return excess("out", relative(difference(got, truth), reach), allowed, lambda: errors, "differs")


def rows(*scales: float, width: int = 16) -> Tensor:
    """Random rows, each of the size asked for."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(len(scales), width, generator=generator, dtype=torch.float64) * torch.tensor(scales)[:, None]


@pytest.mark.parametrize(
    ("fault", "dtype", "law"),
    [
        ("output-larger-by-a-thousandth", "float32", "parity"),
        ("output-larger-by-a-thousandth", "float32", "gradients"),
        ("output-larger-by-a-thousandth", "float32", "norm"),
        ("output-larger-by-a-hundredth", "bfloat16", "parity"),
        ("output-larger-by-a-hundredth", "bfloat16", "gradients"),
        ("output-larger-by-a-hundredth", "bfloat16", "norm"),
    ],
)
def test_a_small_factor_is_convicted(fault: str, dtype: str, law: str) -> None:
    wrong = matrix.candidate(registry.fault("mrope.rotate", fault))
    options = Options(laws=(law,), dtypes=(dtype,), cases=("qwen2.5-vl",), examples=0)
    assert law in matrix.convicted(audit(rotate.OPERATION, wrong, options))


@pytest.mark.parametrize("seed", range(50))
def test_a_thousandth_is_convicted_on_any_row(seed: int) -> None:
    truth = torch.randn(1, 17, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert judged(truth * 1.001, truth, truth.float())


@pytest.mark.parametrize("broken", [NAN, INF])
def test_an_ordinary_form_that_is_not_finite_acquits_nobody(broken: float) -> None:
    truth = rows(1.0, 1.0)
    assert judged(truth * 1.001, truth, torch.full_like(truth, broken))


@pytest.mark.parametrize("broken", [NAN, INF])
def test_an_ordinary_form_that_is_not_finite_convicts_nobody(broken: float) -> None:
    truth = rows(1.0, 1.0)
    assert judged(truth.float(), truth, torch.full_like(truth, broken)) is None


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_one_value_that_is_not_a_number_convicts(value: float) -> None:
    truth = rows(1.0, 1.0)
    got = truth.clone()
    got[1, 3] = value
    found = judged(got, truth, truth.float())
    assert found
    assert found.index == (1, 3)
    assert found.measured == INF


def test_where_the_truth_is_not_a_number_the_same_is_right() -> None:
    truth = torch.tensor([[NAN, INF, 1.0]], dtype=torch.float64)
    assert float(difference(truth, truth).sum()) == 0
    assert bool(difference(truth.nan_to_num(nan=0.0), truth)[0, 0].isinf())


def test_a_small_row_is_judged_by_its_own_scale() -> None:
    truth = rows(1e4, 1e-4)
    got = truth.clone()
    got[1] *= 1.01
    found = judged(got, truth, truth.float())
    assert found
    assert found.index is not None
    assert found.index[0] == 1


def test_the_worst_rows_root_mean_square_notices_what_both_others_miss() -> None:
    truth = rows(*[1.0] * 200)
    spread = torch.zeros_like(truth)
    spread[::2, 0] = 1.0  # the ordinary form errs in one place of a row
    gathered = torch.zeros_like(truth)
    gathered[7] = 0.9  # the candidate errs in a whole row
    found = judged(truth + 1e-3 * gathered, truth, truth + 1e-3 * spread, reach=torch.ones(200, 1))
    assert found
    assert "worst row" in found.message


def test_noise_from_cancellation_convicts_nobody() -> None:
    """A gradient that is zero in exact arithmetic: both forms leave some last bits of what was added up."""
    truth = torch.zeros(1, 16, dtype=torch.float64)
    noise = torch.full_like(truth, 3 * EPS)
    quiet = torch.full_like(truth, 0.1 * EPS)
    assert judged(noise, truth, quiet, reach=torch.ones(1, 1)) is None
    assert judged(noise * 2, truth, quiet, reach=torch.ones(1, 1))


def test_where_nothing_enters_a_row_any_error_counts() -> None:
    zero = torch.zeros(1, 4, dtype=torch.float64)
    assert judged(zero, zero, zero) is None
    assert judged(zero + 1e-30, zero, zero)


def test_the_floor_holds_what_storing_costs() -> None:
    truth = torch.tensor([[1.0, 1.003] * FEW], dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    stored = floor([truth], one, torch.bfloat16)
    assert float(stored[0, 0]) == pytest.approx(ULPS * EPS)
    assert float(stored[0, 1]) == pytest.approx(ULPS * EPS + abs(float(truth[0, 1].bfloat16()) - 1.003))


def test_how_near_a_single_number_lies_to_one_of_the_dtype_is_luck() -> None:
    truth = torch.tensor(1.0, dtype=torch.float64)
    stored = floor([truth], torch.ones_like(truth), torch.bfloat16)
    assert float(stored) == pytest.approx(ULPS * EPS + torch.finfo(torch.bfloat16).eps / 2)


def test_a_truth_that_overflows_the_dtype_does_not_lift_the_floor() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    assert float(floor([1e300 * one], one, torch.float32)) == pytest.approx(ULPS * EPS)


def test_norms_of_nothing_are_zero() -> None:
    assert dataclasses.astuple(norms(torch.zeros(0, 4))) == (0.0, 0.0, 0.0)


def test_the_limit_is_twice_the_ordinary_error() -> None:
    truth, step = rows(1.0), 1e-3 * torch.ones(1, 16, dtype=torch.float64)
    assert judged(truth + step * FACTOR * 0.999, truth, truth + step, reach=torch.ones(1, 1)) is None
    assert judged(truth + step * FACTOR * 1.01, truth, truth + step, reach=torch.ones(1, 1))


def another_low_precision_form(inputs: rotate.Inputs) -> Outputs:
    """Everything in the dtype of the queries, with the products subtracted in the other order by one fused step."""
    cos, sin = (t[:, None] for t in _tables(inputs))
    first, second = mrope.lane_channels(inputs.pairing, 2 * len(inputs.axes))
    out = {}
    for name, x in (("q", inputs.q), ("k", inputs.k)):
        a, b = x[..., first], x[..., second]
        turned = x.clone()
        turned[..., first] = torch.addcmul(a * cos, b, sin, value=-1)
        turned[..., second] = torch.addcmul(a * sin, b, cos)
        out[name] = turned
    return out


def _tables(inputs: rotate.Inputs) -> tuple[Tensor, Tensor]:
    return mrope.tables(
        inputs.positions, inputs.inv_freq, inputs.axes,
        attention_scaling=inputs.attention_scaling, dtype=inputs.q.dtype,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(40))
def test_a_lucky_small_case_convicts_nobody(seed: int) -> None:
    """With two numbers in all the ordinary form may err not at all; it is measured on further draws too."""
    case = f'{{"seed":{seed},"batch":1,"tokens":1,"heads":1,"kv_heads":1,"sections":[1,0,1]}}'
    target = {"kind": "import", "ref": f"{__name__}:another_low_precision_form", "operation": rotate.NAME}
    other = Candidate(operation=rotate.NAME, name="another", target=target, trusted=True)
    report = audit(rotate.OPERATION, other, Options(cases=(case,), dtypes=("bfloat16",), examples=0))
    assert report.findings == ()
    assert report.verdict == Verdict.PASS
