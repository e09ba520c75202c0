"""The fused loss in a model: it runs, stores no logits, gives the loss and gradients of before, and comes out again."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import assay
from assay.audits.families.loss_run import loaded, uncached
from assay.audits.patch_calls import Calls
from assay.audits.patch_unmade import Unmade

FAMILIES = ("llama", "gemma2", "cohere", "granite", "gpt2", "phi", "mixtral", "llava", "qwen2_5_vl", "bert")
"""A soft-cap, a product and a quotient before the loss, a bias, experts, image families, positional arguments."""
IGNORED = -100

pytestmark = pytest.mark.usefixtures("one_thread")


@functools.lru_cache(maxsize=2)
def _built(name: str) -> Any:
    return loaded(name).build(0).train()


@pytest.fixture
def model() -> Any:
    return _built("llama")


def _batch(model: Any, name: str) -> dict[str, Any]:
    batch = loaded(name).batch(model, ("t9", "t4"), seed=1)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
    labels[0, :4] = IGNORED
    return {**batch, "labels": labels, **uncached(model)}


def _step(model: Any, name: str = "llama", **more: Any) -> tuple[Any, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    out = model(**_batch(model, name), **more)
    out.loss.backward()
    return out, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _close(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    largest = max(float(grad.abs().max()) for grad in left.values())
    return left.keys() == right.keys() and all(
        float((left[name] - right[name]).abs().max()) < 1e-5 * largest for name in left
    )


@pytest.mark.parametrize("how", ["kernel", "reference"])
@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_every_gradient_are_those_of_before(name: str, how: str) -> None:
    model = _built(name)
    plain, grads = _step(model, name)
    with assay.patch(model, masked_loss=how) as handle:
        fused, fused_grads = _step(model, name)
    assert fused.logits is None
    assert torch.allclose(plain.loss, fused.loss, rtol=1e-5)
    assert _close(grads, fused_grads)
    assert list(handle.calls.values()) == [Calls(forward=1, backward=1)]
    assert next(iter(handle.calls)).endswith(f"{type(model).__name__}.loss_function")


@pytest.mark.parametrize("more", [{"num_items_in_batch": 31}, {"num_items_in_batch": torch.tensor([31])}])
def test_the_count_of_the_step_is_honoured(model: Any, more: dict[str, Any]) -> None:
    plain, grads = _step(model, num_items_in_batch=31)
    with assay.patch(model, masked_loss="kernel"):
        fused, fused_grads = _step(model, **more)
    assert torch.allclose(plain.loss, fused.loss, rtol=1e-5)
    assert _close(grads, fused_grads)


def test_shifted_labels_are_honoured(model: Any) -> None:
    shifted = torch.roll(_batch(model, "llama")["labels"], -3, dims=1)
    plain, grads = _step(model, shift_labels=shifted)
    with assay.patch(model, masked_loss="kernel"):
        fused, fused_grads = _step(model, shift_labels=shifted)
    assert torch.allclose(plain.loss, fused.loss, rtol=1e-5)
    assert _close(grads, fused_grads)


def test_nothing_trained_on_is_zero(model: Any) -> None:
    """Where transformers gives NaN."""
    with assay.patch(model, masked_loss="kernel"):
        batch = _batch(model, "llama")
        loss = model(**batch | {"labels": torch.full_like(batch["labels"], IGNORED)}).loss
    assert loss.item() == 0


def test_a_compiled_model_trains_as_before(model: Any) -> None:
    plain, grads = _step(model)
    with assay.patch(model, masked_loss="kernel") as handle:
        model.zero_grad(set_to_none=True)
        compiled: Any = torch.compile(model, backend="aot_eager")
        loss = compiled(**_batch(model, "llama")).loss
        loss.backward()
    torch.compiler.reset()
    assert torch.allclose(plain.loss, loss, rtol=1e-5)  # float32, summed in another order
    assert _close(grads, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert list(handle.calls.values()) == [Calls(forward=1, backward=1)]


class _Largest(TorchDispatchMode):
    """The most elements that any operator returns, and the shapes of what has a vocabulary."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.shapes = vocabulary, set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for item in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(item, Tensor) and self.vocabulary in item.shape:
                self.shapes.add(tuple(item.shape))
        return out


def test_no_tensor_of_tokens_by_vocabulary(model: Any) -> None:
    """Forward and backward: what has a vocabulary is the head's, or its gradient's.

    The loss is one operator here; that it keeps to its chunks inside is shown with the kernel.
    """
    weights = {shape for p in model.parameters() for shape in (tuple(p.shape), tuple(p.shape)[::-1])}
    vocabulary = len(model.get_output_embeddings().weight)

    def shapes() -> set[tuple[int, ...]]:
        with _Largest(vocabulary) as seen:
            _step(model)
        return {shape for shape in seen.shapes if shape not in weights}

    assert shapes(), "the model as it is makes logits, or this test sees nothing"
    with assay.patch(model, masked_loss="kernel"):
        assert shapes() == set()


