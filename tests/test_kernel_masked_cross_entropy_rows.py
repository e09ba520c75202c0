"""The fused cross-entropy's rows: of any stride, rank and distance, ignored ones unread, none at all."""

# mypy: allow-untyped-calls
# Some of torch's own methods carry no types.

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_device import DEVICE, GPU, distant
from kernel_results import assert_same
from torch import Tensor
from truth_masked_cross_entropy import REDUCTIONS, B, S, judge, make, random, shifted, truth

from assay.kernels import masked_cross_entropy_ops as ops
from assay.kernels.masked_cross_entropy import cross_entropy

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def padded(x: Tensor) -> Tensor:
    """As the head of a padded vocabulary gives it: NaN beyond V."""
    wide = torch.full((*x.shape[:-1], x.shape[-1] + 7), torch.nan, device=DEVICE)
    wide[..., : x.shape[-1]] = x
    return wide[..., : x.shape[-1]]


STRIDES: dict[str, Callable[[Tensor], Tensor]] = {
    "padded vocabulary": padded,
    "without the last position": lambda x: torch.cat([x, torch.full_like(x[:, :1], torch.nan)], 1)[:, :-1],
    "both": lambda x: padded(torch.cat([x, torch.full_like(x[:, :1], torch.nan)], 1))[:, :-1],
    "sequence first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "offset by one": lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape),
}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("kind", STRIDES)
def test_strides_change_nothing(kind: str, inplace: bool) -> None:
    logits, labels, weight, upstream = make(257)

    def results(layout: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        leaf = logits.detach().requires_grad_()
        value, count = cross_entropy(layout(leaf * 1), labels, weight=weight, shift=True, inplace=inplace)
        return value, count, torch.autograd.grad(value, leaf, upstream[0, 0])[0]

    assert torch.equal(STRIDES[kind](logits), logits)
    assert_same(results(STRIDES[kind]), results(lambda x: x))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("spoil", [torch.nan, torch.inf])
def test_ignored_rows_are_not_read(spoil: float, inplace: bool) -> None:
    logits, labels, weight, upstream = make(257)
    for shift in (False, True):
        targets = shifted(labels, -100) if shift else labels
        dirty = logits.clone()
        dirty[targets == -100] = spoil
        weights = torch.where(labels == -100, torch.nan, weight)
        got, expected = [], []
        for x, w, into in ((dirty, weights, got), (logits, weight, expected)):
            leaf = x.detach().requires_grad_()
            value, count = cross_entropy(leaf * 1, labels, weight=w, shift=shift, inplace=inplace)
            into += [value, count, torch.autograd.grad(value, leaf, upstream[0, 0])[0]]
        assert_same(tuple(got), tuple(expected))
        assert (got[-1][targets == -100] == 0).all()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nothing_to_score(reduction: str, inplace: bool) -> None:
    """Zero, with zero gradients, whatever stands in the logits, and whatever the normaliser."""
    logits = torch.full((B, S, 9), torch.nan, device=DEVICE, requires_grad=True)
    labels = torch.full((B, S), -100, device=DEVICE)
    normalisers: tuple[Any, ...] = (None, torch.tensor(0, device=DEVICE), 3) if reduction == "mean" else (None,)
    for normaliser in normalisers:
        value, count = cross_entropy(logits * 1, labels, reduction=reduction, normaliser=normaliser, inplace=inplace)
        (gradient,) = torch.autograd.grad(value.sum() * 5, logits)
        assert int(count) == 0
        assert (value == 0).all()
        assert (gradient == 0).all()


@pytest.mark.parametrize("signs", [(0.0, 0.0), (1.0, -1.0)])
def test_weights_that_sum_to_zero(signs: tuple[float, float]) -> None:
    """As with nothing to score, but the tokens still count."""
    logits = torch.full((1, 2, 9), torch.nan, device=DEVICE, requires_grad=True)
    labels, weight = torch.tensor([[0, 8]], device=DEVICE), torch.tensor([signs], device=DEVICE)
    for inplace in (False, True):
        value, count = cross_entropy(logits * 1, labels, weight=weight, inplace=inplace)
        (gradient,) = torch.autograd.grad(value, logits)
        assert value == 0
        assert count == 2
        assert (gradient == 0).all()


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0,)])
def test_no_rows(shape: tuple[int, ...]) -> None:
    logits = torch.zeros(*shape, 7, device=DEVICE, requires_grad=True)
    labels = torch.zeros(shape, dtype=torch.int64, device=DEVICE)
    for shift in (False, True):
        for inplace in (False, True):
            value, count = cross_entropy(logits * 1, labels, shift=shift, inplace=inplace)
            assert value == 0
            assert count == 0
            assert torch.autograd.grad(value, logits)[0].shape == logits.shape


def test_one_row_of_any_rank() -> None:
    logits = random(11, seed=3)
    label = torch.tensor(10, device=DEVICE)
    expected = truth(logits[None], label[None])
    for shape in ((), (1,), (1, 1), (1, 1, 1, 1)):
        value, count = cross_entropy(logits.view(*shape, 11), label.view(shape))
        assert count == 1
        judge("value", value, expected, logits.abs().max())


def test_four_ranks_of_rows() -> None:
    logits, labels, _, _ = make(9)
    assert_same(cross_entropy(logits.view(1, 2, 5, 1, 9), labels.view(1, 2, 5, 1)), cross_entropy(logits, labels))


def test_labels_weights_and_upstream_of_any_stride() -> None:
    logits, labels, weight, upstream = make(17)

    def results(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        x = logits.detach().requires_grad_()
        value, _ = cross_entropy(x, tensors[0], weight=tensors[1], reduction="none")
        return value, torch.autograd.grad(value, x, tensors[2])[0]

    strided = tuple(torch.stack([x, x * 3], -1)[..., 0] for x in (labels, weight, upstream))
    assert_same(results(*strided), results(labels, weight, upstream))
    one = tuple(x[:1, 3:4].expand(B, S) for x in (labels, weight, upstream))
    assert_same(results(*one), results(*(x.clone() for x in one)))


@pytest.mark.skipif(GPU, reason="a GPU has no sparse memory")
@pytest.mark.parametrize("far", [0, 1], ids=["batch", "position"])
def test_more_than_two_billion_logits(far: int) -> None:
    """The last row lies past 2**31, though the strides alone still fit 32 bits."""
    logits, labels = (torch.cat([x, x]) for x in make(17)[:2])
    spread = distant(logits, [17 if far else 17 * S, 17, 1], far)
    assert_same(cross_entropy(spread, labels), cross_entropy(logits, labels))
    ops.fused_op(spread, labels, None, None, "mean", False, -100, 0.0, 0.0, 0.0, False)
    x = logits.detach().requires_grad_()
    assert torch.equal(spread, torch.autograd.grad(cross_entropy(x, labels).value, x)[0])
