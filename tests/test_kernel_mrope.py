"""The fused rotation against float64: values, gradients and tables."""

# mypy: allow-untyped-calls
# Some of torch's own methods carry no types.

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_device import DEVICE, DTYPES, needs
from kernel_results import FP32_EPS, assert_same, judge
from torch import Tensor
from truth_mrope import SIZES, Sizes, angles, eager, make, plain, turned

from assay.kernels import mrope

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.mark.parametrize("dtype_name", DTYPES)
@pytest.mark.parametrize("pairing", mrope.PAIRINGS)
@pytest.mark.parametrize("name", SIZES)
def test_values_and_gradients(name: str, pairing: str, dtype_name: str) -> None:
    dtype = DTYPES[dtype_name]
    needs(dtype)
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
