"""Cross-entropy of the specification: known answers, torch's own, masked rows, gradients, and arguments refused."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from assay.reference.masked_loss import Loss, cross_entropy

EXAMPLES = settings(deadline=None, derandomize=True, database=None)
EPS = torch.finfo(torch.float64).eps
IGNORED = -100


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def batch(*, rows: int = 2, tokens: int = 5, vocabulary: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [B, S, V], labels with unequal counts per row, the last label of the first row ignored, weights."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, vocabulary, (rows, tokens), generator=generator)
    labels[0, -1] = labels[1, :3] = IGNORED
    weight = torch.rand(rows, tokens, generator=generator, dtype=torch.float64) + 0.1
    return random(rows, tokens, vocabulary), labels, weight


def close(got: Tensor, expected: Tensor | float, *, reach: float = 1.0) -> None:
    """Within 64 roundings of float64 at the largest magnitude that enters."""
    truth = torch.as_tensor(expected, dtype=torch.float64)
    assert got.shape == truth.shape
    assert got.dtype == torch.float64
    scale = max(reach, float(truth.detach().abs().max()) if truth.numel() else 0.0)
    assert float((got - truth).detach().abs().max()) <= 64 * EPS * scale


def gradient(loss: Loss, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss.value, inputs)


def test_uniform_logits_give_log_v() -> None:
    value, count = cross_entropy(torch.full((3, 11), 7.5, dtype=torch.float64), torch.tensor([0, 10, 4]))
    close(value, math.log(11))
    assert count.dtype == torch.int64
    assert int(count) == 3


def test_by_hand() -> None:
    """Two logits, so that everything is a logistic function of their difference."""
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]], dtype=torch.float64)
    labels = torch.tensor([1, 0])
    nll = torch.tensor([math.log(4 / 3), math.log(2)], dtype=torch.float64)
    mean_over_vocabulary = torch.tensor([(math.log(4) + math.log(4 / 3)) / 2, math.log(2)], dtype=torch.float64)
    squared = torch.tensor([math.log(4) ** 2, math.log(2) ** 2], dtype=torch.float64)
    close(cross_entropy(logits, labels, reduction="none").value, nll)
    close(cross_entropy(logits, labels, reduction="sum").value, nll.sum())
    close(cross_entropy(logits, labels).value, nll.mean())
    close(cross_entropy(logits, labels, normaliser=8.0).value, nll.sum() / 8)
    close(cross_entropy(logits, labels, normaliser=torch.tensor(8)).value, nll.sum() / 8)
    smooth = cross_entropy(logits, labels, label_smoothing=0.25, reduction="none")
    close(smooth.value, 0.75 * nll + 0.25 * mean_over_vocabulary)
    close(cross_entropy(logits, labels, z_loss=0.5, reduction="none").value, nll + 0.5 * squared)
    weight = torch.tensor([3.0, 0.5], dtype=torch.float64)
    close(cross_entropy(logits, labels, weight=weight).value, (3 * nll[0] + 0.5 * nll[1]) / 3.5)
    close(cross_entropy(logits, labels, weight=weight, normaliser=4).value, (3 * nll[0] + 0.5 * nll[1]) / 4)
    close(cross_entropy(logits, labels, weight=weight, reduction="none").value, weight * nll)


def test_softcap_by_hand() -> None:
    """artanh(1/2) is log(3) / 2: at cap 2 the logit log 3 becomes 1, and 0 stays 0."""
    logits = torch.tensor([[0.0, math.log(3.0)]], dtype=torch.float64)
    close(cross_entropy(logits, torch.tensor([1]), softcap=2.0).value, math.log(1 + math.exp(-1)))
    both = cross_entropy(logits, torch.tensor([1]), softcap=2.0, z_loss=0.1, label_smoothing=0.5)
    lse = math.log(1 + math.e)
    close(both.value, lse - 0.75 + 0.1 * lse**2)  # half of (lse - 1) and half of the mean of lse - 1 and lse


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("ignore_index", [-100, 3])
def test_torch_agrees(ignore_index: int, label_smoothing: float, reduction: Any) -> None:
    logits, labels, _ = batch()
    labels[labels == IGNORED] = ignore_index
    logits.requires_grad_()
    options: dict[str, Any] = {"ignore_index": ignore_index, "label_smoothing": label_smoothing, "reduction": reduction}
    ours = cross_entropy(logits, labels, **options)
    theirs = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), **options)
    close(ours.value, theirs.reshape(ours.value.shape))
    upstream = random(*ours.value.shape, seed=5)
    got, expected = (
        torch.autograd.grad(value, logits, upstream.reshape(value.shape))[0] for value in (ours.value, theirs)
    )
    close(got, expected)
    assert int(ours.count) == int((labels != ignore_index).sum())


@EXAMPLES
@given(data=st.data())
def test_shift_is_the_shifted_call(data: st.DataObject) -> None:
    rows, tokens = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 4))
    labels = torch.tensor([[data.draw(st.integers(-1, 4)) for _ in range(tokens)] for _ in range(rows)])
    labels = labels.reshape(rows, tokens).to(torch.int64)
    logits, weight = random(rows, tokens, 5), random(rows, tokens, seed=1).abs()
    options: dict[str, Any] = {"ignore_index": -1, "softcap": 3.0, "z_loss": 0.1, "label_smoothing": 0.2}
    for reduction in ("none", "sum", "mean"):
        options["reduction"] = reduction
        ours = cross_entropy(logits, labels, shift=True, weight=weight, **options)
        cut = cross_entropy(logits[:, :-1], labels[:, 1:], weight=weight[:, 1:], **options)
        assert int(ours.count) == int(cut.count)
        if reduction == "none":
            assert torch.equal(ours.value[:, :-1], cut.value)
            assert not ours.value[:, -1:].any()
        else:
            assert torch.equal(ours.value, cut.value)


def test_the_first_label_of_a_shifted_row_is_nobodys() -> None:
    logits, labels, weight = batch()
    expected = cross_entropy(logits, labels, shift=True, weight=weight)
    labels[:, 0], weight[:, 0] = 10**9, math.nan
    assert torch.equal(cross_entropy(logits, labels, shift=True, weight=weight).value, expected.value)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("shift", [False, True])
def test_gradients(shift: bool, reduction: Any) -> None:
    logits, labels, weight = batch(tokens=4, vocabulary=4)
    labels = labels.clamp(max=3)

    def value(logits: Tensor, weight: Tensor) -> Tensor:
        return cross_entropy(
            logits,
            labels,
            shift=shift,
            weight=weight,
            softcap=2.0,
            label_smoothing=0.3,
            z_loss=0.1,
            reduction=reduction,
        ).value

    assert torch.autograd.gradcheck(value, (logits.requires_grad_(), weight.requires_grad_()))


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_what_stands_in_ignored_rows_changes_nothing(poison: float, reduction: Any) -> None:
    logits, labels, weight = batch()
    ignored = labels == IGNORED
    options: dict[str, Any] = {"softcap": 2.0, "label_smoothing": 0.1, "z_loss": 0.1, "reduction": reduction}
    results = []
    for spoilt in (False, True):
        x, w = logits.clone(), weight.clone()
        if spoilt:
            x[ignored] = w[ignored] = poison
        x.requires_grad_()
        w.requires_grad_()
        loss = cross_entropy(x, labels, weight=w, **options)
        results.append((loss.value, *torch.autograd.grad(loss.value, (x, w), random(*loss.value.shape, seed=3))))
    for clean, spoilt in zip(*results, strict=True):
        assert torch.equal(clean, spoilt)
    for grad in results[1][1:]:
        assert not grad[ignored].any()
        assert grad[~ignored].all()
    if reduction == "none":
        assert not results[1][0][ignored].any()


@pytest.mark.parametrize("normaliser", [None, 3.0, torch.tensor(0), torch.tensor(math.nan), torch.tensor(2.5)])
@pytest.mark.parametrize("shape", [(2, 3), (0,), (2, 0)])
def test_nothing_valid_is_zero(shape: tuple[int, ...], normaliser: Any) -> None:
    logits = torch.full((*shape, 5), math.nan, dtype=torch.float64, requires_grad=True)
    labels = torch.full(shape, IGNORED)
    loss = cross_entropy(logits, labels, normaliser=normaliser, label_smoothing=0.1, z_loss=0.1)
    assert loss.value.item() == 0.0
    assert loss.count.item() == 0
    (grad,) = gradient(loss, logits)
    assert grad.shape == logits.shape
    assert not grad.any()
    for reduction in ("none", "sum"):
        other = cross_entropy(logits, labels, reduction=reduction)  # type: ignore[arg-type]  # a string here
        assert not other.value.any()
        assert not torch.autograd.grad(other.value.sum(), logits)[0].any()


def test_weights_that_add_up_to_zero_give_zero_and_keep_the_count() -> None:
    logits = torch.full((2, 5), math.nan, dtype=torch.float64, requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([1, 2]), weight=torch.zeros(2))
    assert loss.value.item() == 0.0
    assert loss.count.item() == 2
    assert not gradient(loss, logits)[0].any()
    tiny = torch.full((2,), 1e-46, dtype=torch.float64)  # 0 in float32, in which float32 logits are weighted
    assert cross_entropy(torch.zeros(2, 5), torch.tensor([1, 2]), weight=tiny).value.item() == 0.0


def test_weights_of_zero_have_a_gradient_where_they_are_no_divisor() -> None:
    logits, labels = torch.zeros(2, 5, dtype=torch.float64), torch.tensor([1, 2])
    weight = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    for options in ({"reduction": "sum"}, {"reduction": "none"}, {"normaliser": 0.5}):
        value = cross_entropy(logits, labels, weight=weight, **options).value  # type: ignore[arg-type]  # options by name
        assert not value.any()
        scale = 2 if "normaliser" in options else 1
        close(torch.autograd.grad(value.sum(), weight)[0], torch.full((2,), scale * math.log(5), dtype=torch.float64))


def test_a_tensor_normaliser_is_used_as_it_is() -> None:
    logits, labels = torch.zeros(1, 3, dtype=torch.float64), torch.tensor([1])
    assert cross_entropy(logits, labels, normaliser=torch.tensor(0.0)).value.item() == math.inf
    close(cross_entropy(logits, labels, normaliser=torch.tensor(-2, dtype=torch.int32)).value, math.log(3) / -2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    """The arithmetic is that of float32 on the exact inputs; the gradient is rounded once."""
    logits, labels, weight = batch()
    logits = logits.to(dtype).requires_grad_()
    wide = logits.detach().to(torch.float64 if dtype == torch.float64 else torch.float32).requires_grad_()
    ours, theirs = (cross_entropy(x, labels, weight=weight, softcap=5.0) for x in (logits, wide))
    assert ours.value.dtype == wide.dtype
    assert torch.equal(ours.value, theirs.value)
    assert torch.equal(gradient(ours, logits)[0], gradient(theirs, wide)[0].to(dtype))
    by_counts = cross_entropy(logits, labels, normaliser=torch.tensor(3, dtype=torch.float64))
    assert by_counts.value.dtype == wide.dtype


def test_options_fade_out() -> None:
    """Towards zero, or towards an infinite cap, each option meets the call without it."""
    logits, labels, _ = batch()
    plain = cross_entropy(logits, labels).value
    for name, small in (("label_smoothing", 1e-12), ("z_loss", 1e-12), ("softcap", 1e5)):
        faded = cross_entropy(logits, labels, **{name: small}).value  # type: ignore[arg-type]  # options by name
        assert faded != plain
        assert abs(float(faded - plain)) < 1e-9
    masked = logits.clone()
    masked[..., 0] = -math.inf
    assert cross_entropy(masked, labels.clamp(min=1)).value.isfinite()


def test_a_batch_cut_into_unequal_parts_adds_up() -> None:
    logits, labels, weight = batch(rows=4, tokens=6)
    logits.requires_grad_()
    whole = cross_entropy(logits, labels, weight=weight, shift=True, normaliser=13)
    parts = [
        cross_entropy(logits[at], labels[at], weight=weight[at], shift=True, normaliser=13)
        for at in (slice(0, 1), slice(1, 4))
    ]
    close(parts[0].value + parts[1].value, whole.value.detach())
    assert int(parts[0].count + parts[1].count) == int(whole.count)
    assert parts[0].count != parts[1].count
    close(gradient(Loss(parts[0].value + parts[1].value, whole.count), logits)[0], gradient(whole, logits)[0])


USUAL: dict[str, Any] = {"logits": torch.zeros(2, 3, 5), "labels": torch.zeros(2, 3, dtype=torch.int64)}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"logits": [[0.0]]}, TypeError, "logits: expected a tensor, got list"),
        ({"logits": torch.zeros(2, 3, 5, dtype=torch.int64)}, TypeError, "logits: expected a floating dtype"),
        ({"logits": torch.zeros(2, 3, 0)}, ValueError, r"logits: .*\[2, 3, 0\]"),
        ({"logits": torch.zeros(())}, ValueError, "logits"),
        ({"labels": torch.zeros(2, 3, dtype=torch.int32)}, TypeError, r"labels: expected torch.int64, got torch.int32"),
        ({"labels": torch.zeros(6, dtype=torch.int64)}, ValueError, r"labels: expected the shape \[2, 3\], got \[6\]"),
        ({"labels": torch.zeros(2, 3, dtype=torch.int64, device="meta")}, ValueError, "labels: .*cpu.*meta"),
        ({"labels": torch.tensor([[0, 0, 0], [4, 5, -1]])}, ValueError, r"labels: .*0 to 4.*got 5 at \[1, 1\]"),
        ({"labels": torch.tensor([[0, 0, -1], [0, 0, 0]])}, ValueError, r"labels: .*-100, got -1 at \[0, 2\]"),
        ({"labels": torch.tensor([[9, 7, 0]] * 2), "shift": True}, ValueError, r"labels: .*got 7 at \[0, 1\]"),
        ({"logits": torch.zeros(5), "labels": torch.tensor(1), "shift": True}, ValueError, "labels: .*0-d"),
        ({"ignore_index": 1.0}, TypeError, "ignore_index: expected an int, got float"),
        ({"ignore_index": True}, TypeError, "ignore_index"),
        ({"weight": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "weight: expected a floating dtype"),
        ({"weight": torch.zeros(5)}, ValueError, r"weight: expected the shape \[2, 3\], got \[5\]"),
        ({"softcap": 0.0}, ValueError, "softcap: .*above 0, or None, got 0.0"),
        ({"softcap": math.inf}, ValueError, "softcap"),
        ({"softcap": math.nan}, ValueError, "softcap"),
        ({"softcap": True}, TypeError, "softcap"),
        ({"label_smoothing": 1.0}, ValueError, r"label_smoothing: expected a number in \[0, 1\), got 1.0"),
        ({"label_smoothing": -0.1}, ValueError, "label_smoothing"),
        ({"label_smoothing": None}, TypeError, "label_smoothing"),
        ({"z_loss": -1e-4}, ValueError, "z_loss: .*at least 0"),
        ({"z_loss": math.nan}, ValueError, "z_loss"),
        ({"reduction": "average"}, ValueError, "reduction: .*'average'"),
        (
            {"normaliser": 4.0, "reduction": "sum"},
            ValueError,
            "normaliser: expected None with reduction='sum', got 4.0",
        ),
        ({"normaliser": 4.0, "reduction": "none"}, ValueError, "normaliser: .*'none'"),
        ({"normaliser": 0}, ValueError, "normaliser: expected a finite number above 0, got 0"),
        ({"normaliser": -3.0}, ValueError, "normaliser"),
        ({"normaliser": math.inf}, ValueError, "normaliser"),
        ({"normaliser": math.nan}, ValueError, "normaliser"),
        ({"normaliser": True}, TypeError, "normaliser: expected a tensor or a number, got bool"),
        ({"normaliser": torch.tensor([4.0])}, ValueError, r"normaliser: expected a 0-d tensor, got the shape \[1\]"),
        ({"normaliser": torch.tensor(True)}, TypeError, "normaliser: .*torch.bool"),
        ({"normaliser": torch.tensor(4.0, device="meta")}, ValueError, "normaliser: .*cpu.*meta"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        cross_entropy(**(USUAL | arguments))
