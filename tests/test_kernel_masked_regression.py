"""The fused regression against float64: in Triton's interpreter where there is no GPU, on the GPU where there is one.

Letters in shapes: B batch, M tokens, T tokens of the target grid, D channels.
"""

# mypy: allow-untyped-calls
# Some of torch's own methods carry no types.

import math
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from assay.audits import interpreter

GPU = torch.cuda.is_available()
INTERPRETATION = interpreter.Interpretation(False, False, "") if GPU else interpreter.enable()
if not (GPU or INTERPRETATION.active):
    raise RuntimeError(f"{INTERPRETATION.reason}; run this file by itself or set TRITON_INTERPRET=1")

from assay.kernels import masked_regression_ops, masked_regression_triton  # after the interpreter
from assay.kernels.masked_regression import KINDS, masked_regression
from assay.reference import masked_regression as specification

DEVICE = "cuda" if GPU else "cpu"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FP32_EPS = torch.finfo(torch.float32).eps
PARAMETERS: dict[str, dict[str, float]] = {
    "l1": {}, "smooth_l1": {"beta": 0.4}, "mse": {}, "power": {"power": 1.5}, "cosine": {},
}  # fmt: skip


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Memory that nobody has written holds NaN."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    assert torch.empty(4).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@dataclass(frozen=True)
class Sizes:
    """Tokens and channels of a case, and why it is there."""

    channels: int
    tokens: int = 5
    grid: int = 7
    batch: int = 2


SIZES = {
    "one": Sizes(1, tokens=131),  # more tokens than one program takes
    "three": Sizes(3, tokens=67, batch=3),
    "eighty": Sizes(80, tokens=13),
    "vit-g": Sizes(1408, tokens=3),  # padded to 2,048, or cut into eleven
    "cut": Sizes(2300, tokens=2),  # more than one program takes, and no multiple of what it takes
}


@dataclass(frozen=True)
class Data:
    """Everything on the device; a third of the tokens is masked, their predictions, weights and indices are poison."""

    prediction: Tensor
    target: Tensor
    grid: Tensor
    mask: Tensor
    elements: Tensor
    indices: Tensor
    weight: Tensor


def make(sizes: Sizes, dtype: torch.dtype = torch.float32, *, poison: float = math.nan, seed: int = 0) -> Data:
    generator = torch.Generator().manual_seed(seed)
    shape = (sizes.batch, sizes.tokens, sizes.channels)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    mask = torch.rand(shape[:2], generator=generator) > 0.33
    mask[0, 0], mask[0, 1] = True, False
    elements = (torch.rand(shape, generator=generator) > 0.4) & mask[..., None]
    indices = torch.randint(0, sizes.grid, shape[:2], generator=generator)
    indices[~mask] = 10**12 if math.isnan(poison) else -1
    prediction, target = random(*shape), random(*shape)
    weight = random(*shape[:2]).abs() + 0.1
    grid = 3 * random(shape[0], sizes.grid, shape[2]) + 1
    for x in (prediction, target, weight):
        x[~mask] = poison
    cast = (x.to(DEVICE, dtype) for x in (prediction, target, grid))
    return Data(*cast, *(x.to(DEVICE) for x in (mask, elements, indices, weight)))


def judge(name: str, got: Tensor, truth: Tensor, ordinary: Tensor) -> None:
    """At most twice the error of the specification in fp32, rounded once, or the floor of the arithmetic.

    By maximum and by root mean square.
    """
    truth, ordinary = truth.detach(), ordinary.detach()
    assert got.shape == truth.shape
    assert got.dtype == ordinary.dtype
    assert got.isfinite().all(), f"{name}: {int((~got.isfinite()).sum())} of {got.numel()} not finite"
    if not got.numel():
        return
    error, usual, rounding = ((x.detach().double() - truth).abs() for x in (got, ordinary, truth.to(ordinary.dtype)))
    reach = 4 * FP32_EPS * truth.abs().max()
    worst = torch.unravel_index(error.argmax(), error.shape)
    for norm, of in (("max", torch.max), ("rms", lambda x: x.square().mean().sqrt())):
        limit = torch.maximum(2 * of(usual), of(rounding) + reach)
        where = f"at {[int(i) for i in worst]}: {got[worst].item()} for {truth[worst].item()}"
        assert of(error) <= limit, f"{name} {norm} error {of(error):.3g}, limit {limit:.3g}, worst {where}"


