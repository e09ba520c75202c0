"""The fused regression's rows: of any stride and distance, masked ones unread, none at all."""

# mypy: allow-untyped-calls
# Some of torch's own methods carry no types.

import math
from typing import Any

import pytest
import torch
from kernel_device import DEVICE, GPU, distant
from kernel_results import assert_same
from truth_masked_regression import PARAMETERS, SIZES, STRIDES, make, upstream_like

from assay.kernels import masked_regression_ops
from assay.kernels.masked_regression import KINDS, masked_regression

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_mask_leaves_out_changes_nothing(kind: str) -> None:
    """Bit for bit, whatever stands there, and whatever comes back."""
    results = []
    for poison in (math.nan, math.inf, 0.0):
        data = make(SIZES["three"], poison=poison)
        for options in ({}, {"reduction": "none"}, {"indices": data.indices, "normalise_target": True}):
            x = data.prediction.detach().requires_grad_()
            target = data.grid if "indices" in options else data.target
            value, _ = masked_regression(
                x, target, data.mask, kind=kind, weight=data.weight, **PARAMETERS[kind], **options
            )
            results.append((value, *torch.autograd.grad(value, x, upstream_like(value), retain_graph=True)))
            back = torch.full_like(value, math.inf)
            assert not torch.autograd.grad(value, x, back)[0][~data.mask].any()
    for at in range(3):
        for other in (at + 3, at + 6):
            for got, expected in zip(results[other], results[at], strict=True):
                assert_same(got, expected)


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 0, 4), (0, 3, 4), (0, 4), (4,)])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_valid_is_zero(kind: str, shape: tuple[int, ...]) -> None:
    x = torch.full(shape, math.nan, device=DEVICE, requires_grad=True)
    mask = torch.zeros(shape[:-1], dtype=torch.bool, device=DEVICE)
    zero = torch.zeros((), dtype=torch.int64, device=DEVICE)
    for options in ({}, {"normaliser": 3.0}, {"normaliser": zero}, {"reduction": "sum"}, {"reduction": "none"}):
        value, count = masked_regression(x, x.detach(), mask, kind=kind, **PARAMETERS[kind], **options)
        assert not value.any()
        assert count.item() == 0
        assert count.dtype == torch.int64
        (gradient,) = torch.autograd.grad(value.sum(), x)
        assert gradient.shape == x.shape
        assert not gradient.any()


def test_weights_that_add_up_to_zero_give_zero_and_keep_the_count() -> None:
    x = torch.full((2, 3), math.nan, device=DEVICE, requires_grad=True)
    mask = torch.ones(2, dtype=torch.bool, device=DEVICE)
    weight = torch.tensor([0.5, -0.5], device=DEVICE)
    value, count = masked_regression(x, x.detach(), mask, kind="mse", weight=weight)
    assert (value.item(), count.item()) == (0.0, 6)
    assert not torch.autograd.grad(value, x)[0].any()


@pytest.mark.parametrize("layout", STRIDES)
def test_any_strides_give_the_same_bits(layout: str) -> None:
    data = make(SIZES["eighty"])
    view = STRIDES[layout]
    options: dict[str, Any] = {"kind": "power", "power": 1.5, "normalise_target": True, "reduction": "none"}
    x = data.prediction.detach().requires_grad_()
    expected, _ = masked_regression(x, data.target, data.mask, **options)
    (gradient,) = torch.autograd.grad(expected, x, upstream_like(expected))
    got, _ = masked_regression(
        view(x), view(data.target), view(data.mask[..., None]).squeeze(-1), weight=None, **options
    )
    assert_same(got.reshape(expected.shape), expected)
    (same,) = torch.autograd.grad(got, x, upstream_like(got))
    assert_same(same, gradient)


def test_expanded_inputs() -> None:
    data = make(SIZES["three"], poison=0.0)
    target, mask, weight = data.target[:1, :1], data.mask[:1, :1], data.weight[:1, :1]
    shape = data.prediction.shape
    spread = (target.expand(shape), mask.expand(shape[:2]), weight.expand(shape[:2]))
    whole = [x.contiguous() for x in spread]
    got, expected = (
        masked_regression(data.prediction, t, m, kind="mse", weight=w, reduction="sum").value
        for t, m, w in (spread, whole)
    )
    assert_same(got, expected)


@pytest.mark.skipif(GPU, reason="a GPU has no sparse memory")
@pytest.mark.parametrize("far", [0, 1], ids=["batch", "token"])
def test_more_than_two_billion_elements(far: int) -> None:
    """The last index of one dimension lies past 2**31, in the prediction and in the grid."""
    data = make(SIZES["three"], poison=0.0)
    spread = [distant(x, [10_000, 100, 1], far) for x in (data.prediction, data.grid)]
    options: dict[str, Any] = {"kind": "mse", "indices": data.indices, "check": False, "reduction": "sum"}
    expected = masked_regression(data.prediction, data.grid, data.mask, **options)
    assert_same(masked_regression(*spread, data.mask, **options).value, expected.value)
    x = data.prediction.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(masked_regression(x, data.grid, data.mask, **options).value, x)
    masked_regression_ops.fused_op(
        spread[0], spread[1], data.mask, data.indices, None, None, "sum", False, "mse", 0.0, False, 1e-5
    )
    assert_same(spread[0], gradient)
