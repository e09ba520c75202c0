"""The fused regression as others call it: in place, compiled, and with what it refuses."""

# mypy: allow-untyped-calls
# Some of torch's own methods carry no types.

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_calls import Refusal, check_refused, compiled
from kernel_device import DEVICE, DTYPES, GPU, here, needs
from kernel_results import assert_same, judge
from torch import Tensor, library
from truth_masked_regression import SIZES, STRIDES, every_other, make

from assay.kernels import masked_regression_ops, masked_regression_triton
from assay.kernels.masked_regression import masked_regression

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.mark.parametrize("dtype_name", DTYPES)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_in_place(reduction: str, dtype_name: str) -> None:
    """The gradient is that of the ordinary call, bit for bit where 1 comes back, and stands in the prediction."""
    dtype = DTYPES[dtype_name]
    needs(dtype)
    data = make(SIZES["eighty"], dtype)
    options: dict[str, Any] = {"kind": "smooth_l1", "beta": 0.4, "indices": data.indices, "reduction": reduction}
    grads: dict[tuple[bool, float], Tensor] = {}
    for inplace in (False, True):
        for factor in (1.0, 0.3):
            x = data.prediction.detach().requires_grad_()
            y = x * 1
            seen: list[Tensor] = []
            y.register_hook(seen.append)
            value, count = masked_regression(y, data.grid, data.mask, inplace=inplace, **options)
            (gradient,) = torch.autograd.grad(value, x, torch.full_like(value, factor))
            assert (seen[0].data_ptr() == y.data_ptr()) == inplace
            assert int(count) == int(data.mask.sum()) * 80
            grads[inplace, factor] = gradient
    assert_same(grads[True, 1.0], grads[False, 1.0])
    again = dtype == torch.bfloat16 and reduction != "none"  # rounded twice
    scaled = (grads[False, 1.0].float() * 0.3).to(dtype) if dtype != torch.float16 and reduction != "none" else None
    assert_same(grads[True, 0.3], grads[False, 0.3] if scaled is None else scaled)
    assert again or dtype != torch.bfloat16 or torch.equal(grads[True, 0.3], grads[False, 0.3])


def test_in_place_backward_runs_once() -> None:
    data = make(SIZES["three"])
    for reduction in ("mean", "none"):
        x = data.prediction.detach().requires_grad_() * 1
        value, _ = masked_regression(x, data.target, data.mask, kind="mse", inplace=True, reduction=reduction)
        value.sum().backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            value.sum().backward()


def test_in_place_leaves_the_prediction_where_no_gradient_is_wanted() -> None:
    data = make(SIZES["three"])
    before = data.prediction.clone()
    masked_regression(data.prediction, data.target, data.mask, kind="mse", inplace=True)
    with torch.no_grad():
        masked_regression(data.prediction.requires_grad_(), data.target, data.mask, kind="mse", inplace=True)
    assert_same(data.prediction.detach(), before)


REFUSED_IN_PLACE: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "leaf": (lambda x: x.detach().requires_grad_(), "prediction: .*leaf"),
    "expanded": (lambda x: x[:1, :1].expand(x.shape), "prediction: .*share memory"),
    "channel stride": (lambda x: every_other(x, 2), "prediction: .*stride 1"),
    "rows": (STRIDES["not to be viewed"], "prediction: .*two strides"),
}


@pytest.mark.parametrize("kind", REFUSED_IN_PLACE)
def test_in_place_refuses(kind: str) -> None:
    data = make(SIZES["three"])
    spoil, message = REFUSED_IN_PLACE[kind]
    x = spoil(data.prediction.detach().requires_grad_() * 1)
    mask = torch.ones(x.shape[:-1], dtype=torch.bool, device=DEVICE)
    with pytest.raises(ValueError, match=message):
        masked_regression(x, torch.zeros(x.shape, device=DEVICE), mask, kind="mse", inplace=True)
    both_in_one = torch.zeros(2, *data.prediction.shape, device=DEVICE, requires_grad=True) * 1
    with pytest.raises(ValueError, match="target: .*apart"):
        masked_regression(both_in_one[0], both_in_one[1].detach(), data.mask, kind="mse", inplace=True)