def needs_bf16(dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and not (GPU or INTERPRETATION.bf16):
        pytest.skip(INTERPRETATION.reason)


def assert_same(got: Tensor, expected: Tensor) -> None:
    """Bit for bit, NaN included."""
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    same = (got == expected) | (got.isnan() & expected.isnan())
    assert same.all(), f"{int((~same).sum())} of {same.numel()} elements differ"


def upstream_like(value: Tensor) -> Tensor:
    """What comes back is never 1."""
    steps = torch.linspace(0.3, 1.7, max(value.numel(), 1), device=value.device)[: value.numel()]
    return steps.reshape(value.shape)


def both(prediction: Tensor, target: Tensor, mask: Tensor, options: dict[str, Any], **ours: Any) -> None:
    """Value, count and gradient of the kernel, judged by the specification in float64."""
    x = prediction.detach().requires_grad_()
    loss = masked_regression(x, target, mask, **options, **ours)
    upstream = upstream_like(loss.value)
    (gradient,) = torch.autograd.grad(loss.value, x, upstream)
    results = []
    for wide in (torch.float64, None):
        y = prediction.detach().to(wide or prediction.dtype).requires_grad_()
        value, count = specification.masked_regression(y, target.to(wide or target.dtype), mask, **options)
        results.append((value, *torch.autograd.grad(value, y, upstream.to(value.dtype))))
    assert torch.equal(loss.count, count)
    judge("value", loss.value, results[0][0], results[1][0])
    judge("gradient", gradient, results[0][1], results[1][1])
    places = mask if mask.dim() == prediction.dim() else mask[..., None].expand_as(prediction)
    assert not gradient[~places].any()


@pytest.mark.parametrize("dtype_name", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SIZES)
def test_values_and_gradients(name: str, kind: str, dtype_name: str) -> None:
    if (name, kind) == ("one", "cosine"):
        return  # a direction of one channel is a sign, and its gradient nothing but cancellation
    needs_bf16(DTYPES[dtype_name])
    data = make(SIZES[name], DTYPES[dtype_name])
    options: dict[str, Any] = {"kind": kind, "weight": data.weight, **PARAMETERS[kind]}
    both(data.prediction, data.target, data.mask, options)
    both(data.prediction, data.target, data.mask, {**options, "reduction": "none"})


@pytest.mark.parametrize("dtype_name", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [name for name in SIZES if name != "one"])  # one channel normalised is 0
def test_gathered_and_normalised(name: str, kind: str, dtype_name: str) -> None:
    needs_bf16(DTYPES[dtype_name])
    data = make(SIZES[name], DTYPES[dtype_name])
    options: dict[str, Any] = {"kind": kind, "indices": data.indices, **PARAMETERS[kind]}
    if kind == "power":  # below 2 the slope's own slope is infinite at 0: it magnifies how a target was rounded
        options["power"] = 2.5
    both(data.prediction, data.grid, data.mask, {**options, "normaliser": 7.0})
    both(data.prediction, data.grid, data.mask, {**options, "normalise_target": True, "eps": 0.01})


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "cosine"])
@pytest.mark.parametrize("name", SIZES)
def test_one_mask_entry_per_element(name: str, kind: str) -> None:
    data = make(SIZES[name], torch.float16)
    for x in (data.prediction, data.target):
        x[~data.elements] = math.nan
    options: dict[str, Any] = {"kind": kind, "weight": data.weight, **PARAMETERS[kind]}
    both(data.prediction, data.target, data.elements, options)
    both(data.prediction, data.grid, data.elements, {**options, "indices": data.indices, "reduction": "none"})


