"""The fused rotation as others call it: any strides, in place, recomputed, compiled, and with what it refuses."""

# mypy: allow-untyped-calls
# Some of torch's own methods carry no types.

from collections.abc import Callable

import pytest
import torch
from kernel_calls import Refusal, check_recomputed, check_refused, compiled
from kernel_device import DEVICE, GPU, distant, here
from kernel_results import assert_same
from torch import Tensor, library
from truth_mrope import SIZES, STRIDES, make, packed, plain

from assay.kernels import mrope, mrope_ops, mrope_triton

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.mark.parametrize("name", ["uneven-tail", "narrow", "qwen3.5"])
@pytest.mark.parametrize("kind", STRIDES)
def test_strides_change_nothing(kind: str, name: str) -> None:
    data, cos, sin = plain(name)
    rotated = 2 * cos.shape[-1]
    q, k = STRIDES[kind](data)
    assert_same((q, k), (data.q, data.k))
    expected = mrope.rotate(data.q, data.k, cos, sin, rotary_dim=rotated)
    before = q.clone(), k.clone()
    assert_same(mrope.rotate(q, k, cos, sin, rotary_dim=rotated), expected)
    assert_same((q, k), before)
    assert_same(mrope.rotate_from_positions(q, k, data.positions_ABS, data.inv_freq_L, axes=data.axes_L), expected)


def test_an_expanded_batch_is_read_as_it_is() -> None:
    data, cos, sin = plain("narrow")
    q, k = data.q[:1].expand(2, -1, -1, -1), data.k[:1].expand(2, -1, -1, -1)
    expected = mrope.rotate(q.contiguous(), k.contiguous(), cos, sin, rotary_dim=6)
    assert_same(mrope.rotate(q, k, cos, sin, rotary_dim=6), expected)


@pytest.mark.skipif(GPU, reason="a GPU has no sparse memory")
@pytest.mark.parametrize("far", [0, 1, 2, 3], ids=["batch", "head", "token", "dimension"])
def test_more_than_two_billion_elements(far: int) -> None:
    """The last index of one dimension lies past 2**31; for all but the batch, its stride alone still fits 32 bits."""
    data, cos, sin = plain("narrow")
    far_q, far_k = (distant(x, [1000, 100, 10, 1], far) for x in (data.q, data.k))
    expected = mrope.rotate(data.q, data.k, cos, sin, rotary_dim=6)
    assert_same(mrope.rotate(far_q, far_k, cos, sin, rotary_dim=6), expected)
    assert_same(mrope.rotate(far_q, far_k, cos, sin, rotary_dim=6, inplace=True), expected)


@pytest.mark.parametrize("name", ["qwen3.5", "uneven-tail", "vision"])
@pytest.mark.parametrize("pairing", mrope.PAIRINGS)
def test_in_place_is_the_same_bit_for_bit(pairing: str, name: str) -> None:
    data, cos, sin = plain(name)
    rotated = 2 * cos.shape[-1]
    for q, k in ((data.q.clone(), data.k.clone()), packed(data), STRIDES["dense"](data)):
        expected = mrope.rotate(q, k, cos, sin, rotary_dim=rotated, pairing=pairing)
        got = mrope.rotate(q, k, cos, sin, rotary_dim=rotated, pairing=pairing, inplace=True)
        assert got[0] is q
        assert got[1] is k
        assert_same(got, expected)


def test_in_place_under_autograd_on_a_packed_projection() -> None:
    data, cos, sin = plain("uneven-tail")

    def loss(weight: Tensor, *, inplace: bool) -> Tensor:
        qkv = (weight * 2).transpose(1, 2)
        q, k, v = qkv[:, :3], qkv[:, 3:4], qkv[:, 4:]
        q, k = mrope.rotate(q, k, cos, sin, rotary_dim=34, inplace=inplace)
        return q.pow(3).sum() + k.pow(3).sum() + (v * q[:, :1]).sum()

    x = torch.cat([data.q, data.k, data.k], 1).transpose(1, 2).contiguous().requires_grad_()
    expected = torch.autograd.grad(loss(x, inplace=False), x)
    assert_same(torch.autograd.grad(loss(x, inplace=True), x), expected)


REFUSED_IN_PLACE: dict[str, tuple[Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], str]] = {
    "expanded": (lambda q, k: (q[:1].expand(2, -1, -1, -1), k), "q: .*share memory"),
    "the same": (lambda q, k: (q, q), "k: .*apart from that of q"),
    "overlapping": (lambda q, k: (q[:, :3], q[:, 2:4]), "k: .*apart from that of q"),
    "leaf": (lambda q, k: (q.requires_grad_(), k), "q: .*leaf"),
    "split": (lambda q, k: (q.requires_grad_() * 1).split([3, 2], 1), "q: .*split"),
}