def test_operators_are_registered_right() -> None:
    data = make(SIZES["three"])
    x = data.prediction.nan_to_num().requires_grad_()
    two = torch.tensor(2, device=DEVICE)
    token = (x, data.target, data.mask, None, data.weight, None, "mean", False, "smooth_l1", 0.4, False, 1e-5)
    gathered = (x, data.grid, data.mask, data.indices, None, two, "mean", True, "cosine", 0.0, True, 1e-2)
    element = (x, data.target, data.elements, None, None, None, "none", False, "power", 1.5, False, 1e-5)
    for arguments in (token, gathered, element):
        library.opcheck(masked_regression_ops.forward_op, arguments)
    one = torch.tensor(3.0, device=DEVICE)
    gradient = (one, x.detach(), data.target, data.mask, None, data.weight, one, "l1", 0.0, False, 1e-5)
    library.opcheck(masked_regression_ops.gradient_op, gradient)
    plain = x.detach().clone()
    library.opcheck(masked_regression_ops.fused_op, (plain, *token[1:]))
    library.opcheck(masked_regression_ops.gradient_inplace_op, (one, plain, *gradient[2:]))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_without_a_graph_break(backend: str) -> None:
    """In place, the prediction keeps its values under torch.compile; without, it would hold the gradient."""
    data = make(SIZES["three"], poison=0.5)

    def step(x: Tensor, grid: Tensor, mask: Tensor, indices: Tensor, weight: Tensor, inplace: bool) -> Tensor:
        options: dict[str, Any] = {"indices": indices.clamp(0), "weight": weight, "inplace": inplace}
        y, z = x * 2, x * 3
        first = masked_regression(y, grid, mask, kind="l1", normalise_target=True, **options)
        each = masked_regression(z, grid, mask, kind="mse", reduction="none", **options)
        return first.value * first.count + each.value.sum() + y.detach().square().sum()

    x = data.prediction.detach().requires_grad_()
    inputs = (x, data.grid, data.mask, data.indices, data.weight)
    expected = step(*inputs, inplace=False)
    got = compiled(step, backend)(*inputs, inplace=True)
    judge("value", got.detach(), expected.double(), expected)
    assert_same(torch.autograd.grad(got, x)[0], torch.autograd.grad(expected, x)[0])


@pytest.mark.skipif(not GPU, reason="only a GPU can be waited for")
def test_the_device_is_not_waited_for() -> None:
    data = make(SIZES["eighty"], torch.bfloat16)
    x = data.prediction.detach().requires_grad_()
    count = data.mask.sum()

    def step() -> None:
        for options in ({}, {"weight": data.weight, "indices": data.indices}, {"normaliser": count}, {"inplace": True}):
            target = data.grid if "indices" in options else data.target
            masked_regression(x * 1, target, data.mask, kind="mse", **options).value.backward()

    step()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(GPU, reason="on a GPU the kernel runs")
def test_without_interpreter_a_cpu_tensor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make(SIZES["three"])
    monkeypatch.setattr(masked_regression_triton, "INTERPRETED", False)
    for inplace in (False, True):
        x = data.prediction.detach().requires_grad_() * 1
        with pytest.raises(RuntimeError, match=r"assay\.reference\.masked_regression.*TRITON_INTERPRET=1"):
            masked_regression(x, data.target, data.mask, kind="mse", inplace=inplace)


def test_indices_outside_the_grid() -> None:
    data = make(SIZES["three"])
    rows = data.mask.nonzero()
    wrong = data.indices.clone()
    wrong[tuple(rows[3])], wrong[tuple(rows[5])] = 7, -1
    options: dict[str, Any] = {"kind": "l1", "indices": wrong}
    message = rf"^indices: expected 0 to 6 where the mask is True, got 7 at \[{rows[3][0]}, {rows[3][1]}\]"
    with pytest.raises(ValueError, match=message):
        masked_regression(data.prediction, data.grid, data.mask, check=True, **options)
    if not GPU:
        with pytest.raises(ValueError, match=message):
            masked_regression(data.prediction, data.grid, data.mask, **options)
    x = data.prediction.detach().requires_grad_()
    value, _ = masked_regression(x, data.grid, data.mask, check=False, reduction="none", **options)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    spoilt = torch.zeros_like(data.mask)
    spoilt[tuple(rows[3])] = spoilt[tuple(rows[5])] = True
    for out in (value, gradient):
        assert torch.equal(out.isnan(), spoilt[..., None].expand_as(out))
    assert masked_regression(x, data.grid, data.mask, check=False, **options).value.isnan()


GRID: dict[str, Any] = {"target": torch.zeros(2, 9, 5), "indices": torch.zeros(2, 3, dtype=torch.int64)}
ELEMENTS = torch.ones(2, 3, 5, dtype=torch.bool)


