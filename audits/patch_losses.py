"""Puts a fused linear cross-entropy into a model: its loss from its hidden states, with no logits stored.

While a patched model's forward runs with labels, its head hands on what it was given (``patch_unmade``), and the
model's ``loss_function`` makes the loss of it with the head's weight and bias. Whatever the forward does in between is
either known or an error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from assay.audits.families import causal
from assay.audits.patch_calls import Meter
from assay.audits.patch_slots import Slot
from assay.audits.patch_unmade import Unmade

Fused = Callable[..., Any]
"""``(hidden, head, labels, *, bias, shift, ignore_index, softcap, normaliser)``; gives a loss, or a tuple with it."""


class LossPatch:
    """One replacement of a model's loss, for one live model or for every model of a family's class."""

    def __init__(self, target: nn.Module | str, masked_loss: str | Fused) -> None:
        """Find the forward that computes the loss; nothing is changed yet."""
        fused = masked_loss if callable(masked_loss) else _named(masked_loss)
        model = _holder(_built(target) if isinstance(target, str) else target)
        kind = type(model)
        self.site = f"{kind.__module__}.{kind.__qualname__}.loss_function"
        self._only = None if isinstance(target, str) else weakref.ref(model)
        self._slot = Slot(kind, "forward", f"{kind.__qualname__}.forward")
        self._signature = inspect.signature(self._slot.original)
        self.meter = Meter()
        self._fused = self.meter.wrap(self.site, functools.partial(_loss, fused))
        _check(model)

    def apply(self) -> None:
        """Put the replacement in. RuntimeError when it is in already."""

        @functools.wraps(self._slot.original)
        def forward(model: Any, *args: Any, **kwargs: Any) -> Any:
            mine = self._only is None or self._only() is model
            labelled = mine and self._labels(model, args, kwargs) is not None
            below = functools.partial(self._slot.below, model)
            return self._run(model, below, args, kwargs) if labelled else below(*args, **kwargs)

        self._slot.fill(forward)

    def undo(self) -> None:
        """Put back exactly what was there. Does nothing when the replacement is not in."""
        self._slot.clear()

    def _labels(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._signature.bind_partial(model, *args, **kwargs).arguments.get("labels")

    def _run(self, model: Any, below: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The forward with its head and its loss replaced while it runs; its answer has no logits."""
        _check(model)
        before = self.meter.calls[self.site].forward
        with _handing_on(model), _losing(model, self._fused):
            answer = below(*args, **kwargs)
        if self.meter.calls[self.site].forward == before:
            message = f"{_title(model)}: labels were given and its loss_function was not called"
            raise RuntimeError(message)
        return without_logits(answer)


def kernel(model: nn.Module) -> None:
    """The project's own fused loss as a user's patch."""
    LossPatch(model, "kernel").apply()


def reference(model: nn.Module) -> None:
    """The readable loss as a user's patch."""
    LossPatch(model, "reference").apply()


def without_logits(answer: Any) -> Any:
    """A model's output with None for logits that were not made, in a record or a tuple."""
    if isinstance(answer, tuple):
        return tuple(None if isinstance(item, Unmade) else item for item in answer)
    left = {name: None for name, value in answer.items() if isinstance(value, Unmade)}
    return dataclasses.replace(answer, **left)


def _loss(
    fused: Fused, logits: Any, labels: Tensor | None, vocab_size: int, num_items_in_batch: Any = None,
    ignore_index: int = -100, shift_labels: Tensor | None = None, **_ignored: Any,
) -> Tensor:  # fmt: skip
    """The loss in the signature of transformers' ``ForCausalLMLoss``, from logits that were not made."""
    if not isinstance(logits, Unmade):
        message = "between its head and its loss the model made a tensor of its own; run it without masked_loss"
        raise TypeError(message)
    head, hidden = logits.head, logits.hidden
    if vocab_size != len(head.weight):
        message = f"{logits.name}: its loss has {vocab_size} classes, its head {len(head.weight)}"
        raise TypeError(message)
    wanted = labels if shift_labels is None else shift_labels
    assert wanted is not None
    scaled = logits.factor != 1
    bias = head.bias * logits.factor if scaled and head.bias is not None else head.bias
    told = fused(
        hidden * logits.factor if scaled else hidden, head.weight, wanted.to(hidden.device), bias=bias,
        shift=shift_labels is None, ignore_index=ignore_index, softcap=logits.softcap,
        normaliser=_divisor(num_items_in_batch, hidden.device),
    )  # fmt: skip
    value: Tensor = told[0] if isinstance(told, tuple) else told
    return value


def _divisor(items: Any, device: torch.device) -> Any:
    """``num_items_in_batch`` as a divisor: one number, on the device of the loss."""
    if isinstance(items, Tensor):
        return items.detach().reshape(()).to(device)
    return items


def _named(name: str) -> Fused:
    if name == "kernel":
        from assay.kernels.linear_cross_entropy import linear_cross_entropy as fused
    elif name == "reference":
        from assay.reference.linear_cross_entropy import linear_cross_entropy as fused  # type: ignore[assignment]  # two functions of one signature
    else:
        message = f"masked_loss: expected 'kernel', 'reference' or a callable, got {name!r}"
        raise ValueError(message)
    return fused


def _built(name: str) -> nn.Module:
    found = causal.family(name)
    if isinstance(found, str):
        raise LookupError(found)
    model: nn.Module = found.build(0)
    return model


def _holder(model: nn.Module) -> nn.Module:
    """The module whose forward hands logits to ``loss_function``: the model itself, or one inside wrappers."""
    for module in model.modules():
        code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
        if code and "loss_function" in code.co_names and hasattr(module, "get_output_embeddings"):
            return module
    message = f"{_title(model)}: no forward in it hands logits to a loss_function, so there is none to replace"
    raise LookupError(message)


def _title(model: Any) -> str:
    kind = getattr(getattr(model, "config", None), "model_type", "")
    return f"{kind} ({type(model).__name__})" if kind else type(model).__name__


def _check(model: Any) -> None:
    """TypeError for a head or a loss that the fused loss cannot stand for."""
    from transformers.loss.loss_utils import ForCausalLMLoss

    head = model.get_output_embeddings()
    plain = isinstance(head, nn.Linear) and type(head).forward is nn.Linear.forward and "forward" not in vars(head)
    if not plain:
        message = f"{_title(model)}: its head is a {type(head).__name__}, not a plain linear layer"
        raise TypeError(message)
    if "forward" in vars(model):
        message = f"{_title(model)}: its forward is another's (accelerate wraps models so); patch before that"
        raise TypeError(message)
    if model.loss_function is not ForCausalLMLoss:
        name = getattr(model.loss_function, "__name__", type(model.loss_function).__name__)
        message = f"{_title(model)}: its loss is {name}, not the cross-entropy of a causal language model"
        raise TypeError(message)


@contextlib.contextmanager
def _handing_on(model: Any) -> Iterator[None]:
    """The model's head hands on what it is given."""
    head = model.get_output_embeddings()
    head.forward = functools.partial(Unmade, head=head, name=_title(model))
    try:
        yield
    finally:
        del head.forward


@contextlib.contextmanager
def _losing(model: Any, loss: Callable[..., Tensor]) -> Iterator[None]:
    """The model's ``loss_function`` is another."""
    set_before = "_loss_function" in vars(model)
    before = model.loss_function
    model.loss_function = loss
    try:
        yield
    finally:
        if set_before:
            model.loss_function = before
        else:
            del model._loss_function  # noqa: SLF001 - where transformers' own setter keeps it
