"""Gradients of the cross-entropy through a head: whatever comes back, in every dtype, only where they are wanted."""

# mypy: allow-untyped-calls
# Some of torch's own methods carry no types.

import pytest
import torch
from kernel_calls import check_recomputed
from kernel_device import DEVICE
from kernel_results import assert_same
from torch import Tensor
from truth_linear_cross_entropy import BUDGET, OPTIONS, Data, outcome, truth
from truth_masked_cross_entropy import REDUCTIONS

from assay.audits.laws import limits
from assay.kernels import linear_cross_entropy_chunks as chunks
from assay.kernels.linear_cross_entropy import linear_cross_entropy

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def test_upstream_and_retained_graphs() -> None:
    """Whatever comes, how often it comes: a first backward must not be left in what the second one reads."""
    for path in (torch.float64, torch.float32):
        data = Data(path)
        hidden, head, bias = leaves = data.leaves()
        for reduction in REDUCTIONS:
            value, _ = linear_cross_entropy(hidden, head, data.labels, bias=bias, reduction=reduction)
            back = torch.ones((), device=DEVICE, dtype=value.dtype).expand(value.shape)
            first = torch.autograd.grad(value, leaves, back, retain_graph=True)
            kept = [x.clone() for x in first]
            eight = torch.autograd.grad(value, leaves, back * 8, retain_graph=True)
            assert_same(list(eight), [x * 8 for x in kept])
            assert_same(list(first), kept)
            assert_same(list(torch.autograd.grad(value, leaves, back)), kept)


def test_frozen_parts_change_nothing() -> None:
    data = Data(torch.float32)
    for reduction in REDUCTIONS:
        full = outcome(linear_cross_entropy, data, reduction=reduction)
        back = (data.upstream if reduction == "none" else data.upstream[0, 0]).float()
        for at in range(3):
            leaves = [data.hidden, data.head, data.bias]
            leaves[at] = leaves[at].detach().requires_grad_()
            value, _ = linear_cross_entropy(
                leaves[0], leaves[1], data.labels, bias=leaves[2], reduction=reduction, memory_budget=None
            )
            assert_same(list(torch.autograd.grad(value, leaves[at], back)), [full[1 + at]])


def test_no_gradient_work_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    score = chunks.score
    monkeypatch.setattr(chunks, "score", lambda *arguments: seen.append(bool(arguments[5])) or score(*arguments))
    data = Data()
    hidden, head, _ = data.leaves()
    linear_cross_entropy(hidden.detach(), head.detach(), data.labels)
    with torch.no_grad():
        linear_cross_entropy(hidden, head, data.labels)
    linear_cross_entropy(hidden, head, data.labels, reduction="none")
    assert seen == [False, False, False]
    linear_cross_entropy(hidden, head, data.labels)
    assert seen[3:] == [True]


def test_fp16_does_not_underflow_before_the_loss_scale_is_known() -> None:
    data = Data(torch.float16)
    hidden, head, _ = leaves = data.leaves()
    value, _ = linear_cross_entropy(hidden, head, data.labels, normaliser=2.0**30)
    got = torch.autograd.grad(value * 2.0**30, leaves[:2])
    expected = torch.autograd.grad(linear_cross_entropy(hidden, head, data.labels, reduction="sum").value, leaves[:2])
    assert_same(list(got), list(expected))


def test_the_gradient_of_the_head_adds_up_in_fp32() -> None:
    """300 equal rows, one to a chunk, 0.5 each: a bf16 sum of them ends at 128."""
    hidden = torch.ones(300, 1, dtype=torch.bfloat16, device=DEVICE)
    head = torch.zeros(2, 1, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
    labels = torch.zeros(300, dtype=torch.int64, device=DEVICE)
    value, _ = linear_cross_entropy(hidden, head, labels, reduction="sum", memory_budget=1)
    (gradient,) = torch.autograd.grad(value, head)
    assert gradient.flatten().tolist() == [-150, 150]


def test_autocast_is_that_of_a_linear_layer() -> None:
    data = Data(torch.float32)
    with torch.autocast(DEVICE, torch.bfloat16):
        got = outcome(linear_cross_entropy, data)
        usual = outcome(truth, data, dtype=torch.bfloat16)
    expected = outcome(truth, data)
    for a, b, c in zip(got, expected, usual, strict=True):
        assert a.dtype == torch.float32
        error, ordinary = (float(limits.difference(x, b).max()) for x in (a, c))
        assert error <= limits.FACTOR * ordinary


def test_gradcheck() -> None:
    data = Data()
    hidden, head, bias = data.leaves()
    for reduction in REDUCTIONS:
        options = OPTIONS["all"] | {"reduction": reduction, "weight": data.weight.double(), "memory_budget": BUDGET}
        assert torch.autograd.gradcheck(
            lambda x, w, b, options=options: linear_cross_entropy(x, w, data.labels, bias=b, **options).value,
            (hidden, head, bias),
            fast_mode=True,
        )


def test_checkpoint() -> None:
    data = Data()
    hidden, head, _ = data.leaves()

    def block(x: Tensor) -> Tensor:
        return linear_cross_entropy(x * 2, head, data.labels).value * 3

    check_recomputed(block, hidden)
