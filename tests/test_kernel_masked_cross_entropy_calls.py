"""The fused cross-entropy as others call it: in place, recomputed, compiled, and with what it refuses."""

# mypy: allow-untyped-calls
# Some of torch's own methods carry no types.

import pytest
import torch
from kernel_calls import Refusal, check_recomputed, check_refused, compiled
from kernel_device import DEVICE, DTYPES, GPU, needs
from kernel_results import assert_same
from torch import Tensor, library
from truth_masked_cross_entropy import OPTIONS, REDUCTIONS, B, S, make

from assay.kernels import masked_cross_entropy_launch as launch
from assay.kernels import masked_cross_entropy_ops as ops
from assay.kernels.masked_cross_entropy import cross_entropy

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def test_in_place_overwrites_the_logits_only_for_a_gradient() -> None:
    logits, labels, weight, upstream = make(17)
    held = logits.clone()
    cross_entropy(held, labels, inplace=True)
    with torch.no_grad():
        cross_entropy(held.requires_grad_() * 1, labels, inplace=True)
    assert torch.equal(held, logits)
    for reduction in REDUCTIONS:
        x = logits.detach().requires_grad_()
        y = x * 1
        value, _ = cross_entropy(y, labels, weight=weight, reduction=reduction, inplace=True)
        back = upstream if reduction == "none" else upstream[0, 0]
        gradients = []
        y.register_hook(gradients.append)
        value.backward(back, retain_graph=True)
        assert gradients[0].data_ptr() == y.data_ptr()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            value.backward(back)


def test_in_place_is_the_same_where_nothing_is_rounded_twice() -> None:
    needs(torch.bfloat16)
    logits, labels, weight, _ = make(257)
    for dtype in DTYPES.values():
        x = logits.to(dtype).requires_grad_()
        results = []
        for inplace in (False, True):
            value, count = cross_entropy(x * 1, labels, weight=weight, inplace=inplace, **OPTIONS["all"])
            results.append((value, count, torch.autograd.grad(value, x)[0]))
        assert_same(*results)


