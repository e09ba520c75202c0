"""Cross-entropy through a head against float64: the plain path, and the path of GPUs with its kernel interpreted.

Letters in shapes: B batch, S sequence, H hidden width, V vocabulary.
"""

# mypy: allow-untyped-calls
# Some of torch's own methods carry no types.

import copy
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from assay.audits import interpreter
from assay.audits.laws import limits

GPU = torch.cuda.is_available()
INTERPRETATION = interpreter.Interpretation(False, False, "") if GPU else interpreter.enable()
if not (GPU or INTERPRETATION.active):
    raise RuntimeError(f"{INTERPRETATION.reason}; run this file by itself or set TRITON_INTERPRET=1")

from assay.kernels import linear_cross_entropy_chunks as chunks  # after the interpreter
from assay.kernels import linear_cross_entropy_ops as ops
from assay.kernels.linear_cross_entropy import linear_cross_entropy
from assay.kernels.masked_cross_entropy import cross_entropy
from assay.kernels.masked_cross_entropy_launch import Rules

DEVICE = "cuda" if GPU else "cpu"
DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
REDUCTIONS = ("none", "sum", "mean")
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "shift": {"shift": True},
    "softcap": {"softcap": 2.0},
    "label_smoothing": {"label_smoothing": 0.3},
    "z_loss": {"z_loss": 0.1},
    "all": {"shift": True, "softcap": 3.0, "label_smoothing": 0.2, "z_loss": 0.01},
}
B, S, H, V = 2, 7, 8, 33
BUDGET = 2 * V * 8
"""Two rows a chunk in float64, more in others."""


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Memory that nobody has written holds NaN."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks are scored by the Triton kernel on the CPU too."""
    monkeypatch.setattr(chunks, "uses_kernel", lambda x: x.dtype != torch.float64)


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE, dtype)


class Data:
    """Leaves in one dtype, labels of which five in seven are ignored in the first row, weights, upstream gradients."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.hidden, self.head = random(B, S, H, seed=0, dtype=dtype), random(V, H, seed=1, dtype=dtype)
        self.bias, self.upstream = random(V, seed=2, dtype=dtype), random(B, S, seed=3)
        self.labels = torch.randint(0, V, (B, S), generator=torch.Generator().manual_seed(4)).to(DEVICE)
        self.labels[0, :5] = self.labels[1, 0] = self.labels[1, 4] = -100
        self.labels[0, 6], self.labels[1, 1] = 0, V - 1
        self.weight = random(B, S, seed=5).abs().float() + 0.1

    def redrawn(self, seed: int) -> "Data":
        """The same with other hidden states."""
        other = copy.copy(self)
        other.hidden = random(B, S, H, seed=seed, dtype=self.hidden.dtype)
        return other

    def leaves(self, *, bias: bool = True) -> list[Tensor]:
        return [x.detach().requires_grad_() for x in (self.hidden, self.head, *([self.bias] if bias else []))]


def shifted(x: Tensor, fill: float) -> Tensor:
    return torch.cat([x[..., 1:], torch.full_like(x[..., :1], fill)], -1)


def truth(
    hidden: Tensor, head: Tensor, labels: Tensor, *, bias: Tensor | None = None, shift: bool = False,
    ignore_index: int = -100, weight: Tensor | None = None, softcap: float | None = None, label_smoothing: float = 0.0,
    z_loss: float = 0.0, reduction: str = "mean", normaliser: float | None = None, dtype: torch.dtype = torch.float64,
) -> Tensor:  # fmt: skip
    """The formula in float64; in another dtype the ordinary form, with logits of that dtype and fp32 from there on."""
    weights = torch.ones(labels.shape, device=DEVICE) if weight is None else weight
    if shift:
        labels, weights = shifted(labels, ignore_index), shifted(weights, 0)
    scored = labels != ignore_index
    x = torch.nn.functional.linear(hidden.to(dtype), head.to(dtype), None if bias is None else bias.to(dtype))[scored]
    x = x.to(torch.promote_types(dtype, torch.float32))
    x = softcap * torch.tanh(x / softcap) if softcap else x
    lse = x.logsumexp(-1)
    at_label = x.gather(-1, labels[scored][:, None])[:, 0]
    each = lse - (1 - label_smoothing) * at_label - label_smoothing * x.mean(-1) + z_loss * lse**2
    losses = torch.zeros(labels.shape, dtype=x.dtype, device=DEVICE)
    losses[scored] = each * weights.to(x.dtype)[scored]
    if reduction == "none":
        return losses
    return losses.sum() / ((normaliser or weights.to(x.dtype)[scored].sum()) if reduction == "mean" else 1)


def outcome(function: Callable[..., Any], data: Data, *, bias: bool = True, **options: Any) -> list[Tensor]:
    """Value and gradients, for an upstream gradient that is never 1."""
    hidden, head, *more = leaves = data.leaves(bias=bias)
    found = function(hidden, head, data.labels, bias=more[0] if more else None, **options)
    value = found if isinstance(found, Tensor) else found.value
    upstream = data.upstream if value.dim() else data.upstream[0, 0]
    return [value.detach(), *torch.autograd.grad(value, leaves, upstream.to(value.dtype))]


OWN = ("memory_budget", "num_valid", "check")
"""Options that the formula has not."""


def compare(data: Data, **options: Any) -> None:
    """Value and gradients against float64: at most twice the ordinary form's error, or the floor of the arithmetic."""
    plain = {name: option for name, option in options.items() if name not in OWN}
    dtype = data.hidden.dtype

    def errors(got: list[Tensor], truths: list[Tensor]) -> list[Tensor]:
        return [limits.relative(limits.difference(a, b), reach(b)) for a, b in zip(got, truths, strict=True)]

    @functools.cache
    def usual() -> list[list[Tensor]]:
        draws = [data, data.redrawn(seed=8), data.redrawn(seed=9)]
        return [errors(outcome(truth, x, **plain, dtype=dtype), outcome(truth, x, **plain)) for x in draws]

    got, expected = outcome(linear_cross_entropy, data, **options), outcome(truth, data, **plain)
    for at, (a, b, error) in enumerate(zip(got, expected, errors(got, expected), strict=True)):
        assert a.shape == b.shape
        assert a.dtype == (dtype if at else chunks.arithmetic(dtype))
        allowed = limits.floor([b], reach(b), a.dtype)
        ordinary: Callable[[], list[Tensor]] = lambda at=at: [draw[at] for draw in usual()]  # noqa: E731
        found = limits.excess(f"output {at}", error, allowed, ordinary, "too far from float64")
        assert found is None, found


