"""Wrong conduct around a right function: what any operation with gradients can do wrong, whatever it computes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from assay.audits.fault import CONSTRUCTED
from assay.audits.terms import Fault, Implementation, Operation, Outputs

Wrap = Callable[[Implementation, str, Any], Outputs]
"""The right implementation, the name of its main input, and the inputs record, to a wrong answer."""

_calls = itertools.count()
_last: dict[str, float] = {}


class _Shared(torch.autograd.Function):
    """The identity. Its backward reads what the latest forward has left behind."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.own = float(x.detach().double().abs().sum()) + 1.0
        _last["size"] = ctx.own
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        given: Tensor = grad * (_last["size"] / ctx.own)
        return given


class _Spent(torch.autograd.Function):
    """The identity. Its backward scales what it saved in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.scale = torch.ones(())
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        given: Tensor = grad * ctx.scale.to(grad)
        ctx.scale.mul_(2)
        return given


class _Strided(torch.autograd.Function):
    """The identity. Its backward reads the upstream gradient as if it were dense."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> Tensor:
        stored = torch.empty(0, dtype=grad.dtype, device=grad.device).set_(grad.untyped_storage())
        stored = stored[grad.storage_offset() :]
        times = -(-grad.numel() // max(1, len(stored)))  # what was expanded has fewer elements than it shows
        return stored.repeat(times)[: grad.numel()].reshape(grad.shape).clone()


def _through(function: Any) -> Wrap:
    """The main input passes through an autograd function first."""

    def wrong(right: Implementation, name: str, inputs: Any) -> Outputs:
        return right(dataclasses.replace(inputs, **{name: function.apply(getattr(inputs, name))}))

    return wrong


def _on_outputs(change: Callable[[Tensor], Tensor]) -> Wrap:
    return lambda right, _name, inputs: {name: change(value) for name, value in right(inputs).items()}


def _seeds(right: Implementation, _name: str, inputs: Any) -> Outputs:
    torch.manual_seed(0)
    return right(inputs)


def _writes(right: Implementation, name: str, inputs: Any) -> Outputs:
    found = right(inputs)
    getattr(inputs, name).data.mul_(0.5)  # as a kernel writes: autograd does not see it
    return found


def _strided(right: Implementation, _name: str, inputs: Any) -> Outputs:
    passed: Any = _Strided.apply
    return {name: passed(value) for name, value in right(inputs).items()}


def _asks_for_all(operation: Operation) -> Wrap:
    def wrong(right: Implementation, _name: str, inputs: Any) -> Outputs:
        given = {name: getattr(inputs, name) for name in operation.differentiable}
        given = {name: value for name, value in given.items() if value is not None}
        if all(value.requires_grad for value in given.values()):
            return right(inputs)
        return right(dataclasses.replace(inputs, **{name: value.detach() for name, value in given.items()}))

    return wrong


def _hides(right: Implementation, name: str, inputs: Any) -> Outputs:
    return right(dataclasses.replace(inputs, **{name: getattr(inputs, name).nan_to_num()}))


Kind = tuple[str, tuple[str, ...], str, str, Wrap]
"""Name, the laws that catch it, why, effect, and what is done around the right implementation."""
KINDS: tuple[Kind, ...] = (
    ("seeds-the-generator", ("leaks",), "The global generator is seeded to draw the same sample each time.",
     "Every dropout mask of the run is the same.", _seeds),
    ("writes-into-its-input", ("mutates",), "What the backward needs is prepared in the memory of the input.",
     "Whoever reads the input afterwards, metrics or another branch, reads something else.", _writes),
    ("another-answer-each-time", ("nondeterministic",), "Partial sums are added in an order that is never the same.",
     "Two runs of one seed part, and nobody can say why.", _on_outputs(lambda x: x * (1 + 1e-2 * (next(_calls) % 89)))),
    ("returns-float64", ("returns",), "A constant in float64 promotes the result.",
     "All that it meets is promoted too, in silence.", _on_outputs(Tensor.double)),
    ("backward-of-the-latest-forward", ("interleaved",), "The backward reads a buffer of the module.",
     "With micro-batches in flight, or two losses, gradients belong to the wrong batch.", _through(_Shared)),
    ("saved-scale-spent", ("retained",), "The backward scales what it saved in place.",
     "A second loss on the same graph gets another gradient.", _through(_Spent)),
    ("another-path-without-grad", ("modes",), "Where no gradient is recorded, another path is taken.",
     "Evaluation and training report numbers that cannot be compared.",
     _on_outputs(lambda x: x if torch.is_grad_enabled() and x.requires_grad else x * 1.25 + 0.25)),
)  # fmt: skip
STRIDED = (
    "upstream-read-as-dense", ("upstream",), "The backward reads the upstream gradient as if it were dense.",
    "The gradient of a sum, which has strides of zero, is another one.",
    _strided,
)  # fmt: skip
HIDDEN = (
    "nan-replaced", ("visible",), "What is not a number is replaced by zero to get past one bad batch.",
    "An overflow anywhere before is never seen, and trained around.", _hides,
)  # fmt: skip


def frozen(operation: Operation) -> Kind:
    """Gradients for all inputs or none."""
    return (
        "all-or-nothing", ("frozen",), "Gradients are made only if every input wants one.",
        "With one part frozen, nothing is trained and nothing fails.", _asks_for_all(operation),
    )  # fmt: skip


def faults(operation: Operation, right: Implementation, name: str, *further: Kind) -> tuple[Fault, ...]:
    """The wrong conduct of every kind around ``right``, whose main input is ``name``."""
    return tuple(_fault(operation, right, name, kind) for kind in (*KINDS, *further))


def _fault(operation: Operation, right: Implementation, name: str, kind: Kind) -> Fault:
    title, caught_by, why, effect, wrap = kind
    return Fault(
        name=title, operation=operation.name, why=why, effect=effect, link=CONSTRUCTED, caught_by=caught_by,
        wrong=lambda inputs: wrap(right, name, inputs),
    )  # fmt: skip
