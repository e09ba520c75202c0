"""The fused rotation against float64: in Triton's interpreter where there is no GPU, on the GPU where there is one.

Letters in shapes: B batch, H heads, S sequence, D head dimension, L lanes (pairs of dimensions), A position axes.
"""

# mypy: allow-untyped-calls
# Some of torch's own methods carry no types.

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from assay.audits import interpreter

GPU = torch.cuda.is_available()
INTERPRETATION = interpreter.Interpretation(False, False, "") if GPU else interpreter.enable()
if not (GPU or INTERPRETATION.active):
    raise RuntimeError(f"{INTERPRETATION.reason}; run this file by itself or set TRITON_INTERPRET=1")

from assay.kernels import mrope, mrope_ops, mrope_triton  # after the interpreter

DEVICE = "cuda" if GPU else "cpu"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FP32_EPS = torch.finfo(torch.float32).eps


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Memory that nobody has written holds NaN."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    assert torch.zeros(1).new_empty_strided((4,), (1,)).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@dataclass(frozen=True)
class Sizes:
    """Heads and dimensions of a case, and why it is there."""

    heads: int
    kv_heads: int
    dim: int
    rotated: int
    tokens: int = 3
    batch: int = 2


SIZES = {
    "qwen2.5-vl": Sizes(28, 4, 128, 128),  # 28 heads are no power of two
    "qwen3-vl": Sizes(32, 8, 128, 128),
    "qwen3.5": Sizes(16, 2, 256, 64),  # partial rotary, one tail piece padded, heads shared out over programs
    "vision": Sizes(5, 5, 80, 80),  # 40 lanes in a block of 64
    "mqa": Sizes(3, 1, 64, 64, tokens=17, batch=1),  # a sequence that ends inside a block
    "narrow": Sizes(5, 5, 6, 6),  # fewer lanes than one access holds
    "uneven-tail": Sizes(3, 1, 96, 34, tokens=1),  # 17 lanes, a tail of 62 = 32 + 30
    "shared-out": Sizes(64, 4, 16, 16, tokens=1, batch=1),
}


@dataclass(frozen=True)
class Data:
    """Queries, keys, positions, frequencies, the axis of each lane, and gradients that come back."""

    q: Tensor
    k: Tensor
    positions_ABS: Tensor
    inv_freq_L: Tensor
    axes_L: Tensor
    grad_q: Tensor
    grad_k: Tensor


def make(sizes: Sizes, dtype: torch.dtype, *, start: int = 0, layout: str = "interleaved", seed: int = 0) -> Data:
    generator = torch.Generator().manual_seed(seed)

    def heads(n: int) -> Tensor:
        x_BSHD = torch.randn(sizes.batch, sizes.tokens, n, sizes.dim, generator=generator)
        return x_BSHD.to(DEVICE, dtype).transpose(1, 2)

    lanes = sizes.rotated // 2
    axes = torch.arange(lanes) % 3 if layout == "interleaved" else (torch.arange(lanes) * 3) // lanes
    positions = start + torch.randint(0, 97, (3, sizes.batch, sizes.tokens), generator=generator)
    inv_freq = 1e4 ** -(torch.arange(lanes, dtype=torch.float64) / lanes)
    q, k, grad_q, grad_k = heads(sizes.heads), heads(sizes.kv_heads), heads(sizes.heads), heads(sizes.kv_heads)
    return Data(q, k, positions.to(DEVICE), inv_freq.float().to(DEVICE), axes.to(DEVICE), grad_q, grad_k)


def angles(data: Data) -> Tensor:
    """[B, S, L] in float64, the truth."""
    return data.positions_ABS[data.axes_L].permute(1, 2, 0).double() * data.inv_freq_L.double()


def turned(x: Tensor, angle_BSL: Tensor, pairing: str, *, back: bool = False) -> Tensor:
    """The rotation as a complex product in float64: one lane is one complex number."""
    rotated = 2 * angle_BSL.shape[-1]
    head, tail = x[..., :rotated].double(), x[..., rotated:].double()
    pairs = head.unflatten(-1, (2, -1)).movedim(-2, -1) if pairing == "half" else head.unflatten(-1, (-1, 2))
    factor = torch.polar(torch.ones_like(angle_BSL), -angle_BSL if back else angle_BSL)[:, None]
    product = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * factor)
    product = product.movedim(-1, -2) if pairing == "half" else product
    return torch.cat([product.flatten(-2), tail], dim=-1)


