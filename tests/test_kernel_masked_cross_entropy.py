"""The fused cross-entropy against float64: values and gradients under every option, dtype and reduction."""

# mypy: allow-untyped-calls
# Some of torch's own methods carry no types.

from typing import Any

import pytest
import torch
from kernel_device import DEVICE, DTYPES, needs
from kernel_results import assert_same
from torch import Tensor
from truth_masked_cross_entropy import OPTIONS, REDUCTIONS, B, S, compare, judge, make, random, shifted, truth

from assay.kernels import masked_cross_entropy_launch as launch
from assay.kernels.masked_cross_entropy import Loss, cross_entropy

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a thousand logits then take several blocks, as rows of 150,000 do."""
    monkeypatch.setattr(launch, "_STREAMED", 1024)
    monkeypatch.setattr(launch, "_RESIDENT", 512)
    monkeypatch.setattr(launch, "_REDUCED", 4)
    monkeypatch.setattr(launch, "SCALERS", 3)


@pytest.mark.parametrize(
    ("option", "vocabulary"),
    [(option, 257) for option in OPTIONS] + [("all", vocabulary) for vocabulary in (1, 2, 3, 1000)],
)
def test_values_and_gradients(option: str, vocabulary: int) -> None:
    logits, labels, weight, upstream = make(vocabulary)
    for reduction in REDUCTIONS:
        options = OPTIONS[option] | {"reduction": reduction}
        options |= {"weight": weight} if option == "all" else {}
        compare(logits, labels, upstream, inplace=option in {"plain", "all"}, **options)
    compare(logits, labels, upstream, weight=weight, normaliser=7.5, **OPTIONS[option])


@pytest.mark.parametrize("vocabulary", [513, 1024])
@pytest.mark.parametrize("option", ["plain", "label_smoothing", "all"])
@pytest.mark.usefixtures("small_blocks")
def test_rows_of_several_blocks(option: str, vocabulary: int) -> None:
    """513 leaves one column for the last block, 1024 fills it; the fused form and the one in two passes."""
    logits, labels, weight, upstream = make(vocabulary)
    for inplace in (False, True):
        compare(logits, labels, upstream, inplace=inplace, weight=weight, **OPTIONS[option])


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype_name", DTYPES)
def test_dtypes(dtype_name: str, reduction: str) -> None:
    dtype = DTYPES[dtype_name]
    needs(dtype)
    logits, labels, weight, upstream = make(257)
    for option in ("plain", "all"):
        compare(logits.to(dtype), labels, upstream, weight=weight, reduction=reduction, **OPTIONS[option])


def test_the_gradient_at_the_label_is_rounded_once() -> None:
    """A confident token: bf16(bf16(softmax) - 1) would be wrong by half."""
    needs(torch.bfloat16)
    logits = random(4, 50, seed=1).bfloat16()
    labels = torch.arange(4, device=DEVICE)
    logits[labels, labels] = 12.0
    for inplace in (False, True):
        x = logits.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(x * 1, labels, inplace=inplace).value, x)
        exact = torch.softmax(logits.double(), -1)
        exact[labels, labels] -= 1
        at_label, expected = gradient[labels, labels], (exact / 4)[labels, labels]
        judge("gradient at the label", at_label, expected, 0.25)
        assert ((at_label.double() - expected).abs() <= expected.abs() / 100).all()


@pytest.mark.parametrize("offset", [120.0, -120.0])
def test_moving_all_logits_costs_no_accuracy(offset: float) -> None:
    """Judged by the loss, which depends on the spread of the logits only, instead of by their size."""
    logits, labels, _, upstream = make(257)
    moved = logits / 30 + offset
    for options in ({}, {"label_smoothing": 0.2}):
        x = moved.detach().requires_grad_()
        expected = truth(x, labels, reduction="none", **options)
        value, _ = cross_entropy(x, labels, reduction="none", **options)
        judge("value", value, expected, expected.detach().max())
        judge(
            "gradient",
            torch.autograd.grad(value, x, upstream)[0],
            torch.autograd.grad(expected, x, upstream.double())[0],
            upstream.abs().amax(),
        )


@pytest.mark.parametrize("ignored", [0, 1, 4, 10**12, -(2**63)])
def test_any_ignore_index(ignored: int) -> None:
    """Also inside the vocabulary: then it is no label."""
    logits, labels, _, upstream = make(5)
    labels = torch.where(labels == -100, ignored, labels)
    compare(logits, labels, upstream, ignore_index=ignored, shift=True)


def test_shift_is_the_labels_shifted_beforehand() -> None:
    """Within each row: the last position of one is not scored against the first label of the next."""
    logits, labels, weight, _ = make(17)
    labels[1, 0] = 3
    before = shifted(labels, -100), shifted(weight, 0)
    for reduction in REDUCTIONS:
        got = cross_entropy(logits, labels, weight=weight, shift=True, reduction=reduction)
        assert_same(got, cross_entropy(logits, before[0], weight=before[1], reduction=reduction))
    labels[:, 0] = 999  # nobody's label
    assert_same(got, cross_entropy(logits, labels, weight=weight, shift=True))


@pytest.mark.parametrize("inplace", [False, True])
def test_upstream_scales_exactly_and_in_the_right_place(inplace: bool) -> None:
    """A power of two commutes with every rounding; a normaliser is a division of the sum."""
    logits, labels, _, _ = make(17)

    def gradient(factor: float, **options: Any) -> Tensor:
        x = logits.detach().requires_grad_()
        value, _ = cross_entropy(x * 1, labels, inplace=inplace, **options)
        return torch.autograd.grad(value * factor, x)[0]

    assert torch.equal(gradient(1) * 8, gradient(8))
    assert torch.equal(gradient(1, normaliser=16), gradient(1 / 16, reduction="sum"))
    assert torch.equal(gradient(1, normaliser=torch.tensor(16, device=DEVICE)), gradient(1, normaliser=16.0))


@pytest.mark.usefixtures("small_blocks")
def test_equal_inputs_give_equal_bits() -> None:
    logits, labels, weight, upstream = make(1000)
    order = torch.randperm(B * S, generator=torch.Generator().manual_seed(1)).to(DEVICE)

    def results(*tensors: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
        x = tensors[0].detach().requires_grad_()
        options = OPTIONS["all"] | {"shift": False, "reduction": reduction}
        value, _ = cross_entropy(x, tensors[1], weight=tensors[2], **options)
        return value, torch.autograd.grad(value, x, tensors[3] if reduction == "none" else None)[0]

    flat = tuple(x.flatten(0, 1) for x in (logits, labels, weight, upstream))
    for reduction in REDUCTIONS:
        assert_same(results(*flat, reduction=reduction), results(*flat, reduction=reduction))
    moved = results(*(x[order] for x in flat), reduction="none")
    assert_same(moved, tuple(x[order] for x in results(*flat, reduction="none")))


@pytest.mark.usefixtures("small_blocks")
def test_logits_of_minus_infinity() -> None:
    """A vocabulary that is masked in part, the whole first block of it included."""
    logits, labels, _, upstream = make(600)
    logits[..., :520] = -torch.inf
    labels[labels >= 0] = 520 + labels[labels >= 0] // 8
    for inplace in (False, True):
        x = logits.detach().requires_grad_()
        expected = truth(x, labels)
        value, _ = cross_entropy(x * 1, labels, inplace=inplace)
        judge("value", value, expected, 20.0)
        (gradient,) = torch.autograd.grad(value, x, upstream[0, 0])
        assert (gradient[..., :520] == 0).all()
        judge("gradient", gradient, torch.autograd.grad(expected, x, upstream[0, 0].double())[0], upstream[0, 0].abs())


def test_a_nan_in_a_scored_row_is_not_hidden() -> None:
    logits, labels, _, _ = make(257)
    logits[0, 0, 100] = torch.nan
    value, _ = cross_entropy(logits, labels, reduction="none")
    assert value[0, 0].isnan()
    assert value[0, 1:].isfinite().all()


@pytest.mark.parametrize("size", [1e-6, 0.1, 1.0, 50.0])
def test_softcap_is_accurate_for_logits_of_every_size(size: float) -> None:
    """From where tanh(x) is x to where it is 1."""
    logits, labels, _, upstream = make(257)
    compare(logits / 3 * size, labels, upstream, softcap=1.0, reduction="none")


def test_fp16_does_not_underflow_before_the_loss_scale_is_known() -> None:
    logits, labels, _, _ = make(257)
    for inplace in (False, True):
        x = logits.half().requires_grad_()
        value, _ = cross_entropy(x * 1, labels, normaliser=2.0**30, inplace=inplace)
        (gradient,) = torch.autograd.grad(value * 2.0**30, x)
        (slope,) = torch.autograd.grad(truth(x, labels, reduction="sum"), x)
        judge("gradient", gradient, slope, 1.0)


def test_the_loss_is_a_named_pair() -> None:
    logits, labels, _, _ = make(3)
    loss = cross_entropy(logits, labels)
    assert isinstance(loss, Loss)
    assert loss == (loss.value, loss.count)
