"""The cross-entropy through a head as others call it: its operators, compiled, and with what it refuses."""

# mypy: allow-untyped-calls
# Some of torch's own methods carry no types.

import pytest
import torch
from kernel_calls import Refusal, check_refused, compiled
from kernel_device import DEVICE, GPU
from kernel_results import assert_same
from torch import Tensor, library
from truth_linear_cross_entropy import BUDGET, B, Data, S, V, outcome
from truth_masked_cross_entropy import REDUCTIONS

from assay.audits.laws import limits
from assay.kernels import linear_cross_entropy_ops as ops
from assay.kernels.linear_cross_entropy import linear_cross_entropy

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def test_operators_are_registered_right() -> None:
    data = Data(torch.float32)
    hidden, head, bias = data.leaves()
    rest = (-100, 3.0, 0.1, 0.1, True)
    first = (hidden, head, bias, data.labels, data.weight)
    normaliser = torch.tensor(3.0, device=DEVICE)
    for wanted, reduction, n in (((True, True, True), "mean", None), ((False, False, False), "none", 9)):
        divisor = normaliser if reduction == "mean" else None
        library.opcheck(ops.forward_op, (*first, divisor, *wanted, reduction, True, n, BUDGET, *rest))
    plain = (data.hidden, data.head, data.bias, data.labels, None)
    library.opcheck(
        ops.gradient_op, (data.upstream.float(), *plain, None, True, False, True, "none", True, None, None, *rest)
    )
    library.opcheck(ops.scale_op, ([data.hidden.clone(), data.bias.clone()], normaliser))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compiled_without_a_graph_break(reduction: str) -> None:
    data = Data(torch.float32)
    hidden, head, bias = leaves = data.leaves()

    def step(x: Tensor, head: Tensor, bias: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        value, count = linear_cross_entropy(x * 2, head, labels, bias=bias, reduction=reduction, shift=True)
        return value * 3, count

    results = []
    for function in (step, compiled(step)):
        value, count = function(hidden, head, bias, data.labels)
        back = data.upstream.float() if reduction == "none" else data.upstream[0, 0].float()
        results.append([value, count, *torch.autograd.grad(value, leaves, back)])
    assert_same(*results)


@pytest.mark.skipif(GPU, reason="on a GPU the kernel runs")
def test_without_interpreter_the_cpu_needs_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops.launch, "INTERPRETED", False)
    monkeypatch.setattr(ops.launch.kernels, "rows_kernel", None)
    data = Data(torch.float32)
    assert len(outcome(linear_cross_entropy, data)) == 4


@pytest.mark.parametrize("num_valid", [None, B * S])
@pytest.mark.parametrize("stranger", [V, -1])
def test_labels_outside_the_vocabulary(stranger: int, num_valid: int | None) -> None:
    data = Data()
    data.labels[1, 2] = stranger
    check: bool | None
    for check in (None, True) if num_valid is None or not GPU else (True,):
        with pytest.raises(ValueError, match=rf"labels: .*0 to 32.*{stranger} at \[1, 2\]"):
            linear_cross_entropy(data.hidden, data.head, data.labels, num_valid=num_valid, check=check)
    for reduction in REDUCTIONS:
        value, hidden, head, _ = outcome(
            linear_cross_entropy, data, reduction=reduction, check=False, num_valid=num_valid
        )
        assert (value[1, 2] if reduction == "none" else value).isnan()
        assert hidden[1, 2].isnan().all()
        assert head.isnan().all()
        assert not hidden[0].isnan().any()


def test_num_valid_that_is_too_small() -> None:
    """It may be too large, which costs time; what it cuts off may not pass unseen."""
    data = Data(torch.float32)
    expected = outcome(linear_cross_entropy, data)
    for enough in (7, 8, 10**9):
        for a, b in zip(outcome(linear_cross_entropy, data, num_valid=enough, check=False), expected, strict=True):
            error = limits.difference(a, b) / (1 + b.abs().max())
            assert float(error.max()) <= limits.ULPS * limits.accumulation_eps(torch.float32)
    with pytest.raises(ValueError, match="num_valid: expected at least 7.*got 6"):
        linear_cross_entropy(data.hidden, data.head, data.labels, num_valid=6, check=True)
    for reduction in REDUCTIONS:
        value, _, head, _ = outcome(linear_cross_entropy, data, num_valid=6, check=False, reduction=reduction)
        assert value.isnan().any()
        assert head.isnan().all()


ERRORS: dict[str, Refusal] = {
    "hidden dtype": ({"hidden": torch.zeros(2, 5, 4).long()}, TypeError, "hidden: .*int64"),
    "0-d hidden": ({"hidden": torch.zeros(())}, ValueError, "hidden: .*0-d"),
    "head dtype": ({"head": torch.zeros(9, 4).double()}, TypeError, "head: .*float32.*float64"),
    "head shape": ({"head": torch.zeros(4, 9)}, ValueError, r"head: .*\[4, 4\].*\[4, 9\]"),
    "no vocabulary": ({"head": torch.zeros(0, 4)}, ValueError, r"head: .*\[V, 4\].*\[0, 4\]"),
    "bias shape": ({"bias": torch.zeros(4)}, ValueError, r"bias: .*\[9\].*\[4\]"),
    "bias dtype": ({"bias": torch.zeros(9).half()}, TypeError, "bias: .*float32.*float16"),
    "shape of labels": ({"labels": torch.zeros(2, 4).long()}, ValueError, r"labels: .*\[2, 5\].*\[2, 4\]"),
    "softcap": ({"softcap": -1.0}, ValueError, "softcap: .*above 0.*-1"),
    "normaliser": ({"normaliser": 3, "reduction": "none"}, ValueError, "normaliser: .*None"),
    "budget": ({"memory_budget": 0}, ValueError, "memory_budget: .*at least 1.*0"),
    "budget type": ({"memory_budget": 1e9}, TypeError, "memory_budget: .*int.*float"),
    "num_valid": ({"num_valid": -1}, ValueError, "num_valid: .*at least 0.*-1"),
    "device": ({"head": torch.zeros(9, 4, device="meta")}, ValueError, "head: .*meta"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_refuses(name: str) -> None:
    labels = torch.zeros(2, 5, dtype=torch.int64)
    usual = {"hidden": torch.zeros(2, 5, 4), "head": torch.zeros(9, 4), "labels": labels}
    check_refused(linear_cross_entropy, usual, ERRORS[name])