@pytest.mark.parametrize("kind", REFUSED_IN_PLACE)
def test_in_place_refuses(kind: str) -> None:
    data, cos, sin = plain("narrow")
    spoil, message = REFUSED_IN_PLACE[kind]
    before = data.q.clone()
    with pytest.raises(ValueError, match=message):
        mrope.rotate(*spoil(data.q, data.k), cos, sin, rotary_dim=6, inplace=True)
    assert torch.equal(data.q, before)


def test_checkpoint() -> None:
    data, cos, sin = plain("narrow")
    q, k = data.q.detach().requires_grad_(), data.k.detach().requires_grad_()

    def block(q: Tensor, k: Tensor) -> Tensor:
        a, b = mrope.rotate(q, k, cos, sin, rotary_dim=6)
        c, d = mrope.rotate_from_positions(a * 2, b, data.positions_ABS, data.inv_freq_L, axes=data.axes_L)
        return c.pow(3).sum() + d.pow(3).sum()

    check_recomputed(block, q, k)


def test_operators_are_registered_right() -> None:
    data, cos, sin = plain("narrow")
    q, k = data.q.detach().requires_grad_(), data.k.detach().requires_grad_()
    stored = (cos[None], sin[None], None)
    library.opcheck(mrope_ops.rotate_op, (q, k, *stored, 3, False, False, False, True, 1.0, True, False))
    positions = (data.positions_ABS, data.inv_freq_L, data.axes_L)
    library.opcheck(mrope_ops.rotate_op, (q, k, *positions, 3, True, True, True, True, 0.5, False, True))
    library.opcheck(mrope_ops.rotate_inplace_op, (data.q.clone(), data.k.clone(), *stored, 3, False, False, True, 1.0))
    library.opcheck(mrope_ops.tables_op, (*positions, torch.bfloat16, True, 1.0))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_without_a_graph_break(backend: str) -> None:
    data, _, _ = plain("narrow")

    def attention(q: Tensor, k: Tensor, positions: Tensor, inv_freq: Tensor, axes: Tensor) -> tuple[Tensor, Tensor]:
        q, k = mrope.rotate_from_positions(q * 2, k * 2, positions, inv_freq, axes=axes)
        cos, sin = mrope.tables(positions, inv_freq, axes=axes)
        return mrope.rotate(q, k, cos, sin, rotary_dim=6, inplace=True)

    q, k = data.q.detach().requires_grad_(), data.k.detach().requires_grad_()
    inputs = (q, k, data.positions_ABS, data.inv_freq_L, data.axes_L)
    expected = attention(*inputs)
    got = compiled(attention, backend)(*inputs)
    assert_same(got, expected)
    upstream = (data.grad_q, data.grad_k)
    assert_same(torch.autograd.grad(got, (q, k), upstream), torch.autograd.grad(expected, (q, k), upstream))


@pytest.mark.skipif(GPU, reason="on a GPU the kernel runs")
def test_without_interpreter_a_cpu_tensor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data, cos, sin = plain("narrow")
    monkeypatch.setattr(mrope_triton, "INTERPRETED", False)
    for call in (
        lambda: mrope.rotate(data.q, data.k, cos, sin, rotary_dim=6),
        lambda: mrope.rotate(data.q, data.k, cos, sin, rotary_dim=6, inplace=True),
        lambda: mrope.tables(data.positions_ABS, data.inv_freq_L, axes=data.axes_L),
    ):
        with pytest.raises(RuntimeError, match=r"assay\.reference\.mrope.*TRITON_INTERPRET=1"):
            call()


ROTATE_ERRORS: dict[str, Refusal] = {
    "rank of q": ({"q": torch.zeros(5, 3, 6)}, ValueError, r"q: .*\[B, H, S, D\].*\[5, 3, 6\]"),
    "float64": ({"q": torch.zeros(2, 5, 3, 6).double()}, TypeError, "q: .*float64"),
    "dtypes of q and k": ({"k": torch.zeros(2, 5, 3, 6).half()}, TypeError, "k: .*dtype of q, torch.float32.*float16"),
    "shape of k": ({"k": torch.zeros(2, 5, 4, 6)}, ValueError, r"k: .*head dimension of q.*\[2, 5, 4, 6\]"),
    "device of k": ({"k": torch.zeros(2, 5, 3, 6, device="meta")}, ValueError, "k: .*cpu.*meta|k: .*cuda.*meta"),
    "pairing": ({"pairing": "neox"}, ValueError, "pairing: .*'half' or 'adjacent'.*'neox'"),
    "odd rotary_dim": ({"rotary_dim": 5}, ValueError, "rotary_dim: .*even.*5"),
    "large rotary_dim": ({"rotary_dim": 8}, ValueError, "rotary_dim: .*6.*8"),
    "unsaid width": ({"rotary_dim": None}, ValueError, "cos: .*rotary_dim.*width 3"),
    "wrong width": ({"rotary_dim": 4}, ValueError, "cos: .*width 4 or 2 .*3"),
    "tokens of cos": ({"cos": torch.zeros(2, 4, 3)}, ValueError, r"cos: .*S=3.*\[2, 4, 3\]"),
    "shape of sin": ({"sin": torch.zeros(2, 3, 6)}, ValueError, "sin: .*shape and dtype of cos"),
    "dtype of cos": ({"cos": torch.zeros(2, 3, 3, dtype=torch.int32)}, TypeError, "cos: .*int32"),
    "gradient of cos": ({"cos": torch.zeros(2, 3, 3, requires_grad=True)}, ValueError, "cos: .*gradient"),
    "missing axes": ({"cos": torch.zeros(3, 2, 3, 3), "sin": torch.zeros(3, 2, 3, 3)}, ValueError, "cos: .*shape"),
    "needless axes": ({"axes": torch.zeros(3, dtype=torch.int64)}, ValueError, "cos: .*with axes"),
}


