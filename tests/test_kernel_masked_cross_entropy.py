"""The fused cross-entropy against float64, in Triton's interpreter or, where there is one, on the GPU.

Letters in shapes: B batch, S sequence, V vocabulary.
"""

# mypy: allow-untyped-calls
# Some of torch's own methods carry no types.

import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from assay.audits import interpreter
from assay.audits.laws import limits

GPU = torch.cuda.is_available()
INTERPRETATION = interpreter.Interpretation(False, False, "") if GPU else interpreter.enable()
if not (GPU or INTERPRETATION.active):
    raise RuntimeError(f"{INTERPRETATION.reason}; run this file by itself or set TRITON_INTERPRET=1")

from assay.kernels import masked_cross_entropy_launch as launch
from assay.kernels import masked_cross_entropy_ops as ops  # after the interpreter
from assay.kernels.masked_cross_entropy import Loss, cross_entropy

DEVICE = "cuda" if GPU else "cpu"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
REDUCTIONS = ("none", "sum", "mean")
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "shift": {"shift": True},
    "softcap": {"softcap": 3.0},
    "label_smoothing": {"label_smoothing": 0.3},
    "z_loss": {"z_loss": 0.1},
    "all": {"shift": True, "softcap": 5.0, "label_smoothing": 0.2, "z_loss": 0.01},
}
B, S = 2, 5


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Memory that nobody has written holds NaN."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a thousand logits then take several blocks, as rows of 150,000 do."""
    monkeypatch.setattr(launch, "_STREAMED", 1024)
    monkeypatch.setattr(launch, "_RESIDENT", 512)
    monkeypatch.setattr(launch, "_REDUCED", 4)
    monkeypatch.setattr(launch, "_SCALERS", 3)