@pytest.mark.parametrize("scale", [1.0, 1e6])  # far from 1 a logarithm in fp32 is too coarse
@pytest.mark.parametrize("power", [0.5, 1.0, 2.0, 3.0])
def test_powers(power: float, scale: float) -> None:
    data = make(SIZES["eighty"])
    data.prediction.mul_(scale)
    data.prediction[0, 0, :4] = data.target[0, 0, :4]
    options = {"kind": "power", "power": power}
    both(data.prediction, data.target, data.mask, options)
    x = data.prediction.detach().requires_grad_()
    value, _ = masked_regression(x, data.target, data.mask, **options, reduction="sum")
    assert not torch.autograd.grad(value, x)[0][0, 0, :4].any()


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_the_cosine_of_tiny_and_huge_vectors(scale: float) -> None:
    data = make(SIZES["eighty"])
    both(data.prediction * scale, data.target / scale, data.mask, {"kind": "cosine", "reduction": "none"})
    data.prediction[0, 0] = 0.0
    both(data.prediction, data.target, data.mask, {"kind": "cosine", "reduction": "none"})
    same = masked_regression(data.target, data.target * 3, data.mask, kind="cosine", reduction="none").value
    assert (same >= 0).all()
    assert same.max() <= FP32_EPS**2  # as a squared distance; 1 - cos would be off by eps


@pytest.mark.parametrize("mixed", [(torch.bfloat16, torch.float32), (torch.float32, torch.float16)])
def test_prediction_and_target_of_different_dtypes(mixed: tuple[torch.dtype, torch.dtype]) -> None:
    needs_bf16(mixed[0])
    data, other = make(SIZES["eighty"], mixed[0]), make(SIZES["eighty"], mixed[1])
    both(data.prediction, other.target, data.mask, {"kind": "smooth_l1", "beta": 0.4})


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_mask_leaves_out_changes_nothing(kind: str) -> None:
    """Bit for bit, whatever stands there, and whatever comes back."""
    results = []
    for poison in (math.nan, math.inf, 0.0):
        data = make(SIZES["three"], poison=poison)
        for options in ({}, {"reduction": "none"}, {"indices": data.indices, "normalise_target": True}):
            x = data.prediction.detach().requires_grad_()
            target = data.grid if "indices" in options else data.target
            value, _ = masked_regression(
                x, target, data.mask, kind=kind, weight=data.weight, **PARAMETERS[kind], **options
            )
            results.append((value, *torch.autograd.grad(value, x, upstream_like(value), retain_graph=True)))
            back = torch.full_like(value, math.inf)
            assert not torch.autograd.grad(value, x, back)[0][~data.mask].any()
    for at in range(3):
        for other in (at + 3, at + 6):
            for got, expected in zip(results[other], results[at], strict=True):
                assert_same(got, expected)


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 0, 4), (0, 3, 4), (0, 4), (4,)])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_valid_is_zero(kind: str, shape: tuple[int, ...]) -> None:
    x = torch.full(shape, math.nan, device=DEVICE, requires_grad=True)
    mask = torch.zeros(shape[:-1], dtype=torch.bool, device=DEVICE)
    zero = torch.zeros((), dtype=torch.int64, device=DEVICE)
    for options in ({}, {"normaliser": 3.0}, {"normaliser": zero}, {"reduction": "sum"}, {"reduction": "none"}):
        value, count = masked_regression(x, x.detach(), mask, kind=kind, **PARAMETERS[kind], **options)
        assert not value.any()
        assert count.item() == 0
        assert count.dtype == torch.int64
        (gradient,) = torch.autograd.grad(value.sum(), x)
        assert gradient.shape == x.shape
        assert not gradient.any()


def test_weights_that_add_up_to_zero_give_zero_and_keep_the_count() -> None:
    x = torch.full((2, 3), math.nan, device=DEVICE, requires_grad=True)
    mask = torch.ones(2, dtype=torch.bool, device=DEVICE)
    weight = torch.tensor([0.5, -0.5], device=DEVICE)
    value, count = masked_regression(x, x.detach(), mask, kind="mse", weight=weight)
    assert (value.item(), count.item()) == (0.0, 6)
    assert not torch.autograd.grad(value, x)[0].any()


def test_a_variance_of_zero_without_eps_stays_where_it_is() -> None:
    """A masked token is taken as zeros, whose variance is 0; it must not become NaN, and an ordinary token is fine."""
    data = make(SIZES["three"])
    options: dict[str, Any] = {"kind": "smooth_l1", "normalise_target": True, "eps": 0.0}
    both(data.prediction, data.target, data.mask, options)
    both(data.prediction, data.target, data.mask, {**options, "reduction": "none"})