def eager(x: Tensor, cos: Tensor, sin: Tensor, pairing: str) -> Tensor:
    """The ordinary form: every step rounded to the dtype of x."""
    rotated = 2 * cos.shape[-1]
    head, tail = x[..., :rotated], x[..., rotated:]
    c, s = (table.to(x.dtype)[:, None] for table in (cos, sin))
    a, b = head.chunk(2, -1) if pairing == "half" else (head[..., ::2], head[..., 1::2])
    parts = (a * c - b * s, b * c + a * s)
    return torch.cat([torch.cat(parts, -1) if pairing == "half" else torch.stack(parts, -1).flatten(-2), tail], -1)


def judge(name: str, got: Tensor, truth: Tensor, ordinary: Tensor) -> None:
    """At most twice the ordinary form's error or the floor of the arithmetic, by maximum and by root mean square."""
    assert got.shape == truth.shape
    assert got.dtype == ordinary.dtype
    assert got.isfinite().all(), f"{name}: {int((~got.isfinite()).sum())} of {got.numel()} not finite"
    if not got.numel():
        return
    error, usual, rounding = ((x.double() - truth).abs() for x in (got, ordinary, truth.to(ordinary.dtype)))
    reach = 4 * FP32_EPS * truth.abs().max()
    worst = torch.unravel_index(error.argmax(), error.shape)
    for norm, of in (("max", torch.max), ("rms", lambda x: x.square().mean().sqrt())):
        limit = torch.maximum(2 * of(usual), of(rounding) + reach)
        where = f"at {[int(i) for i in worst]}: {got[worst].item()} for {truth[worst].item()}"
        assert of(error) <= limit, f"{name} {norm} error {of(error):.3g}, limit {limit:.3g}, worst {where}"