def random(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(DEVICE)


def make(vocabulary: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits [B, S, V], labels with both ends of the vocabulary and some ignored, weights, upstream gradients."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, vocabulary, (B, S), generator=generator)
    labels[0, 0], labels[0, 2], labels[1, 3] = 0, vocabulary - 1, 0
    labels[0, 1] = labels[1, 0] = labels[1, 4] = -100
    weight = torch.rand(B, S, generator=generator) + 0.1
    return random(B, S, vocabulary, seed=seed, scale=3.0), labels.to(DEVICE), weight.to(DEVICE), random(B, S, seed=7)


def shifted(x: Tensor, fill: float) -> Tensor:
    return torch.cat([x[..., 1:], torch.full_like(x[..., :1], fill)], -1)


def truth(
    logits: Tensor, labels: Tensor, *, shift: bool = False, ignore_index: int = -100, weight: Tensor | None = None,
    softcap: float | None = None, label_smoothing: float = 0.0, z_loss: float = 0.0, reduction: str = "mean",
    normaliser: float | None = None,
) -> Tensor:  # fmt: skip
    """The formula in float64."""
    weights = torch.ones(labels.shape, device=DEVICE) if weight is None else weight
    if shift:
        labels, weights = shifted(labels, ignore_index), shifted(weights, 0)
    scored = labels != ignore_index
    x = logits.double()[scored]
    x = softcap * torch.tanh(x / softcap) if softcap else x
    lse = x.logsumexp(-1)
    at_label = x.gather(-1, labels[scored][:, None])[:, 0]
    each = lse - (1 - label_smoothing) * at_label + z_loss * lse**2
    if label_smoothing:
        each = each - label_smoothing * x.mean(-1)
    losses = torch.zeros(labels.shape, dtype=torch.float64, device=DEVICE)
    losses[scored] = each * weights.double()[scored]
    if reduction == "none":
        return losses
    return losses.sum() / ((normaliser or weights.double()[scored].sum()) if reduction == "mean" else 1)


def judge(name: str, got: Tensor, expected: Tensor, reach: Tensor | float) -> None:
    """Within the floor of the arithmetic for numbers of this reach; twice an ordinary form's error is not granted."""
    assert got.shape == expected.shape
    assert got.isfinite().all(), f"{name}: {int((~got.isfinite()).sum())} of {got.numel()} are not finite"
    reach = torch.as_tensor(reach, dtype=torch.float64, device=DEVICE)
    error = limits.relative(limits.difference(got, expected), reach)
    allowed = limits.floor([expected], reach, got.dtype)
    assert limits.excess(name, error, allowed, lambda: (), "too far from float64") is None, limits.norms(error)


def compare(logits: Tensor, labels: Tensor, upstream: Tensor, *, inplace: bool = False, **options: Any) -> None:
    """Value and gradient of the kernel against the truth; the upstream gradient is never 1."""
    x = logits.detach().requires_grad_()
    upstream = upstream if options.get("reduction") == "none" else upstream.flatten()[:1].squeeze()
    expected = truth(x, labels, **options)
    (slope,) = torch.autograd.grad(expected, x, upstream.double())
    value, count = cross_entropy(x * 1, labels, inplace=inplace, **options)
    (gradient,) = torch.autograd.grad(value, x, upstream)
    ignored = options.get("ignore_index", -100)
    targets = shifted(labels, ignored) if options.get("shift") else labels
    assert count.dtype == torch.int64
    assert int(count) == int((targets != ignored).sum())
    assert value.dtype == torch.float32
    reach = float(logits.abs().max()) + float(expected.detach().abs().max())
    terms = 1 if expected.dim() or options.get("reduction", "mean") == "mean" else int(count)
    judge("value", value, expected, reach * terms)
    assert gradient.dtype == logits.dtype
    judge("gradient", gradient, slope, max(float(slope.double().abs().max()), float(upstream.abs().max())))


def needs(dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and not (GPU or INTERPRETATION.bf16):
        pytest.skip(INTERPRETATION.reason)


@pytest.mark.parametrize(
    ("option", "vocabulary"),
    [(option, 257) for option in OPTIONS] + [("all", vocabulary) for vocabulary in (1, 2, 3, 1000)],
)
def test_values_and_gradients(option: str, vocabulary: int) -> None:
    logits, labels, weight, upstream = make(vocabulary)
    for reduction in REDUCTIONS:
        options = OPTIONS[option] | {"reduction": reduction}
        options |= {"weight": weight} if option == "all" else {}
        compare(logits, labels, upstream, inplace=option in {"plain", "all"}, **options)
    compare(logits, labels, upstream, weight=weight, normaliser=7.5, **OPTIONS[option])


@pytest.mark.parametrize("vocabulary", [513, 1024])
@pytest.mark.parametrize("option", ["plain", "label_smoothing", "all"])
@pytest.mark.usefixtures("small_blocks")
def test_rows_of_several_blocks(option: str, vocabulary: int) -> None:
    """513 leaves one column for the last block, 1024 fills it; the fused form and the one in two passes."""
    logits, labels, weight, upstream = make(vocabulary)
    for inplace in (False, True):
        compare(logits, labels, upstream, inplace=inplace, weight=weight, **OPTIONS[option])


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype_name", DTYPES)
def test_dtypes(dtype_name: str, reduction: str) -> None:
    dtype = DTYPES[dtype_name]
    needs(dtype)
    logits, labels, weight, upstream = make(257)
    for option in ("plain", "all"):
        compare(logits.to(dtype), labels, upstream, weight=weight, reduction=reduction, **OPTIONS[option])


def test_the_gradient_at_the_label_is_rounded_once() -> None:
    """A confident token: bf16(bf16(softmax) - 1) would be wrong by half."""
    needs(torch.bfloat16)
    logits = random(4, 50, seed=1).bfloat16()
    labels = torch.arange(4, device=DEVICE)
    logits[labels, labels] = 12.0
    for inplace in (False, True):
        x = logits.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(x * 1, labels, inplace=inplace).value, x)
        exact = torch.softmax(logits.double(), -1)
        exact[labels, labels] -= 1
        at_label, expected = gradient[labels, labels], (exact / 4)[labels, labels]
        judge("gradient at the label", at_label, expected, 0.25)
        assert ((at_label.double() - expected).abs() <= expected.abs() / 100).all()


@pytest.mark.parametrize("offset", [120.0, -120.0])
def test_moving_all_logits_costs_no_accuracy(offset: float) -> None:
    """Judged by the loss, which depends on the spread of the logits only, instead of by their size."""
    logits, labels, _, upstream = make(257)
    moved = logits / 30 + offset
    for options in ({}, {"label_smoothing": 0.2}):
        x = moved.detach().requires_grad_()
        expected = truth(x, labels, reduction="none", **options)
        value, _ = cross_entropy(x, labels, reduction="none", **options)
        judge("value", value, expected, expected.detach().max())
        judge(
            "gradient",
            torch.autograd.grad(value, x, upstream)[0],
            torch.autograd.grad(expected, x, upstream.double())[0],
            upstream.abs().amax(),
        )


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


def assert_same(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """Bit for bit, NaN included."""
    for at, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert a.shape == b.shape
        same = (a == b) | (a.isnan() & b.isnan())
        assert same.all(), f"output {at}: {int((~same).sum())} of {same.numel()} elements differ"


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


@pytest.mark.parametrize("ignored", [0, 1, 4, 10**12, -(2**63)])
def test_any_ignore_index(ignored: int) -> None:
    """Also inside the vocabulary: then it is no label."""
    logits, labels, _, upstream = make(5)
    labels = torch.where(labels == -100, ignored, labels)
    compare(logits, labels, upstream, ignore_index=ignored, shift=True)


def test_shift_is_the_labels_shifted_beforehand() -> None:
    """Within each row: the last position of one is not scored against the first label of the next."""
    logits, labels, weight, _ = make(17)
    labels[1, 0] = 3
    before = shifted(labels, -100), shifted(weight, 0)
    for reduction in REDUCTIONS:
        got = cross_entropy(logits, labels, weight=weight, shift=True, reduction=reduction)
        assert_same(got, cross_entropy(logits, before[0], weight=before[1], reduction=reduction))
    labels[:, 0] = 999  # nobody's label
    assert_same(got, cross_entropy(logits, labels, weight=weight, shift=True))


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


@pytest.mark.parametrize("inplace", [False, True])
def test_upstream_scales_exactly_and_in_the_right_place(inplace: bool) -> None:
    """A power of two commutes with every rounding; a normaliser is a division of the sum."""
    logits, labels, _, _ = make(17)

    def gradient(factor: float, **options: Any) -> Tensor:
        x = logits.detach().requires_grad_()
        value, _ = cross_entropy(x * 1, labels, inplace=inplace, **options)
        return torch.autograd.grad(value * factor, x)[0]

    assert torch.equal(gradient(1) * 8, gradient(8))
    assert torch.equal(gradient(1, normaliser=16), gradient(1 / 16, reduction="sum"))
    assert torch.equal(gradient(1, normaliser=torch.tensor(16, device=DEVICE)), gradient(1, normaliser=16.0))


@pytest.mark.usefixtures("small_blocks")
def test_equal_inputs_give_equal_bits() -> None:
    logits, labels, weight, upstream = make(1000)
    order = torch.randperm(B * S, generator=torch.Generator().manual_seed(1)).to(DEVICE)

    def results(*tensors: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
        x = tensors[0].detach().requires_grad_()
        options = OPTIONS["all"] | {"shift": False, "reduction": reduction}
        value, _ = cross_entropy(x, tensors[1], weight=tensors[2], **options)
        return value, torch.autograd.grad(value, x, tensors[3] if reduction == "none" else None)[0]

    flat = tuple(x.flatten(0, 1) for x in (logits, labels, weight, upstream))
    for reduction in REDUCTIONS:
        assert_same(results(*flat, reduction=reduction), results(*flat, reduction=reduction))
    moved = results(*(x[order] for x in flat), reduction="none")
    assert_same(moved, tuple(x[order] for x in results(*flat, reduction="none")))


@pytest.mark.usefixtures("small_blocks")
def test_logits_of_minus_infinity() -> None:
    """A vocabulary that is masked in part, the whole first block of it included."""
    logits, labels, _, upstream = make(600)
    logits[..., :520] = -torch.inf
    labels[labels >= 0] = 520 + labels[labels >= 0] // 8
    for inplace in (False, True):
        x = logits.detach().requires_grad_()
        expected = truth(x, labels)
        value, _ = cross_entropy(x * 1, labels, inplace=inplace)
        judge("value", value, expected, 20.0)
        (gradient,) = torch.autograd.grad(value, x, upstream[0, 0])
        assert (gradient[..., :520] == 0).all()
        judge("gradient", gradient, torch.autograd.grad(expected, x, upstream[0, 0].double())[0], upstream[0, 0].abs())


def test_a_nan_in_a_scored_row_is_not_hidden() -> None:
    logits, labels, _, _ = make(257)
    logits[0, 0, 100] = torch.nan
    value, _ = cross_entropy(logits, labels, reduction="none")
    assert value[0, 0].isnan()
    assert value[0, 1:].isfinite().all()


@pytest.mark.parametrize("size", [1e-6, 0.1, 1.0, 50.0])
def test_softcap_is_accurate_for_logits_of_every_size(size: float) -> None:
    """From where tanh(x) is x to where it is 1."""
    logits, labels, _, upstream = make(257)
    compare(logits / 3 * size, labels, upstream, softcap=1.0, reduction="none")


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


def test_fp16_does_not_underflow_before_the_loss_scale_is_known() -> None:
    logits, labels, _, _ = make(257)
    for inplace in (False, True):
        x = logits.half().requires_grad_()
        value, _ = cross_entropy(x * 1, labels, normaliser=2.0**30, inplace=inplace)
        (gradient,) = torch.autograd.grad(value * 2.0**30, x)
        (slope,) = torch.autograd.grad(truth(x, labels, reduction="sum"), x)
        judge("gradient", gradient, slope, 1.0)


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


def test_checkpoint() -> None:
    logits, labels, _, _ = make(17)
    x = logits.detach().requires_grad_()

    def block(x: Tensor) -> Tensor:
        return cross_entropy(x * 2, labels, inplace=True).value * 3

    (expected,) = torch.autograd.grad(block(x), x)
    for reentrant in (False, True):
        x.grad = None
        checkpoint(block, x, use_reentrant=reentrant).backward()
        assert x.grad is not None
        assert torch.equal(x.grad, expected)


def test_operators_are_registered_right() -> None:
    logits, labels, weight, _ = make(17)
    x = logits.detach().requires_grad_()
    torch.library.opcheck(ops.forward_op, (x, labels, None, None, "none", True, -100, 0.0, 0.0, 0.0, True))
    rest = (-100, 5.0, 0.1, 0.1, False)
    normaliser = torch.tensor(3, device=DEVICE)
    torch.library.opcheck(ops.forward_op, (x, labels, weight, normaliser, "mean", False, *rest))
    torch.library.opcheck(ops.fused_op, (logits.clone(), labels, weight, normaliser, "mean", False, *rest))
    one = torch.ones((), device=DEVICE)
    kept = (torch.rand(10, device=DEVICE), torch.rand(10, device=DEVICE) + 1, one)
    torch.library.opcheck(ops.gradient_op, (one, logits, labels, weight, *kept, *rest))
    torch.library.opcheck(ops.gradient_inplace_op, (one, logits.clone(), labels, weight, *kept, *rest))
    torch.library.opcheck(ops.scale_op, (logits.clone(), one * 2))


@pytest.mark.parametrize("inplace", [False, True])
def test_compiled_without_a_graph_break(inplace: bool) -> None:
    """Also where gradients may be written over the logits: the compiled form leaves those alone."""
    logits, labels, weight, upstream = make(17)

    def step(x: Tensor, labels: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        each, _ = cross_entropy(x * 2, labels, weight=weight, reduction="none", shift=True, inplace=inplace)
        return each, *cross_entropy(x * 2, labels, weight=weight, inplace=inplace, softcap=4.0)

    x = logits.detach().requires_grad_()
    torch._dynamo.reset()
    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        each, value, count = function(x, labels, weight)
        back = torch.autograd.grad((each, value), x, (upstream, torch.tensor(2.0, device=DEVICE)))
        results.append((each, value, count, *back))
    assert_same(*results)


def sparse(elements: int) -> Tensor:
    """That many fp32 zeros of address space, of which only the pages that are touched take memory."""
    with tempfile.NamedTemporaryFile() as file:
        os.truncate(file.name, 4 * elements)
        return torch.from_file(file.name, shared=True, size=elements, dtype=torch.float32)


@pytest.mark.skipif(GPU, reason="a GPU has no sparse memory")
@pytest.mark.parametrize("far", [0, 1], ids=["batch", "position"])
def test_more_than_two_billion_logits(far: int) -> None:
    """The last row lies past 2**31, though the strides alone still fit 32 bits."""
    logits, labels = (torch.cat([x, x]) for x in make(17)[:2])
    strides = [17 * S, 17, 1]
    strides[far] = 2**31 // (logits.shape[far] - 1) + 1000
    if far:
        strides[0] = 17
    size = 1 + sum(stride * (n - 1) for stride, n in zip(strides, logits.shape, strict=True))
    distant = sparse(size).as_strided(logits.shape, strides).copy_(logits)
    assert size > 2**31
    assert_same(cross_entropy(distant, labels), cross_entropy(logits, labels))
    ops.fused_op(distant, labels, None, None, "mean", False, -100, 0.0, 0.0, 0.0, False)
    x = logits.detach().requires_grad_()
    assert torch.equal(distant, torch.autograd.grad(cross_entropy(x, labels).value, x)[0])


@pytest.mark.skipif(GPU, reason="on a GPU the kernel runs")
def test_without_interpreter_a_cpu_tensor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels, _, _ = make(17)
    monkeypatch.setattr(launch, "INTERPRETED", False)
    for inplace in (False, True):
        with pytest.raises(RuntimeError, match=r"assay\.reference\.masked_cross_entropy.*TRITON_INTERPRET=1"):
            cross_entropy(logits.requires_grad_() * 1, labels, inplace=inplace)


ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
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
    changes, kind, message = ERRORS[name]
    arguments: dict[str, Any] = {"logits": torch.zeros(2, 5, 9), "labels": torch.zeros(2, 5, dtype=torch.int64)}
    arguments |= changes
    with pytest.raises(kind, match=message):
        cross_entropy(**arguments)


def test_the_loss_is_a_named_pair() -> None:
    logits, labels, _, _ = make(3)
    loss = cross_entropy(logits, labels)
    assert isinstance(loss, Loss)
    assert loss == (loss.value, loss.count)