def test_in_place_fails_whoever_needs_the_old_logits() -> None:
    logits, labels, _, _ = make(17)
    x = logits.detach().requires_grad_()
    y = x.tanh()
    value, _ = cross_entropy(y, labels, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_checkpoint() -> None:
    logits, labels, _, _ = make(17)
    x = logits.detach().requires_grad_()

    def block(x: Tensor) -> Tensor:
        return cross_entropy(x * 2, labels, inplace=True).value * 3

    check_recomputed(block, x)


def test_operators_are_registered_right() -> None:
    logits, labels, weight, _ = make(17)
    x = logits.detach().requires_grad_()
    library.opcheck(ops.forward_op, (x, labels, None, None, "none", True, -100, 0.0, 0.0, 0.0, True))
    rest = (-100, 5.0, 0.1, 0.1, False)
    normaliser = torch.tensor(3, device=DEVICE)
    library.opcheck(ops.forward_op, (x, labels, weight, normaliser, "mean", False, *rest))
    library.opcheck(ops.fused_op, (logits.clone(), labels, weight, normaliser, "mean", False, *rest))
    one = torch.ones((), device=DEVICE)
    kept = (torch.rand(10, device=DEVICE), torch.rand(10, device=DEVICE) + 1, one)
    library.opcheck(ops.gradient_op, (one, logits, labels, weight, *kept, *rest))
    library.opcheck(ops.gradient_inplace_op, (one, logits.clone(), labels, weight, *kept, *rest))
    library.opcheck(torch.ops.assay.scale_.default, (logits.clone(), one * 2))


@pytest.mark.parametrize("inplace", [False, True])
def test_compiled_without_a_graph_break(inplace: bool) -> None:
    """Also where gradients may be written over the logits: the compiled form leaves those alone."""
    logits, labels, weight, upstream = make(17)

    def step(x: Tensor, labels: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        each, _ = cross_entropy(x * 2, labels, weight=weight, reduction="none", shift=True, inplace=inplace)
        return each, *cross_entropy(x * 2, labels, weight=weight, inplace=inplace, softcap=4.0)

    x = logits.detach().requires_grad_()
    results = []
    for function in (step, compiled(step)):
        each, value, count = function(x, labels, weight)
        back = torch.autograd.grad((each, value), x, (upstream, torch.tensor(2.0, device=DEVICE)))
        results.append((each, value, count, *back))
    assert_same(*results)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("stranger", [257, -1, 10**12])
def test_labels_outside_the_vocabulary(stranger: int, inplace: bool) -> None:
    logits, labels, _, _ = make(257)
    labels[1, 2] = stranger
    x = logits.detach().requires_grad_()
    for check in (None, True) if not GPU else (True,):
        with pytest.raises(ValueError, match=rf"labels: .*0 to 256.*{stranger} at \[1, 2\]"):
            cross_entropy(x * 1, labels, check=check, inplace=inplace)
    value, _ = cross_entropy(x * 1, labels, check=False, inplace=inplace)
    assert value.isnan()
    (gradient,) = torch.autograd.grad(value, x)
    assert gradient[1, 2].isnan().all()
    each, _ = cross_entropy(x * 1, labels, check=False, inplace=inplace, reduction="none")
    (gradient,) = torch.autograd.grad(each.sum(), x)
    only = torch.zeros(B, S, dtype=torch.bool, device=DEVICE)
    only[1, 2] = True
    assert torch.equal(each.isnan(), only)
    assert torch.equal(gradient.isnan(), only[..., None].expand_as(gradient))
    with pytest.raises(ValueError, match=rf"{stranger} at \[1, 2\]"):
        cross_entropy(x * 1, labels, check=True, shift=True)
    labels[1, 2], labels[1, 0] = 0, stranger
    assert cross_entropy(x * 1, labels, check=True, shift=True).value.isfinite()


@pytest.mark.skipif(GPU, reason="on a GPU the kernel runs")
def test_without_interpreter_a_cpu_tensor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels, _, _ = make(17)
    monkeypatch.setattr(launch, "INTERPRETED", False)
    for inplace in (False, True):
        with pytest.raises(RuntimeError, match=r"assay\.reference\.masked_cross_entropy.*TRITON_INTERPRET=1"):
            cross_entropy(logits.requires_grad_() * 1, labels, inplace=inplace)


ERRORS: dict[str, Refusal] = {
    "float64": ({"logits": torch.zeros(2, 5, 9).double()}, TypeError, "logits: .*float64"),
    "no vocabulary": ({"logits": torch.zeros(2, 5, 0)}, ValueError, r"logits: .*\[\.\.\., V\].*\[2, 5, 0\]"),
    "vocabulary not last": ({"logits": torch.zeros(9, 2, 5).permute(1, 2, 0)}, ValueError, "logits: .*stride 1"),
    "three strides": ({"logits": torch.zeros(2, 3, 3, 9)[:, :2, :2], "labels": torch.zeros(2, 2, 2).long()},
                      ValueError, r"logits: .*two strides.*\[2, 2, 2, 9\]"),
    "int32 labels": ({"labels": torch.zeros(2, 5).int()}, TypeError, "labels: .*int64.*int32"),
    "shape of labels": ({"labels": torch.zeros(2, 4).long()}, ValueError, r"labels: .*\[2, 5\].*\[2, 4\]"),
    "device": ({"labels": torch.zeros(2, 5, device="meta").long()}, ValueError, "labels: .*meta"),
    "no sequence": ({"logits": torch.zeros(9), "labels": torch.tensor(1), "shift": True}, ValueError, "labels: .*0-d"),
    "ignore_index": ({"ignore_index": 1.0}, TypeError, "ignore_index: .*int.*float"),
    "integer weight": ({"weight": torch.ones(2, 5).long()}, TypeError, "weight: .*floating.*int64"),
    "shape of weight": ({"weight": torch.ones(9)}, ValueError, r"weight: .*\[2, 5\].*\[9\]"),
    "gradient of weight": ({"weight": torch.ones(2, 5, requires_grad=True)}, ValueError, "weight: .*gradient"),
    "softcap": ({"softcap": 0.0}, ValueError, "softcap: .*above 0.*0"),
    "label_smoothing": ({"label_smoothing": 1.0}, ValueError, r"label_smoothing: .*\[0, 1\).*1"),
    "z_loss": ({"z_loss": -1e-4}, ValueError, "z_loss: .*at least 0"),
    "reduction": ({"reduction": "avg"}, ValueError, "reduction: .*'none' or 'sum' or 'mean'.*'avg'"),
    "normaliser of a sum": ({"reduction": "sum", "normaliser": 3}, ValueError, "normaliser: .*None with.*'sum'.*3"),
    "normaliser 0": ({"normaliser": 0}, ValueError, "normaliser: .*above 0.*0"),
    "normaliser shape": ({"normaliser": torch.ones(1)}, ValueError, "normaliser: .*shape"),
    "normaliser dtype": ({"normaliser": torch.tensor(True)}, TypeError, "normaliser: .*bool"),
    "normaliser type": ({"normaliser": "n"}, TypeError, "normaliser: .*number.*str"),
    "in-place leaf": ({"logits": torch.zeros(2, 5, 9, requires_grad=True), "inplace": True},
                      ValueError, "logits: .*leaf"),
    "in-place expanded": ({"logits": torch.zeros(1, 5, 9).expand(2, 5, 9), "inplace": True},
                          ValueError, "logits: .*share"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_refuses(name: str) -> None:
    usual = {"logits": torch.zeros(2, 5, 9), "labels": torch.zeros(2, 5, dtype=torch.int64)}
    check_refused(cross_entropy, usual, ERRORS[name])