def test_a_tensor_normaliser_is_used_as_it_is() -> None:
    x, mask = torch.full((1, 2), 3.0, device=DEVICE), torch.ones(1, dtype=torch.bool, device=DEVICE)
    for number, expected in ((4, 1.5), (-2.0, -3.0), (0.0, math.inf)):
        normaliser = torch.tensor(number, device=DEVICE)
        loss = masked_regression(x, torch.zeros_like(x), mask, kind="l1", normaliser=normaliser)
        assert loss.value.item() == expected


def every_other(x: Tensor, dim: int) -> Tensor:
    wide = x.repeat_interleave(2, dim)
    if x.is_floating_point():
        wide.index_fill_(dim, torch.arange(1, wide.shape[dim], 2, device=x.device), math.nan)
    return wide.unfold(dim, 1, 2).squeeze(-1)


STRIDES: dict[str, Callable[[Tensor], Tensor]] = {
    "batch second": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "channel stride 2": lambda x: every_other(x, 2),
    "token stride 2": lambda x: every_other(x, 1),
    "channels first": lambda x: x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    "offset by one": lambda x: torch.cat([x[..., :1], x], -1)[..., 1:],
    "two dimensions": lambda x: x.flatten(0, 1),
    "five dimensions": lambda x: x.unflatten(1, (1, 1, -1)),
    "not to be viewed": lambda x: x.unflatten(1, (-1, 1)).permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3),
}


@pytest.mark.parametrize("layout", STRIDES)
def test_any_strides_give_the_same_bits(layout: str) -> None:
    data = make(SIZES["eighty"])
    view = STRIDES[layout]
    options: dict[str, Any] = {"kind": "power", "power": 1.5, "normalise_target": True, "reduction": "none"}
    x = data.prediction.detach().requires_grad_()
    expected, _ = masked_regression(x, data.target, data.mask, **options)
    (gradient,) = torch.autograd.grad(expected, x, upstream_like(expected))
    got, _ = masked_regression(
        view(x), view(data.target), view(data.mask[..., None]).squeeze(-1), weight=None, **options
    )
    assert_same(got.reshape(expected.shape), expected)
    (same,) = torch.autograd.grad(got, x, upstream_like(got))
    assert_same(same, gradient)


def test_expanded_inputs() -> None:
    data = make(SIZES["three"], poison=0.0)
    target, mask, weight = data.target[:1, :1], data.mask[:1, :1], data.weight[:1, :1]
    shape = data.prediction.shape
    spread = (target.expand(shape), mask.expand(shape[:2]), weight.expand(shape[:2]))
    whole = [x.contiguous() for x in spread]
    got, expected = (
        masked_regression(data.prediction, t, m, kind="mse", weight=w, reduction="sum").value
        for t, m, w in (spread, whole)
    )
    assert_same(got, expected)


def test_equal_inputs_give_equal_bits() -> None:
    data = make(SIZES["three"])
    values = [masked_regression(data.prediction, data.target, data.mask, kind="mse").value for _ in range(3)]
    assert_same(values[0], values[1])
    assert_same(values[0], values[2])


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


def test_fp16_gradients_survive_until_the_loss_scale_arrives() -> None:
    """A mean over 10^9 entries has gradients below fp16's least number; times a scale of 10^6 they are ordinary."""
    data = make(SIZES["eighty"], torch.float16)
    expected = data.mask[..., None] * torch.sign((data.prediction - data.target).nan_to_num()).float() * 1e-3
    for inplace in (False, True):
        x = data.prediction.detach().requires_grad_()
        y = x * 1
        value, _ = masked_regression(y, data.target, data.mask, kind="l1", normaliser=1e9, inplace=inplace)
        (gradient,) = torch.autograd.grad(value, x, torch.tensor(1e6, device=DEVICE))
        assert_same(gradient, expected.half())


@pytest.mark.parametrize("dtype_name", DTYPES)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_in_place(reduction: str, dtype_name: str) -> None:
    """The gradient is that of the ordinary call, bit for bit where 1 comes back, and stands in the prediction."""
    dtype = DTYPES[dtype_name]
    needs_bf16(dtype)
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


def test_a_second_derivative_is_refused() -> None:
    data = make(SIZES["three"])
    x = data.prediction.detach().requires_grad_()
    value, _ = masked_regression(x, data.target, data.mask, kind="mse")
    (gradient,) = torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        gradient.sum().backward()


