"""Cross-entropy through a head against float64: the plain path, and the path of GPUs with its kernel interpreted."""

# mypy: allow-untyped-calls
# Some of torch's own methods carry no types.

from typing import Any

import pytest
import torch
from kernel_device import DEVICE, needs
from kernel_results import assert_same
from torch import Tensor
from truth_linear_cross_entropy import BUDGET, DTYPES, OPTIONS, B, Data, H, S, V, compare, outcome, random, truth
from truth_masked_cross_entropy import REDUCTIONS, shifted

from assay.audits.laws import limits
from assay.kernels import linear_cross_entropy_chunks as chunks
from assay.kernels.linear_cross_entropy import linear_cross_entropy
from assay.kernels.masked_cross_entropy import cross_entropy

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks are scored by the Triton kernel on the CPU too."""
    monkeypatch.setattr(chunks, "uses_kernel", lambda x: x.dtype != torch.float64)


@pytest.mark.parametrize("budget", [None, BUDGET, 1])
@pytest.mark.parametrize("option", OPTIONS)
def test_plain_path(option: str, budget: int | None) -> None:
    """In one chunk, in several, and row by row."""
    data = Data()
    for reduction in REDUCTIONS:
        options = OPTIONS[option] | {"reduction": reduction, "weight": data.weight if option == "all" else None}
        compare(data, **options, bias=option in {"plain", "all"}, memory_budget=budget)
    compare(data, weight=data.weight, normaliser=7.5, **OPTIONS[option], memory_budget=budget, num_valid=9)


@pytest.mark.parametrize("dtype_name", DTYPES)
def test_plain_path_dtypes(dtype_name: str) -> None:
    data = Data(DTYPES[dtype_name])
    for budget in (None, BUDGET):
        for reduction in REDUCTIONS:
            compare(data, weight=data.weight, reduction=reduction, memory_budget=budget, **OPTIONS["all"])


@pytest.mark.parametrize("dtype_name", ["fp32", "bf16", "fp16"])
@pytest.mark.usefixtures("kernel")
def test_kernel_path(dtype_name: str) -> None:
    data = Data(DTYPES[dtype_name])
    needs(data.hidden.dtype)
    for budget in (None, BUDGET):
        for reduction in REDUCTIONS:
            compare(data, weight=data.weight, reduction=reduction, memory_budget=budget, **OPTIONS["all"])
    compare(data, num_valid=B * S)


@pytest.mark.parametrize("path", ["plain", "kernel"])
def test_it_is_the_loss_of_the_logits(path: str, request: pytest.FixtureRequest) -> None:
    """The two fused losses are one."""
    if path == "kernel":
        request.getfixturevalue("kernel")
    data = Data(torch.float32)
    logits = data.hidden @ data.head.T + data.bias
    for reduction in REDUCTIONS:
        options = OPTIONS["all"] | {"weight": data.weight, "reduction": reduction}
        got = linear_cross_entropy(data.hidden, data.head, data.labels, bias=data.bias, **options)
        expected = cross_entropy(logits, data.labels, **options)
        assert torch.equal(got.count, expected.count)
        error = limits.relative(limits.difference(got.value, expected.value), 10 + expected.value.abs().max().double())
        assert limits.norms(error).worst <= limits.ULPS * limits.accumulation_eps(torch.float32)


@pytest.mark.parametrize("path", ["plain", "kernel"])
@pytest.mark.parametrize("num_valid", [None, 5])
def test_rows_without_a_label_are_not_read(num_valid: int | None, path: str, request: pytest.FixtureRequest) -> None:
    """Seven of fourteen rows hold NaN; the gradient of the head would show it."""
    if path == "kernel":
        request.getfixturevalue("kernel")
    clean, dirty = Data(torch.float32), Data(torch.float32)
    dirty.labels[1, 5:] = clean.labels[1, 5:] = -100
    dirty.hidden[dirty.labels == -100] = torch.nan
    dirty.weight[dirty.labels == -100] = torch.nan
    for reduction in REDUCTIONS:
        options = {"reduction": reduction, "num_valid": num_valid and num_valid + 2, "memory_budget": BUDGET}
        got = outcome(linear_cross_entropy, dirty, weight=dirty.weight, **options)
        assert_same(got, outcome(linear_cross_entropy, clean, weight=clean.weight, **options))
        assert (got[1][dirty.labels == -100] == 0).all()


@pytest.mark.parametrize("path", ["plain", "kernel"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nothing_to_score(reduction: str, path: str, request: pytest.FixtureRequest) -> None:
    if path == "kernel":
        request.getfixturevalue("kernel")
    data = Data(torch.float32)
    data.hidden.fill_(torch.nan)
    none, some = torch.full_like(data.labels, -100), torch.zeros_like(data.labels)
    cases: list[tuple[Tensor, dict[str, Any]]] = [(none, {}), (none, {"num_valid": 3})]
    if reduction == "mean":
        cases += [(none, {"normaliser": torch.tensor(0, device=DEVICE)}), (none, {"normaliser": 3.5})]
        cases += [(some, {"weight": data.weight * 0}), (some, {"weight": data.weight * 0, "num_valid": B * S})]
    for labels, options in cases:
        data.labels = labels
        for result in outcome(linear_cross_entropy, data, reduction=reduction, **options):
            assert (result == 0).all()
        found = linear_cross_entropy(data.hidden, data.head, labels, reduction=reduction, **options)
        assert int(found.count) == int((labels != -100).sum())


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0,)])
def test_no_rows(shape: tuple[int, ...]) -> None:
    data = Data()
    hidden = torch.zeros(*shape, H, dtype=torch.float64, device=DEVICE, requires_grad=True)
    head = data.head.requires_grad_()
    labels = torch.zeros(shape, dtype=torch.int64, device=DEVICE)
    for options in ({}, {"num_valid": 4}, {"shift": True}):
        value, count = linear_cross_entropy(hidden, head, labels, **options)
        assert value == 0
        assert count == 0
        gradients = torch.autograd.grad(value, (hidden, head))
        assert gradients[0].shape == hidden.shape
        assert (gradients[1] == 0).all()


@pytest.mark.parametrize("vocabulary", [1, 2, 257])
def test_vocabularies_and_one_row_of_any_rank(vocabulary: int) -> None:
    head = random(vocabulary, H, seed=1)
    hidden, label = random(H, seed=0), torch.tensor(vocabulary - 1, device=DEVICE)
    expected = truth(hidden[None], head, label[None])
    for shape in ((), (1,), (1, 1, 1)):
        for reduction in ("none", "mean"):
            x = hidden.detach().view(*shape, H).requires_grad_()
            value, count = linear_cross_entropy(x, head, label.view(shape), reduction=reduction)
            assert count == 1
            assert value.shape == (shape if reduction == "none" else ())
            assert float(limits.difference(value, expected).max()) <= 40 * limits.accumulation_eps(torch.float64)
            assert torch.autograd.grad(value.sum(), x)[0].shape == x.shape


def test_ignore_index_inside_the_vocabulary() -> None:
    data = Data()
    for ignored in (0, 3, V - 1):
        data.labels = torch.where(data.labels == -100, ignored, data.labels)
        compare(data, ignore_index=ignored)
        compare(data, ignore_index=ignored, num_valid=B * S)
        data = Data()


def test_strides_change_nothing() -> None:
    data = Data(torch.float32)
    expected = outcome(linear_cross_entropy, data, shift=True, weight=data.weight)
    rows = torch.cat([data.hidden, torch.full_like(data.hidden[:, :2], torch.nan)], 1)
    forms: list[Tensor] = [rows[:, :S], data.hidden.transpose(0, 1).contiguous().transpose(0, 1)]
    forms.append(torch.stack([data.hidden, data.hidden * torch.nan], -1)[..., 0])
    for data.hidden in forms:
        data.weight = torch.stack([data.weight, data.weight], -1)[..., 0]
        data.labels = torch.stack([data.labels, data.labels], 0)[0].T.contiguous().T
        data.head = data.head.T.contiguous().T
        for a, b in zip(outcome(linear_cross_entropy, data, shift=True, weight=data.weight), expected, strict=True):
            error = limits.difference(a, b) / (1 + b.abs().max())
            assert float(error.max()) <= limits.ULPS * limits.accumulation_eps(torch.float32)


def test_shift_is_the_labels_shifted_beforehand() -> None:
    data = Data()
    data.labels[1, 0] = 3
    got = outcome(linear_cross_entropy, data, shift=True, weight=data.weight)
    data.labels[:, 0] = 10**6  # nobody's label
    assert_same(outcome(linear_cross_entropy, data, shift=True, weight=data.weight), got)
    data.labels, data.weight = shifted(data.labels, -100), shifted(data.weight, 0)
    assert_same(outcome(linear_cross_entropy, data, weight=data.weight), got)


def test_equal_inputs_give_equal_bits() -> None:
    data = Data(torch.float32)
    for reduction in REDUCTIONS:
        first, second = (
            outcome(linear_cross_entropy, data, reduction=reduction, memory_budget=BUDGET) for _ in range(2)
        )
        assert_same(first, second)