@pytest.mark.parametrize("name", ROTATE_ERRORS)
def test_rotate_refuses(name: str) -> None:
    changes, kind, message = ROTATE_ERRORS[name]
    data, cos, sin = plain("narrow")
    usual = {"q": data.q, "k": data.k, "cos": cos, "sin": sin, "rotary_dim": 6}
    check_refused(mrope.rotate, usual, (here(changes), kind, message))


POSITION_ERRORS: dict[str, Refusal] = {
    "bf16 positions": ({"positions": torch.zeros(2, 3).bfloat16()}, TypeError, "positions: .*bf16 above 256.*bfloat16"),
    "tokens": ({"positions": torch.zeros(3, 2, 4, dtype=torch.int64)}, ValueError, r"positions: .*\[3, 2, 4\]"),
    "rank": ({"positions": torch.zeros(3, dtype=torch.int64)}, ValueError, r"positions: .*\[B, S\] or \[A, B, S\]"),
    "no axes": ({"axes": None}, ValueError, "axes: .*3 axes"),
    "axis out of range": ({"axes": torch.tensor([0, 1, 3])}, ValueError, "axes: .*0 to 2.*0 to 3"),
    "negative axis": ({"axes": torch.tensor([0, -1, 2])}, ValueError, "axes: .*0 to 2.*-1 to 2"),
    "float axes": ({"axes": torch.zeros(3)}, TypeError, "axes: .*int32 or int64.*float32"),
    "lanes of axes": ({"axes": torch.tensor([0, 1])}, ValueError, r"axes: .*\[3\].*\[2\]"),
    "inv_freq dtype": ({"inv_freq": torch.ones(3).double()}, TypeError, "inv_freq: .*float32.*float64"),
    "inv_freq rank": ({"inv_freq": torch.ones(3, 1)}, ValueError, r"inv_freq: .*\[L\].*\[3, 1\]"),
    "inv_freq length": (
        {"inv_freq": torch.ones(4), "axes": torch.tensor([0, 1, 2, 0])},
        ValueError,
        "inv_freq: .*3.*4",
    ),
    "inv_freq gradient": ({"inv_freq": torch.ones(3, requires_grad=True)}, ValueError, "inv_freq: .*gradient"),
}


@pytest.mark.parametrize("name", POSITION_ERRORS)
def test_rotate_from_positions_refuses(name: str) -> None:
    changes, kind, message = POSITION_ERRORS[name]
    data = make(SIZES["narrow"], torch.float32)
    axes = {key: x for key, x in changes.items() if key == "axes"}  # on a GPU a map would not be checked
    usual = {"q": data.q, "k": data.k, "positions": data.positions_ABS, "inv_freq": data.inv_freq_L}
    usual["axes"] = data.axes_L
    check_refused(mrope.rotate_from_positions, usual, (here(changes) | axes, kind, message))


def test_an_axis_that_does_not_exist_is_nan_where_it_cannot_be_checked() -> None:
    """What a GPU does with a wrong map, which the host does not read there."""
    data, cos, sin = plain("narrow")
    wrong = torch.tensor([0, 3, -1], device=DEVICE)
    out = torch.zeros_like(data.q)
    for tables, stored in (((cos[None], sin[None]), True), ((data.positions_ABS, data.inv_freq_L), False)):
        mrope_triton.launch_rotate(
            data.q, data.k, out, torch.zeros_like(data.k), tables, wrong, half=3, adjacent=False, conjugate=False,
            from_positions=not stored,
        )  # fmt: skip
        assert out[..., [1, 2, 4, 5]].isnan().all()
        assert out[..., [0, 3]].isfinite().all()
