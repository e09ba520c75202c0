"""Masked regression of the specification: known answers, torch's own, what is not read, gradients, refusals."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from assay.reference.masked_loss import KINDS, masked_regression

EPS = torch.finfo(torch.float64).eps
PARAMETERS: dict[str, dict[str, float]] = {
    "l1": {},
    "smooth_l1": {"beta": 0.4},
    "mse": {},
    "power": {"power": 1.5},
    "cosine": {},
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens_mask() -> Tensor:
    return torch.tensor([[True, True, False, True], [False, True, False, False]])


def close(got: Tensor, expected: Tensor | float) -> None:
    """Within 64 roundings of float64 at the largest magnitude."""
    truth = torch.as_tensor(expected, dtype=torch.float64)
    assert got.shape == truth.shape
    scale = max(1.0, float(truth.detach().abs().max()) if truth.numel() else 0.0)
    assert got.numel() == 0 or float((got - truth).detach().abs().max()) <= 64 * EPS * scale


@pytest.mark.parametrize(
    ("kind", "parameters", "losses"),
    [
        ("l1", {}, [0.0, 0.5, 3.0]),
        ("mse", {}, [0.0, 0.25, 9.0]),
        ("smooth_l1", {}, [0.0, 0.125, 2.5]),
        ("smooth_l1", {"beta": 0.5}, [0.0, 0.25, 2.75]),
        ("smooth_l1", {"beta": 4.0}, [0.0, 0.03125, 1.125]),
        ("power", {}, [0.0, 0.125, 4.5]),
        ("power", {"power": 1.0}, [0.0, 0.5, 3.0]),
        ("power", {"power": 3.0}, [0.0, 0.125 / 3, 9.0]),
        ("power", {"power": 0.5}, [0.0, 2 * math.sqrt(0.5), 2 * math.sqrt(3)]),
    ],
)
def test_by_hand(kind: Any, parameters: dict[str, float], losses: list[float]) -> None:
    prediction = torch.tensor([[1.0, 1.5, -1.0], [7.0, 7.0, 7.0]], dtype=torch.float64)
    target = torch.tensor([[1.0, 1.0, 2.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([True, False])

    def loss(**options: Any) -> Tensor:
        value, count = masked_regression(prediction, target, mask, kind=kind, **parameters, **options)
        assert int(count) == 3
        assert count.dtype == torch.int64
        return value

    close(loss(reduction="none"), [losses, [0.0] * 3])
    close(loss(reduction="sum"), sum(losses))
    close(loss(), sum(losses) / 3)  # three elements, not one token
    close(loss(normaliser=12), sum(losses) / 12)
    close(loss(weight=torch.tensor([0.25, math.nan]), reduction="sum"), sum(losses) / 4)
    close(loss(weight=torch.tensor([0.25, math.nan])), sum(losses) / 3)
    by_element = torch.tensor([[False, True, True], [False, False, False]])
    value, count = masked_regression(prediction, target, by_element, kind=kind, **parameters)
    close(value, (losses[1] + losses[2]) / 2)
    assert int(count) == 2


def test_cosine_by_hand() -> None:
    prediction = torch.tensor([[3.0, 0.0], [1.0, 1.0], [-2.0, 0.0], [0.0, 0.0], [9.0, 9.0]], dtype=torch.float64)
    target = torch.tensor([[5.0, 0.0], [0.0, 2.0], [1.0, 0.0], [1.0, 0.0], [1.0, 2.0]], dtype=torch.float64)
    mask = torch.tensor([True] * 4 + [False])
    losses = torch.tensor([0.0, 1 - math.sqrt(0.5), 2.0, 1.0, 0.0], dtype=torch.float64)
    prediction.requires_grad_()
    value, count = masked_regression(prediction, target, mask, kind="cosine", reduction="none")
    close(value, losses)
    assert int(count) == 4
    (grad,) = torch.autograd.grad(value.sum(), prediction)
    half = math.sqrt(0.5) / 2
    close(grad, torch.tensor([[0.0, 0.0], [half, -half], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]], dtype=torch.float64))
    close(masked_regression(prediction, target, mask, kind="cosine").value, losses.sum() / 4)


def test_the_cosine_of_huge_and_tiny_vectors() -> None:
    x = torch.tensor([[3.0, 4.0]])
    for scale in (1e-30, 1e30):
        loss = masked_regression(x * scale, torch.tensor([[4.0, 3.0]]) / scale, torch.tensor([True]), kind="cosine")
        assert abs(loss.value.item() - 0.04) < 4 * torch.finfo(torch.float32).eps


def test_normalised_targets_by_hand() -> None:
    """Mean 2 and variance 2/3; with eps 1/3 the divisor is 1."""
    target = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    options: dict[str, Any] = {"kind": "l1", "normalise_target": True, "reduction": "none"}
    value, _ = masked_regression(torch.zeros_like(target), target, torch.tensor([True]), eps=1 / 3, **options)
    close(value, [[1.0, 0.0, 1.0]])
    tight, _ = masked_regression(torch.zeros_like(target), target, torch.tensor([True]), eps=0.0, **options)
    close(tight, [[math.sqrt(1.5), 0.0, math.sqrt(1.5)]])


@pytest.mark.parametrize("normalise_target", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_torch_agrees_on_the_chosen_tokens(kind: Any, normalise_target: bool) -> None:
    prediction, target = random(2, 4, 6).requires_grad_(), random(2, 4, 6, seed=1).requires_grad_()
    mask = tokens_mask()
    value, count = masked_regression(
        prediction, target, mask, kind=kind, normalise_target=normalise_target, **PARAMETERS[kind]
    )
    x, y = prediction[mask], target[mask]
    y = functional.layer_norm(y, (6,)) if normalise_target else y
    theirs = {
        "l1": functional.l1_loss(x, y),
        "smooth_l1": functional.smooth_l1_loss(x, y, beta=0.4),
        "mse": functional.mse_loss(x, y),
        "power": ((x - y).abs() ** 1.5 / 1.5).mean(),
        "cosine": (1 - functional.cosine_similarity(x, y, dim=-1)).mean(),
    }[kind]
    close(value, theirs)
    for got, expected in zip(
        torch.autograd.grad(value, (prediction, target)), torch.autograd.grad(theirs, (prediction, target)), strict=True
    ):
        close(got, expected)
    assert int(count) == (4 if kind == "cosine" else 24)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind: Any, reduction: Any) -> None:
    mask, by_element = tokens_mask(), random(2, 4, 3, seed=7) > 0

    def value(prediction: Tensor, target: Tensor, weight: Tensor, *, mask: Tensor, normalise: bool) -> Tensor:
        options: dict[str, Any] = {"reduction": reduction, "normalise_target": normalise, **PARAMETERS[kind]}
        return masked_regression(prediction, target, mask, kind=kind, weight=weight, **options).value

    inputs = tuple(
        x.requires_grad_() for x in (random(2, 4, 3), random(2, 4, 3, seed=1), random(2, 4, seed=2).abs() + 0.1)
    )
    for chosen, normalise in ((mask, False), (mask, True), (by_element, False)):
        if chosen is mask or kind != "cosine":
            assert torch.autograd.gradcheck(lambda *x, m=chosen, n=normalise: value(*x, mask=m, normalise=n), inputs)


@pytest.mark.parametrize("power", [0.5, 0.9, 1.0, 1.5, 2.0])
def test_no_difference_no_gradient(power: float) -> None:
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    value, _ = masked_regression(
        x, torch.tensor([[1.0, 1.0]]).double(), torch.tensor([True]), kind="power", power=power
    )
    (grad,) = torch.autograd.grad(value, x)
    close(grad, [[0.0, 0.5]])


def test_an_infinite_difference_has_a_finite_slope() -> None:
    x = torch.tensor([[math.inf, 0.0]], dtype=torch.float64, requires_grad=True)
    value, _ = masked_regression(x, torch.zeros(1, 2), torch.tensor([True]), kind="smooth_l1", reduction="sum")
    assert torch.autograd.grad(value, x)[0].tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("by", ["token", "element"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_mask_leaves_out_changes_nothing(kind: Any, by: str, poison: float) -> None:
    if kind == "cosine" and by == "element":
        return
    mask = tokens_mask() if by == "token" else random(2, 4, 3, seed=7) > 0
    places = mask if by == "element" else mask[..., None].expand(2, 4, 3)
    options: dict[str, Any] = {"kind": kind, "normalise_target": by == "token", **PARAMETERS[kind]}
    for reduction in ("none", "sum", "mean"):
        results = []
        for spoilt in (False, True):
            x, y, w = random(2, 4, 3), random(2, 4, 3, seed=1), random(2, 4, seed=2).abs()
            if spoilt:
                x[~places] = y[~places] = poison
                w[~places.any(-1)] = poison
            inputs = tuple(each.requires_grad_() for each in (x, y, w))
            value, _ = masked_regression(x, y, mask, weight=w, reduction=reduction, **options)
            results.append((value, *torch.autograd.grad(value, inputs, random(*value.shape, seed=5))))
        for clean, dirty in zip(*results, strict=True):
            assert torch.equal(clean, dirty)
        assert not results[1][1][~places].any()
        assert results[1][1][places].all()


@pytest.mark.parametrize("kind", KINDS)
def test_padded_indices(kind: Any) -> None:
    """Ragged choices out of a grid equal the same tokens side by side; pads may be anything, repeats are allowed."""
    grid = random(2, 5, 3, seed=1).requires_grad_()
    prediction = random(2, 4, 3).requires_grad_()
    mask = tokens_mask()
    indices = torch.tensor([[4, 0, 10**12, 0], [-7, 2, 0, 5]])
    options: dict[str, Any] = {"kind": kind, "normalise_target": True, **PARAMETERS[kind]}
    for reduction in ("none", "sum", "mean"):
        value, count = masked_regression(prediction, grid, mask, indices=indices, reduction=reduction, **options)
        side_by_side = torch.stack([grid[0, [4, 0, 0, 0]], grid[1, [0, 2, 0, 0]]])
        expected, same = masked_regression(prediction, side_by_side, mask, reduction=reduction, **options)
        assert torch.equal(value, expected)
        assert torch.equal(count, same)
        got, truth = (torch.autograd.grad(v.sum(), (prediction, grid)) for v in (value, expected))
        for g, t in zip(got, truth, strict=True):
            close(g, t)
        assert not got[1][0, [1, 2, 3]].any()  # never chosen
        assert not got[1][1, [0, 1, 3, 4]].any()


def test_padded_indices_with_an_element_mask() -> None:
    mask = torch.tensor([[[True, False], [False, False]]])
    prediction, grid = torch.zeros(1, 2, 2), torch.tensor([[[1.0, 2.0], [4.0, math.nan]]])
    value, count = masked_regression(prediction, grid, mask, kind="l1", indices=torch.tensor([[1, 9]]))
    assert (value.item(), count.item()) == (4.0, 1)


@pytest.mark.parametrize("shape", [(2, 3, 4), (0, 4), (2, 0, 4), (4,)])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_valid_is_zero(kind: Any, shape: tuple[int, ...]) -> None:
    x = torch.full(shape, math.nan, requires_grad=True)
    mask = torch.zeros(shape[:-1], dtype=torch.bool)
    for normaliser in (None, 2.0, torch.tensor(0)):
        value, count = masked_regression(
            x, x.detach(), mask, kind=kind, normalise_target=True, normaliser=normaliser, **PARAMETERS[kind]
        )
        assert (value.item(), count.item()) == (0.0, 0)
        assert not torch.autograd.grad(value, x)[0].any()


def test_weights_that_add_up_to_zero_give_zero_and_keep_the_count() -> None:
    x = torch.full((2, 3), math.nan, requires_grad=True)
    mask = torch.tensor([True, True])
    value, count = masked_regression(x, x.detach(), mask, kind="mse", weight=torch.zeros(2))
    assert (value.item(), count.item()) == (0.0, 6)
    assert not torch.autograd.grad(value, x)[0].any()


@pytest.mark.parametrize("goal", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["smooth_l1", "cosine"])
def test_dtypes(kind: Any, dtype: torch.dtype, goal: torch.dtype) -> None:
    """The arithmetic is that of the widest on the exact inputs; the gradient is rounded once."""
    wide = torch.float64 if torch.float64 in (dtype, goal) else torch.float32
    x, y = random(2, 4, 6).to(dtype).requires_grad_(), random(2, 4, 6, seed=1).to(goal)
    exact = x.detach().to(wide).requires_grad_()
    options: dict[str, Any] = {"kind": kind, "normalise_target": True, **PARAMETERS[kind]}
    ours = masked_regression(x, y, tokens_mask(), **options).value
    theirs = masked_regression(exact, y.to(wide), tokens_mask(), **options).value
    assert ours.dtype == wide
    assert torch.equal(ours, theirs)
    assert torch.equal(torch.autograd.grad(ours, x)[0], torch.autograd.grad(theirs, exact)[0].to(dtype))


USUAL: dict[str, Any] = {
    "prediction": torch.zeros(2, 3, 5),
    "target": torch.zeros(2, 3, 5),
    "mask": torch.ones(2, 3, dtype=torch.bool),
    "kind": "mse",
}
CHOSEN: dict[str, Any] = {"target": torch.zeros(2, 9, 5), "indices": torch.tensor([[0, 8, 9], [1, 2, 3]])}
ELEMENTS = torch.ones(2, 3, 5, dtype=torch.bool)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"prediction": torch.zeros(2, 3, 5).long()}, TypeError, "prediction: expected a floating dtype"),
        ({"prediction": torch.zeros(2, 3, 0)}, ValueError, "prediction"),
        ({"prediction": torch.zeros(())}, ValueError, "prediction"),
        ({"target": 0.0}, TypeError, "target: expected a tensor, got float"),
        ({"target": torch.zeros(3, 5)}, ValueError, r"target: expected the shape \[2, 3, 5\], got \[3, 5\]"),
        ({"target": torch.zeros(2, 3, 5, device="meta")}, ValueError, "target: .*cpu.*meta"),
        ({"mask": torch.ones(2, 3)}, TypeError, "mask: expected torch.bool, got torch.float32"),
        ({"mask": torch.ones(2, 5, dtype=torch.bool)}, ValueError, r"mask: expected the shape \[2, 3\]"),
        ({"mask": ELEMENTS[..., :1]}, ValueError, r"mask: expected the shape \[2, 3, 5\]"),
        ({"mask": ELEMENTS, "normalise_target": True}, ValueError, "mask: expected one entry per token with normalise"),
        ({"mask": ELEMENTS, "kind": "cosine"}, ValueError, "mask: expected one entry per token with kind='cosine'"),
        ({"kind": "huber"}, ValueError, "kind: expected one of .*'huber'"),
        ({"kind": "smooth_l1", "beta": 0.0}, ValueError, "beta: .*above 0, got 0.0"),
        ({"beta": 0.5}, ValueError, "beta: expected 1.0 with kind='mse', which has none, got 0.5"),
        ({"kind": "power", "power": 0}, ValueError, "power: .*above 0"),
        ({"kind": "power", "power": math.nan}, ValueError, "power"),
        ({"power": 3.0}, ValueError, "power: expected 2.0 with kind='mse'"),
        ({"normalise_target": True, "eps": -1e-5}, ValueError, "eps: .*at least 0"),
        ({"eps": 1e-3}, ValueError, "eps: expected 1e-5 without normalise_target"),
        ({"weight": torch.ones(2, 3).long()}, TypeError, "weight: expected a floating dtype"),
        ({"weight": torch.ones(2, 3, 5)}, ValueError, r"weight: expected the shape \[2, 3\]"),
        ({"reduction": "avg"}, ValueError, "reduction"),
        ({"reduction": "sum", "normaliser": 3}, ValueError, "normaliser: expected None with reduction='sum'"),
        ({"normaliser": 0.0}, ValueError, "normaliser"),
        (CHOSEN, ValueError, r"indices: expected 0 to 8 where the mask is True, got 9 at \[0, 2\]"),
        (CHOSEN | {"indices": torch.tensor([[0, 1, 2], [0, -1, 2]])}, ValueError, r"indices: .*got -1 at \[1, 1\]"),
        (CHOSEN | {"indices": torch.zeros(2, 3, dtype=torch.int32)}, TypeError, "indices: expected torch.int64"),
        (
            CHOSEN | {"indices": torch.zeros(2, 4, dtype=torch.int64)},
            ValueError,
            r"indices: expected the shape \[2, 3\]",
        ),
        (CHOSEN | {"target": torch.zeros(3, 9, 5)}, ValueError, r"target: expected the shape \[2, 9, 5\]"),
        (CHOSEN | {"target": torch.zeros(2, 0, 5)}, ValueError, r"target: expected the shape \[2, T, 5\]"),
        (CHOSEN | {"prediction": torch.zeros(3, 5)}, ValueError, r"prediction: expected the shape \[B, M, D\]"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        masked_regression(**(USUAL | arguments))