ERRORS: dict[str, Refusal] = {
    "float64": ({"prediction": torch.zeros(2, 3, 5).double()}, TypeError, "prediction: .*float64"),
    "no channels": ({"prediction": torch.zeros(2, 3, 0)}, ValueError, r"prediction: .*\[2, 3, 0\]"),
    "number": ({"prediction": torch.tensor(1.0)}, ValueError, "prediction"),
    "target dtype": ({"target": torch.zeros(2, 3, 5).long()}, TypeError, "target: .*int64"),
    "target shape": ({"target": torch.zeros(3, 5)}, ValueError, r"target: .*\[2, 3, 5\].*\[3, 5\]"),
    "target device": ({"target": torch.zeros(2, 3, 5, device="meta")}, ValueError, "target: .*meta"),
    "target gradient": ({"target": torch.zeros(2, 3, 5, requires_grad=True)}, ValueError, "target: .*gradient"),
    "mask dtype": ({"mask": torch.ones(2, 3)}, TypeError, "mask: expected torch.bool.*float32"),
    "mask shape": ({"mask": torch.ones(2, 5, dtype=torch.bool)}, ValueError, r"mask: .*\[2, 3\].*\[2, 5\]"),
    "mask elements": ({"mask": ELEMENTS[..., :1]}, ValueError, r"mask: .*\[2, 3, 5\].*\[2, 3, 1\]"),
    "mask normalise": ({"mask": ELEMENTS, "normalise_target": True}, ValueError, "mask: .*normalise_target"),
    "mask cosine": ({"mask": ELEMENTS, "kind": "cosine"}, ValueError, "mask: .*cosine"),
    "kind": ({"kind": "huber"}, ValueError, "kind: .*'l1' or .*'huber'"),
    "beta": ({"kind": "smooth_l1", "beta": 0.0}, ValueError, "beta: .*above 0"),
    "beta of mse": ({"beta": 0.5}, ValueError, "beta: .*kind='mse'"),
    "power": ({"kind": "power", "power": math.nan}, ValueError, "power: .*above 0"),
    "power of mse": ({"power": 3.0}, ValueError, "power: .*kind='mse'"),
    "eps": ({"normalise_target": True, "eps": -1e-5}, ValueError, "eps: .*at least 0"),
    "eps alone": ({"eps": 1e-3}, ValueError, "eps: .*normalise_target"),
    "weight dtype": ({"weight": torch.ones(2, 3).long()}, TypeError, "weight: .*int64"),
    "weight shape": ({"weight": torch.ones(6)}, ValueError, r"weight: .*\[2, 3\].*\[6\]"),
    "weight gradient": ({"weight": torch.ones(2, 3, requires_grad=True)}, ValueError, "weight: .*gradient"),
    "reduction": ({"reduction": "avg"}, ValueError, "reduction: .*'avg'"),
    "normaliser": ({"normaliser": 0.0}, ValueError, "normaliser: .*above 0"),
    "normaliser of sum": ({"normaliser": 2.0, "reduction": "sum"}, ValueError, "normaliser: .*'sum'"),
    "indices dtype": (GRID | {"indices": GRID["indices"].int()}, TypeError, "indices: .*int32"),
    "indices shape": (GRID | {"indices": GRID["indices"][:, :2]}, ValueError, r"indices: .*\[2, 3\].*\[2, 2\]"),
    "grid batch": (GRID | {"target": torch.zeros(3, 9, 5)}, ValueError, r"target: .*\[2, 9, 5\]"),
    "grid empty": (GRID | {"target": torch.zeros(2, 0, 5)}, ValueError, r"target: .*\[2, T, 5\]"),
    "rank with indices": (GRID | {"prediction": torch.zeros(3, 5)}, ValueError, r"prediction: .*\[B, M, D\]"),
    "wide rows": (
        {"prediction": torch.zeros(1, 8193), "target": torch.zeros(1, 8193), "mask": ELEMENTS[0, :1, 0],
         "kind": "cosine"}, ValueError, "prediction: .*8192 channels.*8193",
    ),
    "many rows": (
        {"prediction": torch.zeros(1).expand(2**30, 1), "target": torch.zeros(1).expand(2**30, 1),
         "mask": ELEMENTS[0, 0, :1].expand(2**30)}, ValueError, "prediction: .*tokens",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_bad_arguments_are_named(name: str) -> None:
    changes, kind, message = ERRORS[name]
    usual = {"prediction": torch.zeros(2, 3, 5), "target": torch.zeros(2, 3, 5), "mask": ELEMENTS[..., 0]}
    check_refused(masked_regression, here({**usual, "kind": "mse"}), (here(changes), kind, f"^{message}"))
