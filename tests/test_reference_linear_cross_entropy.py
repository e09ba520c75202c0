"""Cross-entropy from hidden states: what it is equal to, what it must not read, and arguments refused."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from assay.reference.masked_loss import cross_entropy, linear_cross_entropy

EPS = torch.finfo(torch.float64).eps
IGNORED = -100
OPTIONS: dict[str, Any] = {"softcap": 2.0, "label_smoothing": 0.1, "z_loss": 0.05}


def case(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Hidden states [2, 4, 3] under a head of 7, unequal counts per row."""
    generator = torch.Generator().manual_seed(4)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    labels = torch.randint(0, 7, (2, 4), generator=generator)
    labels[0, 2] = labels[1, 1:] = IGNORED
    weight = torch.rand(2, 4, generator=generator, dtype=torch.float64) + 0.2
    return {"hidden": random(2, 4, 3), "head": random(7, 3), "bias": random(7), "labels": labels, "weight": weight}


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_it_is_the_cross_entropy_of_the_logits(biased: bool, shift: bool, reduction: Any) -> None:
    x = case()
    trained = [x["hidden"], x["head"], *([x["bias"]] if biased else [])]
    options: dict[str, Any] = OPTIONS | {"shift": shift, "reduction": reduction, "weight": x["weight"]}
    logits = x["hidden"] @ x["head"].T + (x["bias"] if biased else 0.0)
    ours = linear_cross_entropy(x["hidden"], x["head"], x["labels"], bias=x["bias"] if biased else None, **options)
    theirs = cross_entropy(logits, x["labels"], **options)
    assert int(ours.count) == int(theirs.count)
    assert ours.value.shape == theirs.value.shape
    upstream = torch.linspace(0.3, 2.0, ours.value.numel(), dtype=torch.float64).reshape(ours.value.shape)
    results = [(v.value, *torch.autograd.grad(v.value, trained, upstream)) for v in (ours, theirs)]
    for got, expected in zip(*results, strict=True):
        assert float((got - expected).detach().abs().max()) <= 64 * EPS * max(1.0, float(expected.detach().abs().max()))


def test_normaliser_is_passed_on() -> None:
    x = case()
    mean = linear_cross_entropy(x["hidden"], x["head"], x["labels"], normaliser=torch.tensor(4))
    total = linear_cross_entropy(x["hidden"], x["head"], x["labels"], reduction="sum")
    assert torch.equal(mean.value, total.value / 4)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_gradients(reduction: Any) -> None:
    x = case()

    def value(hidden: Tensor, head: Tensor, bias: Tensor, weight: Tensor) -> Tensor:
        options: dict[str, Any] = OPTIONS | {"weight": weight, "reduction": reduction}
        return linear_cross_entropy(hidden, head, x["labels"], bias=bias, **options).value

    inputs = (x["hidden"], x["head"], x["bias"], x["weight"].requires_grad_())
    assert torch.autograd.gradcheck(value, inputs)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_hidden_states_of_ignored_tokens_are_not_read(poison: float) -> None:
    x = case()
    ignored = x["labels"] == IGNORED
    results = []
    for spoilt in (False, True):
        hidden = x["hidden"].detach().clone()
        if spoilt:
            hidden[ignored] = poison
        hidden.requires_grad_()
        loss = linear_cross_entropy(hidden, x["head"], x["labels"], bias=x["bias"], **OPTIONS)
        results.append((loss.value, *torch.autograd.grad(loss.value, (hidden, x["head"], x["bias"]))))
    for clean, spoilt_result in zip(*results, strict=True):
        assert torch.equal(clean, spoilt_result)
    assert not results[1][1][ignored].any()


@pytest.mark.parametrize("why", ["all ignored", "weights of zero"])
def test_nothing_valid_is_zero(why: str) -> None:
    x = case()
    hidden = torch.full((2, 4, 3), math.nan, dtype=torch.float64, requires_grad=True)
    labels = torch.full_like(x["labels"], IGNORED) if why == "all ignored" else x["labels"].clamp(min=0)
    weight = torch.zeros(2, 4)
    loss = linear_cross_entropy(hidden, x["head"], labels, bias=x["bias"], weight=weight)
    assert loss.value.item() == 0.0
    assert loss.count.item() == (0 if why == "all ignored" else 8)
    for grad in torch.autograd.grad(loss.value, (hidden, x["head"], x["bias"])):
        assert not grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_logits_are_not_rounded_in_between(dtype: torch.dtype) -> None:
    x = case(dtype)
    wide = {name: x[name].detach().float().requires_grad_() for name in ("hidden", "head", "bias")}
    ours = linear_cross_entropy(x["hidden"], x["head"], x["labels"], bias=x["bias"])
    theirs = linear_cross_entropy(wide["hidden"], wide["head"], x["labels"], bias=wide["bias"])
    assert ours.value.dtype == torch.float32
    assert torch.equal(ours.value, theirs.value)
    grads = torch.autograd.grad(ours.value, (x["hidden"], x["head"], x["bias"]))
    for got, expected in zip(grads, torch.autograd.grad(theirs.value, tuple(wide.values())), strict=True):
        assert got.dtype == dtype
        assert torch.equal(got, expected.to(dtype))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"hidden": torch.zeros(2, 4, 3, dtype=torch.int64)}, TypeError, "hidden: expected a floating dtype"),
        ({"hidden": torch.zeros(())}, ValueError, "hidden: .*0-d"),
        ({"head": torch.zeros(7, 3)}, TypeError, "head: expected torch.float64, got torch.float32"),
        (
            {"head": torch.zeros(7, 4, dtype=torch.float64)},
            ValueError,
            r"head: expected the shape \[7, 3\], got \[7, 4\]",
        ),
        ({"head": torch.zeros(7, dtype=torch.float64)}, ValueError, r"head: .*\[7\]"),
        ({"head": torch.zeros(0, 3, dtype=torch.float64)}, ValueError, r"head: .*\[0, 3\]"),
        ({"bias": torch.zeros(7)}, TypeError, "bias: expected torch.float64"),
        ({"bias": torch.zeros(3, dtype=torch.float64)}, ValueError, r"bias: expected the shape \[7\], got \[3\]"),
        ({"labels": torch.zeros(2, 3, dtype=torch.int64)}, ValueError, r"labels: expected the shape \[2, 4\]"),
        ({"labels": torch.full((2, 4), 7)}, ValueError, r"labels: expected 0 to 6 .*got 7 at \[0, 0\]"),
        ({"weight": torch.zeros(8)}, ValueError, "weight"),
        ({"softcap": -1.0}, ValueError, "softcap"),
        ({"label_smoothing": 1.5}, ValueError, "label_smoothing"),
        ({"z_loss": -1.0}, ValueError, "z_loss"),
        ({"reduction": "max"}, ValueError, "reduction"),
        ({"normaliser": 2.0, "reduction": "sum"}, ValueError, "normaliser"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    x = case()
    usual = {"hidden": x["hidden"], "head": x["head"], "labels": x["labels"]}
    with pytest.raises(error, match=f"^{message}"):
        linear_cross_entropy(**(usual | arguments))