def needs_bf16(dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and not (GPU or INTERPRETATION.bf16):
        pytest.skip(INTERPRETATION.reason)


@pytest.mark.parametrize("dtype_name", DTYPES)
@pytest.mark.parametrize("pairing", mrope.PAIRINGS)
@pytest.mark.parametrize("name", SIZES)
def test_values_and_gradients(name: str, pairing: str, dtype_name: str) -> None:
    dtype = DTYPES[dtype_name]
    needs_bf16(dtype)
    data = make(SIZES[name], dtype, layout="chunked" if pairing == "adjacent" else "interleaved")
    angle = angles(data)
    cos, sin = angle.cos().float(), angle.sin().float()
    q, k = data.q.detach().requires_grad_(), data.k.detach().requires_grad_()
    outs = mrope.rotate(q, k, cos, sin, rotary_dim=2 * cos.shape[-1], pairing=pairing)
    grads = torch.autograd.grad(outs, (q, k), (data.grad_q, data.grad_k))
    for label, x, out, upstream, grad in zip("qk", (q, k), outs, (data.grad_q, data.grad_k), grads, strict=True):
        judge(f"{label}", out.detach(), turned(x, angle, pairing).detach(), eager(x, cos, sin, pairing).detach())
        back = turned(upstream, angle, pairing, back=True)
        judge(f"gradient of {label}", grad, back, eager(upstream, cos, -sin, pairing))
        assert out.stride() == x.stride()
        assert grad.stride() == x.stride()


@pytest.mark.parametrize("start", [0, 40_000, 1_000_000, 2_000_000])
@pytest.mark.parametrize("name", ["mqa", "vision", "qwen3.5"])
def test_from_positions(name: str, start: int) -> None:
    data = make(SIZES[name], torch.float32, start=start)
    angle = angles(data)
    q, k = data.q.detach().requires_grad_(), data.k.detach().requires_grad_()
    outs = mrope.rotate_from_positions(q, k, data.positions_ABS, data.inv_freq_L, axes=data.axes_L)
    grads = torch.autograd.grad(outs, (q, k), (data.grad_q, data.grad_k))
    exact = (angle.cos().float(), angle.sin().float())
    for label, x, out, upstream, grad in zip("qk", (q, k), outs, (data.grad_q, data.grad_k), grads, strict=True):
        judge(label, out.detach(), turned(x, angle, "half").detach(), eager(x, *exact, "half").detach())
        judge(
            f"gradient of {label}",
            grad,
            turned(upstream, angle, "half", back=True),
            eager(upstream, exact[0], -exact[1], "half"),
        )


@pytest.mark.parametrize("start", [0, 255, 40_000, 1_000_000, 4_000_000, -1_000_000])
def test_tables_are_within_fp32(start: int) -> None:
    """Twice the worst error of a correctly rounded cosine, which is eps / 4 for values below one."""
    data = make(Sizes(1, 1, 256, 256, tokens=16), torch.float32, start=start)
    cos, sin = mrope.tables(data.positions_ABS, data.inv_freq_L, axes=data.axes_L)
    angle = angles(data)
    for got, truth in ((cos, angle.cos()), (sin, angle.sin())):
        assert (got.double() - truth).abs().max() <= FP32_EPS


def test_the_fp32_product_alone_is_not_enough_far_out() -> None:
    """Why `exact_product` is on by default, and that the limits of this file would notice."""
    data = make(Sizes(1, 1, 64, 64, tokens=16), torch.float32, start=1_000_000)
    cos, _ = mrope.tables(data.positions_ABS, data.inv_freq_L, axes=data.axes_L, exact_product=False)
    error = (cos.double() - angles(data).cos()).abs().max()
    product = data.positions_ABS[data.axes_L].permute(1, 2, 0).float() * data.inv_freq_L
    assert error > 1000 * FP32_EPS
    assert (cos.double() - product.double().cos()).abs().max() <= FP32_EPS  # it is the product that is off


@pytest.mark.parametrize("position", [2**24 + 2, -(2**24) - 2, 2**40])
def test_positions_out_of_range_are_nan(position: int) -> None:
    positions = torch.tensor([[position, 5]], device=DEVICE)
    cos, sin = mrope.tables(positions, torch.tensor([1.0, 1e-3], device=DEVICE))
    assert cos[0, 0].isnan().all()
    assert sin[0, 0].isnan().all()
    assert cos[0, 1].isfinite().all()


def test_attention_scaling_multiplies_both() -> None:
    data = make(SIZES["mqa"], torch.float32)
    options: dict[str, Any] = {"axes": data.axes_L, "attention_scaling": 0.75}
    cos, sin = mrope.tables(data.positions_ABS, data.inv_freq_L, **options)
    plain = mrope.tables(data.positions_ABS, data.inv_freq_L, axes=data.axes_L)
    assert torch.equal(cos, plain[0] * 0.75)
    assert torch.equal(sin, plain[1] * 0.75)
    got = mrope.rotate_from_positions(data.q, data.k, data.positions_ABS, data.inv_freq_L, **options)
    assert_same(got, mrope.rotate(data.q, data.k, cos, sin, rotary_dim=64))


def assert_same(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """Bit for bit, NaN included."""
    for at, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert a.shape == b.shape
        same = (a == b) | (a.isnan() & b.isnan())
        assert same.all(), f"output {at}: {int((~same).sum())} of {same.numel()} elements differ"


def plain(name: str = "mqa", dtype: torch.dtype = torch.float32) -> tuple[Data, Tensor, Tensor]:
    """Data and half tables."""
    data = make(SIZES[name], dtype)
    return data, *mrope.tables(data.positions_ABS, data.inv_freq_L, axes=data.axes_L)


def packed(data: Data) -> tuple[Tensor, Tensor]:
    x = torch.cat([data.q, data.k, torch.full_like(data.k, torch.nan)], dim=1)
    x = x.transpose(1, 2).contiguous().transpose(1, 2)
    heads = data.q.shape[1]
    return x[:, :heads], x[:, heads : heads + data.k.shape[1]]


def every_other(x: Tensor) -> Tensor:
    wide = torch.full((*x.shape[:3], 2 * x.shape[3]), torch.nan, dtype=x.dtype, device=x.device)
    wide[..., ::2] = x
    return wide[..., ::2]


STRIDES: dict[str, Callable[[Data], tuple[Tensor, ...]]] = {
    "dense": lambda d: (d.q.contiguous(), d.k.contiguous()),
    "packed": packed,
    "one of each": lambda d: (d.q.contiguous(), packed(d)[1]),
    "dimension stride 2": lambda d: (every_other(d.q), every_other(d.k)),
    "dimensions outermost": lambda d: tuple(x.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0) for x in (d.q, d.k)),
    "reversed axes": lambda d: tuple(x.permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3) for x in (d.q, d.k)),
    "offset by one": lambda d: tuple(torch.cat([x[..., :1], x], -1)[..., 1:] for x in (d.q, d.k)),
}


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


def test_one_table_for_the_whole_batch() -> None:
    data, cos, sin = plain("narrow")
    expected = mrope.rotate(data.q, data.k, *(t[:1].repeat(2, 1, 1) for t in (cos, sin)), rotary_dim=6)
    for tables in ((cos[:1], sin[:1]), (cos[:1].expand(2, -1, -1), sin[:1].repeat(2, 1, 1))):
        assert_same(mrope.rotate(data.q, data.k, *tables, rotary_dim=6), expected)
    shared = mrope.rotate_from_positions(data.q, data.k, data.positions_ABS[:, :1], data.inv_freq_L, axes=data.axes_L)
    assert_same(shared, expected)