def test_operators_are_registered_right() -> None:
    data = make(SIZES["three"])
    x = data.prediction.nan_to_num().requires_grad_()
    two = torch.tensor(2, device=DEVICE)
    token = (x, data.target, data.mask, None, data.weight, None, "mean", False, "smooth_l1", 0.4, False, 1e-5)
    gathered = (x, data.grid, data.mask, data.indices, None, two, "mean", True, "cosine", 0.0, True, 1e-2)
    element = (x, data.target, data.elements, None, None, None, "none", False, "power", 1.5, False, 1e-5)
    for arguments in (token, gathered, element):
        torch.library.opcheck(masked_regression_ops.forward_op, arguments)
    one = torch.tensor(3.0, device=DEVICE)
    gradient = (one, x.detach(), data.target, data.mask, None, data.weight, one, "l1", 0.0, False, 1e-5)
    torch.library.opcheck(masked_regression_ops.gradient_op, gradient)
    plain = x.detach().clone()
    torch.library.opcheck(masked_regression_ops.fused_op, (plain, *token[1:]))
    torch.library.opcheck(masked_regression_ops.gradient_inplace_op, (one, plain, *gradient[2:]))


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
    got = torch.compile(step, fullgraph=True, backend=backend)(*inputs, inplace=True)
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


def sparse(elements: int) -> Tensor:
    """That many fp32 zeros of address space, of which only the pages that are touched take memory."""
    with tempfile.NamedTemporaryFile() as file:
        os.truncate(file.name, 4 * elements)
        return torch.from_file(file.name, shared=True, size=elements, dtype=torch.float32)


@pytest.mark.skipif(GPU, reason="a GPU has no sparse memory")
@pytest.mark.parametrize("far", [0, 1], ids=["batch", "token"])
def test_more_than_two_billion_elements(far: int) -> None:
    """The last index of one dimension lies past 2**31, in the prediction and in the grid."""
    data = make(SIZES["three"], poison=0.0)
    spread = []
    for x in (data.prediction, data.grid):
        strides = [10_000, 100, 1]
        strides[far] = 2**31 // (x.shape[far] - 1) + 1000
        size = 1 + sum(stride * (n - 1) for stride, n in zip(strides, x.shape, strict=True))
        assert size > 2**31
        spread.append(sparse(size).as_strided(x.shape, strides).copy_(x))
    options: dict[str, Any] = {"kind": "mse", "indices": data.indices, "check": False, "reduction": "sum"}
    expected = masked_regression(data.prediction, data.grid, data.mask, **options)
    assert_same(masked_regression(*spread, data.mask, **options).value, expected.value)
    x = data.prediction.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(masked_regression(x, data.grid, data.mask, **options).value, x)
    masked_regression_ops.fused_op(
        spread[0], spread[1], data.mask, data.indices, None, None, "sum", False, "mse", 0.0, False, 1e-5
    )
    assert_same(spread[0], gradient)


@pytest.mark.skipif(GPU, reason="on a GPU the kernel runs")
def test_without_interpreter_a_cpu_tensor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make(SIZES["three"])
    monkeypatch.setattr(masked_regression_triton, "INTERPRETED", False)
    for inplace in (False, True):
        x = data.prediction.detach().requires_grad_() * 1
        with pytest.raises(RuntimeError, match=r"assay\.reference\.masked_regression.*TRITON_INTERPRET=1"):
            masked_regression(x, data.target, data.mask, kind="mse", inplace=inplace)


GRID: dict[str, Any] = {"target": torch.zeros(2, 9, 5), "indices": torch.zeros(2, 3, dtype=torch.int64)}
ELEMENTS = torch.ones(2, 3, 5, dtype=torch.bool)
ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
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
    usual = {
        "prediction": torch.zeros(2, 3, 5),
        "target": torch.zeros(2, 3, 5),
        "mask": ELEMENTS[..., 0],
        "kind": "mse",
    }
    arguments = {
        key: x.to(DEVICE) if isinstance(x, Tensor) and not x.is_meta else x for key, x in (usual | changes).items()
    }
    with pytest.raises(kind, match=f"^{message}"):
        masked_regression(**arguments)
