"""The fused regression against float64: values and gradients of every kind, dtype and way to mask."""

# mypy: allow-untyped-calls
# Some of torch's own methods carry no types.

import math
from typing import Any

import pytest
import torch
from kernel_device import DEVICE, DTYPES, needs
from kernel_results import FP32_EPS, assert_same
from truth_masked_regression import PARAMETERS, SIZES, both, make

from assay.kernels.masked_regression import KINDS, masked_regression

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.mark.parametrize("dtype_name", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SIZES)
def test_values_and_gradients(name: str, kind: str, dtype_name: str) -> None:
    if (name, kind) == ("one", "cosine"):
        return  # a direction of one channel is a sign, and its gradient nothing but cancellation
    needs(DTYPES[dtype_name])
    data = make(SIZES[name], DTYPES[dtype_name])
    options: dict[str, Any] = {"kind": kind, "weight": data.weight, **PARAMETERS[kind]}
    both(data.prediction, data.target, data.mask, options)
    both(data.prediction, data.target, data.mask, {**options, "reduction": "none"})


@pytest.mark.parametrize("dtype_name", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [name for name in SIZES if name != "one"])  # one channel normalised is 0
def test_gathered_and_normalised(name: str, kind: str, dtype_name: str) -> None:
    needs(DTYPES[dtype_name])
    data = make(SIZES[name], DTYPES[dtype_name])
    options: dict[str, Any] = {"kind": kind, "indices": data.indices, **PARAMETERS[kind]}
    if kind == "power":  # below 2 the slope's own slope is infinite at 0: it magnifies how a target was rounded
        options["power"] = 2.5
    both(data.prediction, data.grid, data.mask, {**options, "normaliser": 7.0})
    both(data.prediction, data.grid, data.mask, {**options, "normalise_target": True, "eps": 0.01})


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "cosine"])
@pytest.mark.parametrize("name", SIZES)
def test_one_mask_entry_per_element(name: str, kind: str) -> None:
    data = make(SIZES[name], torch.float16)
    for x in (data.prediction, data.target):
        x[~data.elements] = math.nan
    options: dict[str, Any] = {"kind": kind, "weight": data.weight, **PARAMETERS[kind]}
    both(data.prediction, data.target, data.elements, options)
    both(data.prediction, data.grid, data.elements, {**options, "indices": data.indices, "reduction": "none"})


@pytest.mark.parametrize("scale", [1.0, 1e6])  # far from 1 a logarithm in fp32 is too coarse
@pytest.mark.parametrize("power", [0.5, 1.0, 2.0, 3.0])
def test_powers(power: float, scale: float) -> None:
    data = make(SIZES["eighty"])
    data.prediction.mul_(scale)
    data.prediction[0, 0, :4] = data.target[0, 0, :4]
    options = {"kind": "power", "power": power}
    both(data.prediction, data.target, data.mask, options)
    x = data.prediction.detach().requires_grad_()
    value, _ = masked_regression(x, data.target, data.mask, **options, reduction="sum")
    assert not torch.autograd.grad(value, x)[0][0, 0, :4].any()


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_the_cosine_of_tiny_and_huge_vectors(scale: float) -> None:
    data = make(SIZES["eighty"])
    both(data.prediction * scale, data.target / scale, data.mask, {"kind": "cosine", "reduction": "none"})
    data.prediction[0, 0] = 0.0
    both(data.prediction, data.target, data.mask, {"kind": "cosine", "reduction": "none"})
    same = masked_regression(data.target, data.target * 3, data.mask, kind="cosine", reduction="none").value
    assert (same >= 0).all()
    assert same.max() <= FP32_EPS**2  # as a squared distance; 1 - cos would be off by eps


@pytest.mark.parametrize("mixed", [(torch.bfloat16, torch.float32), (torch.float32, torch.float16)])
def test_prediction_and_target_of_different_dtypes(mixed: tuple[torch.dtype, torch.dtype]) -> None:
    needs(mixed[0])
    data, other = make(SIZES["eighty"], mixed[0]), make(SIZES["eighty"], mixed[1])
    both(data.prediction, other.target, data.mask, {"kind": "smooth_l1", "beta": 0.4})


def test_a_variance_of_zero_without_eps_stays_where_it_is() -> None:
    """A masked token is taken as zeros, whose variance is 0; it must not become NaN, and an ordinary token is fine."""
    data = make(SIZES["three"])
    options: dict[str, Any] = {"kind": "smooth_l1", "normalise_target": True, "eps": 0.0}
    both(data.prediction, data.target, data.mask, options)
    both(data.prediction, data.target, data.mask, {**options, "reduction": "none"})


def test_a_tensor_normaliser_is_used_as_it_is() -> None:
    x, mask = torch.full((1, 2), 3.0, device=DEVICE), torch.ones(1, dtype=torch.bool, device=DEVICE)
    for number, expected in ((4, 1.5), (-2.0, -3.0), (0.0, math.inf)):
        normaliser = torch.tensor(number, device=DEVICE)
        loss = masked_regression(x, torch.zeros_like(x), mask, kind="l1", normaliser=normaliser)
        assert loss.value.item() == expected


def test_equal_inputs_give_equal_bits() -> None:
    data = make(SIZES["three"])
    values = [masked_regression(data.prediction, data.target, data.mask, kind="mse").value for _ in range(3)]
    assert_same(values[0], values[1])
    assert_same(values[0], values[2])


def test_fp16_gradients_survive_until_the_loss_scale_arrives() -> None:
    """A mean over 10^9 entries has gradients below fp16's least number; times a scale of 10^6 they are ordinary."""
    data = make(SIZES["eighty"], torch.float16)
    expected = data.mask[..., None] * torch.sign((data.prediction - data.target).nan_to_num()).float() * 1e-3
    for inplace in (False, True):
        x = data.prediction.detach().requires_grad_()
        y = x * 1
        value, _ = masked_regression(y, data.target, data.mask, kind="l1", normaliser=1e9, inplace=inplace)
        (gradient,) = torch.autograd.grad(value, x, torch.tensor(1e6, device=DEVICE))
        assert_same(gradient, expected.half())


def test_a_second_derivative_is_refused() -> None:
    data = make(SIZES["three"])
    x = data.prediction.detach().requires_grad_()
    value, _ = masked_regression(x, data.target, data.mask, kind="mse")
    (gradient,) = torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        gradient.sum().backward()