def test_without_labels_logits_are_made(model: Any) -> None:
    batch = _batch(model, "llama")
    del batch["labels"]
    with torch.no_grad():
        plain = model(**batch).logits
        with assay.patch(model, masked_loss="kernel") as handle:
            assert torch.equal(model(**batch).logits, plain)
    assert list(handle.calls.values()) == [Calls(0, 0)]


def test_tuples_hold_no_logits_either(model: Any) -> None:
    with assay.patch(model, masked_loss="kernel"):
        loss, logits = model(**_batch(model, "llama"), return_dict=False)[:2]
    assert loss.requires_grad
    assert logits is None


def test_undone_exactly(model: Any) -> None:
    """Also after an error in the forward."""
    kind, head = type(model), model.get_output_embeddings()
    before = (kind.forward, dict(vars(model)), dict(vars(head)))

    def broken(*_args: Any, **_kwargs: Any) -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), assay.patch(model, masked_loss=broken):
        _step(model)
    assert (kind.forward, dict(vars(model)), dict(vars(head))) == before


def test_only_the_model_asked_for(model: Any) -> None:
    """Not another of its class, nor its copy; a family's name means all of them."""
    other, twin = loaded("llama").build(1), copy.deepcopy(model)
    with assay.patch(model, masked_loss="kernel"):
        assert _step(other)[0].logits is not None
        assert _step(twin)[0].logits is not None
        assert _step(model)[0].logits is None
    with assay.patch("llama", masked_loss="kernel") as handle:
        assert _step(other)[0].logits is None
        assert _step(model)[0].logits is None
    assert list(handle.calls.values()) == [Calls(2, 2)]


def test_nested_and_undone_in_any_order(model: Any) -> None:
    original = type(model).forward
    outer = assay.patch(model, masked_loss="reference").apply()
    inner = assay.patch(model, masked_loss="kernel").apply()
    outer.undo()
    _step(model)
    assert list(outer.calls.values()) + list(inner.calls.values()) == [Calls(0, 0), Calls(1, 1)]
    with pytest.raises(RuntimeError, match="already patched"):
        inner.apply()
    inner.undo()
    assert type(model).forward is original
    assert _step(model)[0].logits is not None


def test_together_with_the_rotary() -> None:
    model = _built("qwen2_5_vl")
    with assay.patch(model, mrope="reference", masked_loss="kernel") as handle:
        out, _ = _step(model, "qwen2_5_vl")
    assert out.logits is None
    assert [calls.forward for calls in handle.calls.values()] == [2, 1]


def test_inside_wrappers(model: Any) -> None:
    with assay.patch(nn.Sequential(model), masked_loss="kernel"):
        assert _step(model)[0].logits is None


def test_what_cannot_be_fused_is_refused(model: Any) -> None:
    """By name, and before anything is trained wrongly."""
    with pytest.raises(LookupError, match=r"bart \(BartForCausalLM\): .*no forward in it hands logits"):
        assay.patch(_built("bart"), masked_loss="kernel")
    with pytest.raises(ValueError, match="'kernel', 'reference' or a callable, got 'fast'"):
        assay.patch(model, masked_loss="fast")
    other = copy.deepcopy(model)
    other.lm_head = nn.Sequential(other.lm_head)
    with pytest.raises(TypeError, match=r"llama \(LlamaForCausalLM\): its head is a Sequential"):
        assay.patch(other, masked_loss="kernel")
    other = copy.deepcopy(model)
    other.loss_function = lambda **_: None
    with pytest.raises(TypeError, match="its loss is <lambda>"):
        assay.patch(other, masked_loss="kernel")
    other = copy.deepcopy(model)
    other.forward = other.forward
    with pytest.raises(TypeError, match="patch before that"):
        assay.patch(other, masked_loss="kernel")


def test_whatever_is_done_to_unmade_logits_is_known_or_an_error() -> None:
    head = nn.Linear(3, 5, bias=False)
    unmade = Unmade(torch.ones(2, 4, 3), head, "a family")
    assert unmade.shape == (2, 4, 5)
    capped = torch.tanh(unmade.float() / 30.0) * 30.0
    assert (capped.softcap, capped.factor) == (30.0, pytest.approx(1.0))
    scaled = 0.5 * unmade.to(torch.float64).contiguous()
    assert (scaled.softcap, scaled.factor) == (None, 0.5)
    refused = [
        lambda: unmade[:, :-1],
        lambda: unmade + 1,
        lambda: unmade * torch.ones(5),
        lambda: torch.softmax(unmade, dim=-1),
        lambda: torch.tanh(torch.tanh(unmade)),
        lambda: torch.nn.functional.cross_entropy(unmade, torch.zeros(2, dtype=torch.long)),
        lambda: unmade.view(-1, 5),
    ]
    for wrong in refused:
        with pytest.raises((TypeError, AttributeError), match="a family: its forward applies"):
            wrong()