def reach(expected: Tensor) -> Tensor:
    """What enters: the largest result, and logits and slopes of about 1."""
    return expected.double().abs().max() + 1.0


def needs(dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and not (GPU or INTERPRETATION.bf16):
        pytest.skip(INTERPRETATION.reason)


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


def assert_same(got: list[Tensor], expected: list[Tensor]) -> None:
    """Bit for bit, NaN included."""
    for at, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert a.shape == b.shape
        same = (a == b) | (a.isnan() & b.isnan())
        assert same.all(), f"output {at}: {int((~same).sum())} of {same.numel()} elements differ"


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


class Watch(TorchDispatchMode):
    """The bytes of the largest tensor that any operator made, and how many matrix products there were."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.products = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return out


def watched(data: Data, wanted: chunks.Wanted, budget: int | None, **rules: Any) -> Watch:
    options: dict[str, Any] = {"ignore_index": -100, "shift": False, "mean": True, "num_valid": None, "check": True}
    with torch.no_grad(), Watch() as watch:
        scored = chunks.find_scored(
            data.labels, None, None, vocabulary=len(data.head), dtype=chunks.arithmetic(data.head.dtype), **options
        )
        chunks.score(data.hidden, data.head, None, scored, Rules(**rules), wanted, budget)
    return watch


@pytest.mark.skipif(GPU, reason="counts what the plain path does")
@pytest.mark.parametrize("dtype_name", DTYPES)
def test_no_tensor_is_larger_than_a_chunk(dtype_name: str) -> None:
    """Of the logits, that is: 2,000 tokens, a tenth of them scored, 500 entries; a budget of 16 rows of fp64."""
    dtype = DTYPES[dtype_name]
    data = Data(dtype)
    data.hidden, data.head = random(2000, H, seed=0, dtype=dtype), random(500, H, seed=1, dtype=dtype)
    data.labels = torch.where(torch.arange(2000) % 10 == 0, torch.arange(2000) % 500, -100)
    budget = 16 * 500 * 8
    wanted = chunks.Wanted(hidden=True, head=True)
    small = max(2000 * H * dtype.itemsize, 500 * H * 8, 2000 * 8)
    for rules in ({}, {"softcap": 2.0, "label_smoothing": 0.1}):
        assert watched(data, wanted, budget, **rules).largest <= max(budget, small)
    watch = watched(data, wanted, None)
    assert (
        200 * 500 * dtype.itemsize <= watch.largest <= 200 * 500 * max(dtype.itemsize, 4)
    )  # one chunk: scored rows only


def peak(call: Callable[..., None], *arguments: Any) -> int:
    """The most bytes that were allocated at one time during a call, over those before it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call(*arguments)
    assert profile.profiler is not None
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.skipif(GPU, reason="measures what the plain path allocates on the CPU")
def test_memory_follows_the_scored_tokens_and_the_budget() -> None:
    torch.use_deterministic_algorithms(False)
    tokens, vocabulary = 4000, 1000
    hidden, head = random(tokens, 4, seed=0).float(), random(vocabulary, 4, seed=1).float()
    hidden.requires_grad_()
    labels = torch.arange(tokens) % vocabulary
    tenth = torch.where(torch.arange(tokens) % 10 == 0, labels, -100)
    logits = tokens * vocabulary * 4

    def step(labels: Tensor, budget: int | None) -> None:
        linear_cross_entropy(hidden, head, labels, memory_budget=budget).value.backward()

    rest = 1_000_000  # bytes: hidden states, labels and head, and what is made of them
    step(labels, None)
    assert logits < peak(step, labels, None) < 1.1 * logits + rest
    assert peak(step, tenth, None) < 0.11 * logits + rest
    assert peak(step, labels, logits // 100) < 0.02 * logits + rest


@pytest.mark.skipif(GPU, reason="counts what the plain path does")
def test_frozen_parts_skip_their_products() -> None:
    data = Data()
    chunk_count = 7 // 2 + 1
    for wanted, products in (
        (chunks.Wanted(), 1),
        (chunks.Wanted(hidden=True), 2),
        (chunks.Wanted(head=True), 2),
        (chunks.Wanted(hidden=True, head=True), 3),
    ):
        assert watched(data, wanted, BUDGET).products == chunk_count * products


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
            assert torch.allclose(a, b, rtol=0, atol=limits.ULPS * limits.accumulation_eps(torch.float32) * 4)
    with pytest.raises(ValueError, match="num_valid: expected at least 7.*got 6"):
        linear_cross_entropy(data.hidden, data.head, data.labels, num_valid=6, check=True)
    for reduction in REDUCTIONS:
        value, _, head, _ = outcome(linear_cross_entropy, data, num_valid=6, check=False, reduction=reduction)
        assert value.isnan().any()
        assert head.isnan().all()


def test_equal_inputs_give_equal_bits() -> None:
    data = Data(torch.float32)
    for reduction in REDUCTIONS:
        first, second = (
            outcome(linear_cross_entropy, data, reduction=reduction, memory_budget=BUDGET) for _ in range(2)
        )
        assert_same(first, second)


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

    (expected,) = torch.autograd.grad(block(hidden), hidden)
    for reentrant in (False, True):
        hidden.grad = None
        checkpoint(block, hidden, use_reentrant=reentrant).backward()
        assert hidden.grad is not None
        assert torch.equal(hidden.grad, expected)


def test_operators_are_registered_right() -> None:
    data = Data(torch.float32)
    hidden, head, bias = data.leaves()
    rest = (-100, 3.0, 0.1, 0.1, True)
    first = (hidden, head, bias, data.labels, data.weight)
    normaliser = torch.tensor(3.0, device=DEVICE)
    for wanted, reduction, n in (((True, True, True), "mean", None), ((False, False, False), "none", 9)):
        divisor = normaliser if reduction == "mean" else None
        torch.library.opcheck(ops.forward_op, (*first, divisor, *wanted, reduction, True, n, BUDGET, *rest))
    plain = (data.hidden, data.head, data.bias, data.labels, None)
    torch.library.opcheck(
        ops.gradient_op, (data.upstream.float(), *plain, None, True, False, True, "none", True, None, None, *rest)
    )
    torch.library.opcheck(ops.scale_op, ([data.hidden.clone(), data.bias.clone()], normaliser))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compiled_without_a_graph_break(reduction: str) -> None:
    data = Data(torch.float32)
    hidden, head, bias = leaves = data.leaves()

    def step(x: Tensor, head: Tensor, bias: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        value, count = linear_cross_entropy(x * 2, head, labels, bias=bias, reduction=reduction, shift=True)
        return value * 3, count

    torch._dynamo.reset()
    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        value, count = function(hidden, head, bias, data.labels)
        back = data.upstream.float() if reduction == "none" else data.upstream[0, 0].float()
        results.append([value, count, *torch.autograd.grad(value, leaves, back)])
    assert_same(*results)


def test_rows_per_chunk() -> None:
    """Few large chunks; on an H200 (132 multiprocessors) whole waves of tiles of 128 x 256."""
    assert chunks.rows_per_chunk(8000, 152064, 3584, 2, chunks.GPU_BUDGET, 132) == 8000
    assert chunks.rows_per_chunk(10**6, 152064, 3584, 2, chunks.GPU_BUDGET, 132) == 66 * 128  # 7 waves of 132 tiles
    for width in (2048, 4096, 5120, 8192):
        waves = chunks.rows_per_chunk(10**6, 152064, width, 2, chunks.GPU_BUDGET, 132) / 128 * (width / 256) / 132
        assert 0.99 * math.ceil(waves) <= waves
    assert chunks.rows_per_chunk(10**6, 152064, 3584, 2, 100 * 152064 * 2, 132) == 100
    assert chunks.rows_per_chunk(1000, 50, 8, 4, 50 * 4 * 7, 0) == 7
    assert chunks.rows_per_chunk(1000, 50, 8, 4, 1, 0) == 1
    assert chunks.rows_per_chunk(0, 50, 8, 4, 1, 0) == 1


@pytest.mark.skipif(GPU, reason="on a GPU the kernel runs")
def test_without_interpreter_the_cpu_needs_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops.launch, "INTERPRETED", False)
    monkeypatch.setattr(ops.launch.kernels, "rows_kernel", None)
    data = Data(torch.float32)
    assert len(outcome(linear_cross_entropy, data)) == 4


ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
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
    changes, kind, message = ERRORS[name]
    arguments: dict[str, Any] = {"hidden": torch.zeros(2, 5, 4), "head": torch.zeros(9, 4)}
    arguments |= {"labels": torch.zeros(2, 5, dtype=torch.int64)} | changes
    with pytest.raises(kind, match=message):
        linear_cross_entropy(**arguments)
