"""Gathering ragged tokens and their mean: what pads and left-out tokens must not do."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from assay.reference.masked_loss import gather_masked, masked_mean

VALID = torch.tensor([[True, True, False], [False, True, False], [False, False, False]])
INDICES = torch.tensor([[3, 3, 0], [-5, 1, 10**12], [0, 0, 0]])


def features(dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 4, 2, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def test_gather_takes_the_chosen_and_leaves_pads_zero() -> None:
    x = features()
    out = gather_masked(x, INDICES, VALID)
    zero = torch.zeros(2, dtype=torch.float64)
    assert torch.equal(
        out, torch.stack([torch.stack([x[0, 3], x[0, 3], zero]), torch.stack([zero, x[1, 1], zero]), out[2] * 0])
    )
    (grad,) = torch.autograd.grad(out, x, torch.full_like(out, 0.5))
    expected = torch.zeros_like(x)
    expected[0, 3], expected[1, 1] = 1.0, 0.5  # the first was chosen twice
    assert torch.equal(grad, expected)


def test_gather_reads_nothing_else() -> None:
    x = features().detach()
    expected = gather_masked(x, INDICES, VALID)
    spoilt = torch.full_like(x, math.nan)
    spoilt[0, 3], spoilt[1, 1] = x[0, 3], x[1, 1]
    assert torch.equal(gather_masked(spoilt.requires_grad_(), INDICES, VALID), expected)
    grad = torch.full_like(expected, math.nan)
    grad[VALID] = 1.0
    (got,) = torch.autograd.grad(gather_masked(spoilt, INDICES, VALID), spoilt, grad)
    assert got.sum() == 6


def test_gather_keeps_dtype_and_sizes() -> None:
    for dtype in (torch.bfloat16, torch.int64):
        assert gather_masked(torch.zeros(3, 4, 2, dtype=dtype), INDICES, VALID).dtype == dtype
    empty = torch.zeros(3, 0, dtype=torch.int64)
    assert gather_masked(features(), empty, empty.bool()).shape == (3, 0, 2)
    nothing = gather_masked(torch.zeros(3, 0, 2), INDICES, torch.zeros_like(VALID))
    assert nothing.shape == (3, 3, 2)
    assert not nothing.any()


def test_mean_by_hand() -> None:
    x = torch.tensor([[[1.0, 10.0], [3.0, 30.0], [math.nan, math.inf]], [[math.nan] * 2] * 3], dtype=torch.float64)
    x.requires_grad_()
    valid = torch.tensor([[True, True, False], [False, False, False]])
    mean = masked_mean(x, valid)
    assert mean.tolist() == [[2.0, 20.0], [0.0, 0.0]]
    (grad,) = torch.autograd.grad(mean, x, torch.tensor([[1.0, 3.0], [7.0, 7.0]]).double())
    assert grad.tolist() == [[[0.5, 1.5], [0.5, 1.5], [0.0, 0.0]], [[0.0, 0.0]] * 3]


def test_mean_is_rounded_once() -> None:
    """512 ones added in bf16 stop at 256."""
    x = torch.ones(1, 512, 1, dtype=torch.bfloat16)
    mean = masked_mean(x, torch.ones(1, 512, dtype=torch.bool))
    assert mean.dtype == torch.bfloat16
    assert mean.item() == 1.0


def test_gradients() -> None:
    valid = torch.tensor([[True, False, True, True], [False] * 4, [True, False, False, False]])
    assert torch.autograd.gradcheck(lambda x: gather_masked(x, INDICES, VALID), features())
    assert torch.autograd.gradcheck(lambda x: masked_mean(x, valid), features())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"features": torch.zeros(3, 4)}, ValueError, r"features: expected the shape \[B, T, D\]"),
        ({"indices": INDICES.int()}, TypeError, "indices: expected torch.int64"),
        ({"indices": INDICES[0]}, ValueError, r"indices: expected the shape \[B, M\]"),
        ({"indices": INDICES[:2]}, ValueError, r"indices: expected the shape \[3, 3\], got \[2, 3\]"),
        ({"indices": INDICES + 1}, ValueError, r"indices: expected 0 to 3 where valid, got 4 at \[0, 0\]"),
        ({"indices": INDICES - 2}, ValueError, r"indices: expected 0 to 3 where valid, got -1 at \[1, 1\]"),
        ({"valid": VALID.long()}, TypeError, "valid: expected torch.bool"),
        ({"valid": VALID[:, :2]}, ValueError, r"valid: expected the shape \[3, 3\]"),
    ],
)
def test_bad_arguments_of_gather(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    usual = {"features": torch.zeros(3, 4, 2), "indices": INDICES, "valid": VALID}
    with pytest.raises(error, match=f"^{message}"):
        gather_masked(**(usual | arguments))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"features": torch.zeros(3, 3, 2).long()}, TypeError, "features: expected a floating dtype"),
        ({"features": torch.zeros(3, 3)}, ValueError, r"features: expected the shape \[B, N, D\]"),
        ({"valid": VALID.float()}, TypeError, "valid: expected torch.bool"),
        ({"valid": VALID[:, :2]}, ValueError, r"valid: expected the shape \[3, 3\]"),
    ],
)
def test_bad_arguments_of_mean(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        masked_mean(**({"features": torch.zeros(3, 3, 2), "valid": VALID} | arguments))