@pytest.mark.parametrize("dtype_name", DTYPES)
@pytest.mark.parametrize("pairing", mrope.PAIRINGS)
def test_full_width_and_per_axis_tables(pairing: str, dtype_name: str) -> None:
    data, cos, sin = plain("mqa")
    cos, sin = cos.to(DTYPES[dtype_name]), sin.to(DTYPES[dtype_name])
    expected = mrope.rotate(data.q, data.k, cos, sin, rotary_dim=64, pairing=pairing)
    full = [torch.cat([t, t], -1) if pairing == "half" else t.repeat_interleave(2, -1) for t in (cos, sin)]
    assert_same(mrope.rotate(data.q, data.k, *full, pairing=pairing), expected)
    own = data.axes_L == torch.arange(3, device=DEVICE)[:, None, None, None]
    for tables in ((cos, sin), full):
        lanes = (
            own
            if tables[0] is cos
            else (torch.cat([own, own], -1) if pairing == "half" else own.repeat_interleave(2, -1))
        )
        split = [torch.where(lanes, t, torch.nan) for t in tables]  # what another axis owns must not be read
        got = mrope.rotate(data.q, data.k, *split, axes=data.axes_L.int(), rotary_dim=64, pairing=pairing)
        assert_same(got, expected)


def test_the_tail_is_copied_bit_for_bit() -> None:
    data, cos, sin = plain("uneven-tail", torch.float16)
    bits = torch.arange(data.q[..., 34:].numel(), dtype=torch.int16, device=DEVICE) * 257
    data.q[..., 34:] = bits.view(torch.float16).view(data.q[..., 34:].shape)
    out, _ = mrope.rotate(data.q, data.k, cos, sin, rotary_dim=34)
    assert torch.equal(out[..., 34:].contiguous().view(torch.int16), data.q[..., 34:].contiguous().view(torch.int16))


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


@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "kv_heads"), [(0, 3, 2, 2), (2, 0, 2, 2), (1, 2, 2, 0), (1, 2, 0, 0)]
)
def test_empty(batch: int, tokens: int, heads: int, kv_heads: int) -> None:
    data = make(Sizes(heads, kv_heads, 8, 4, tokens, batch), torch.float32)
    q = data.q.detach().requires_grad_()
    out, k_out = mrope.rotate_from_positions(q, data.k, data.positions_ABS, data.inv_freq_L, axes=data.axes_L)
    (grad,) = torch.autograd.grad(out.sum(), q)
    assert out.shape == grad.shape == q.shape
    assert k_out.shape == data.k.shape
    assert not out.isnan().any()
    cos, _ = mrope.tables(data.positions_ABS, data.inv_freq_L, axes=data.axes_L)
    assert cos.shape == (batch, tokens, 2)


def test_gradients_of_any_stride_and_of_one_input_only() -> None:
    data, cos, sin = plain("narrow")
    q, k = data.q.detach().requires_grad_(), data.k.detach().requires_grad_()
    out, k_out = mrope.rotate(q, k, cos, sin, rotary_dim=6)
    ones = torch.ones_like(out)
    expected = mrope.rotate(ones, ones, cos, -sin, rotary_dim=6)
    stride_zero = torch.ones(1, device=DEVICE).expand(out.shape)
    both = torch.autograd.grad((out, k_out), (q, k), (stride_zero, stride_zero), retain_graph=True)
    assert_same(both, expected)
    assert_same(torch.autograd.grad(out.sum(), q, retain_graph=True), expected[:1])
    assert (
        torch.autograd.grad(out.sum(), k, retain_graph=True, allow_unused=True)[0] is None or not both[1].isnan().any()
    )
    for wanted in (0, 1):
        pair = [data.q.detach(), data.k.detach()]
        pair[wanted].requires_grad_()
        outs = mrope.rotate(pair[0], pair[1], cos, sin, rotary_dim=6)
        (grad,) = torch.autograd.grad(outs[0].sum() + outs[1].sum(), pair[wanted])
        assert_same((grad,), (expected[wanted],))


def test_second_derivative() -> None:
    """The loss |R q|^4 / 4 summed over pairs has a Hessian that only a differentiable backward yields."""
    data, cos, sin = plain("narrow")
    q = data.q.detach().requires_grad_()

    def hessian_product(rotate: Callable[[Tensor], Tensor]) -> Tensor:
        (grad,) = torch.autograd.grad(rotate(q).pow(4).sum(), q, create_graph=True)
        (second,) = torch.autograd.grad((grad * data.grad_q).sum(), q)
        return second

    got = hessian_product(lambda x: mrope.rotate(x, data.k, cos, sin, rotary_dim=6)[0])
    truth = hessian_product(lambda x: turned(x, angles(data), "half")).double()
    judge("second derivative", got, truth, hessian_product(lambda x: eager(x, cos, sin, "half")))


def test_checkpoint() -> None:
    data, cos, sin = plain("narrow")
    q, k = data.q.detach().requires_grad_(), data.k.detach().requires_grad_()

    def block(q: Tensor, k: Tensor) -> Tensor:
        a, b = mrope.rotate(q, k, cos, sin, rotary_dim=6)
        c, d = mrope.rotate_from_positions(a * 2, b, data.positions_ABS, data.inv_freq_L, axes=data.axes_L)
        return c.pow(3).sum() + d.pow(3).sum()

    expected = torch.autograd.grad(block(q, k), (q, k))
    for reentrant in (False, True):
        q.grad = k.grad = None
        checkpoint(block, q, k, use_reentrant=reentrant).backward()
        assert q.grad is not None
        assert k.grad is not None
        assert_same((q.grad, k.grad), expected)


def test_operators_are_registered_right() -> None:
    data, cos, sin = plain("narrow")
    q, k = data.q.detach().requires_grad_(), data.k.detach().requires_grad_()
    stored = (cos[None], sin[None], None)
    torch.library.opcheck(mrope_ops.rotate_op, (q, k, *stored, 3, False, False, False, True, 1.0, True, False))
    positions = (data.positions_ABS, data.inv_freq_L, data.axes_L)
    torch.library.opcheck(mrope_ops.rotate_op, (q, k, *positions, 3, True, True, True, True, 0.5, False, True))
    torch.library.opcheck(
        mrope_ops.rotate_inplace_op, (data.q.clone(), data.k.clone(), *stored, 3, False, False, True, 1.0)
    )
    torch.library.opcheck(mrope_ops.tables_op, (*positions, torch.bfloat16, True, 1.0))


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
    got = torch.compile(attention, fullgraph=True, backend=backend)(*inputs)
    assert_same(got, expected)
    upstream = (data.grad_q, data.grad_k)
    assert_same(torch.autograd.grad(got, (q, k), upstream), torch.autograd.grad(expected, (q, k), upstream))


def sparse(elements: int) -> Tensor:
    """That many fp32 zeros of address space, of which only the pages that are touched take memory."""
    with tempfile.NamedTemporaryFile() as file:
        os.truncate(file.name, 4 * elements)
        return torch.from_file(file.name, shared=True, size=elements, dtype=torch.float32)


@pytest.mark.skipif(GPU, reason="a GPU has no sparse memory")
@pytest.mark.parametrize("far", [0, 1, 2, 3], ids=["batch", "head", "token", "dimension"])
def test_more_than_two_billion_elements(far: int) -> None:
    """The last index of one dimension lies past 2**31; for all but the batch, its stride alone still fits 32 bits."""
    data, cos, sin = plain("narrow")
    strides = [1000, 100, 10, 1]
    strides[far] = 2**31 // (data.q.shape[far] - 1) + 1000
    size = 1 + sum(stride * (n - 1) for stride, n in zip(strides, data.q.shape, strict=True))
    far_q, far_k = (sparse(size).as_strided(data.q.shape, strides).copy_(x) for x in (data.q, data.k))
    assert size > 2**31
    expected = mrope.rotate(data.q, data.k, cos, sin, rotary_dim=6)
    assert_same(mrope.rotate(far_q, far_k, cos, sin, rotary_dim=6), expected)
    assert_same(mrope.rotate(far_q, far_k, cos, sin, rotary_dim=6, inplace=True), expected)


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


ROTATE_ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
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
    arguments: dict[str, Any] = {"q": data.q, "k": data.k, "cos": cos, "sin": sin, "rotary_dim": 6}
    changes = {key: x.to(DEVICE) if isinstance(x, Tensor) and not x.is_meta else x for key, x in changes.items()}
    with pytest.raises(kind, match=message):
        mrope.rotate(**(arguments | changes))


POSITION_ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
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
    arguments: dict[str, Any] = {"positions": data.positions_ABS, "inv_freq": data.inv_freq_L, "axes": data.axes_L}
    arguments |= {key: x if key == "axes" or x is None else x.to(DEVICE) for key, x in changes.items()}
    with pytest.raises(kind, match=message):
        mrope.rotate_from_positions(data.q, data.k, **arguments)


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
