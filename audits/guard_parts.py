"""The parameters of a model before a step and after it, told by its large parts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from assay.audits.guard_model import Sample, largest, local, named_parameters, rates, sample
from assay.audits.guard_step_laws import WHOLE

STEPS = 4
"""By how many steps of its dtype a parameter has to be moved for the move to be certain to show."""


class Ledger:
    """Samples of the trained parameters of a model and of their gradients. Everything stays where it lies."""

    def __init__(self, model: nn.Module, inner: nn.Module, parts: Iterable[str]) -> None:
        """Before the step. ``parts`` are the names of the parts of ``inner``, which ``model`` may be around."""
        self._named = named_parameters(model, inner)
        self._parts = (WHOLE, *parts)
        self._before = sample(self._elements())
        self._after = self._before
        self._grads = Sample((), ())
        self._tops: Tensor | None = None
        self._topped: list[int] = []
        self._none: list[bool] = [True] * len(self._named)
        self._frozen = [not parameter.requires_grad for parameter in self._named.values()]
        self._waiting: frozenset[int] = frozenset()
        self._rates: dict[int, Any] = {}

    def _elements(self) -> Iterator[Tensor | None]:
        """Those that are trained, and frozen ones with an old gradient, which an optimizer may still update."""
        return (
            parameter if parameter.requires_grad or parameter.grad is not None else None
            for parameter in self._named.values()
        )

    def frozen(self, words: Sequence[str]) -> list[str]:
        """The names of parameters with one of these words in them that are not to be trained."""
        named = self._named.items() if words else ()
        return [name for name, one in named if not one.requires_grad and any(word in name for word in words)]

    def graded(self, optimizers: Sequence[Any]) -> None:
        """Between the backward passes and the step."""
        grads = [parameter.grad for parameter in self._named.values()]
        self._none = [grad is None for grad in grads]
        still = zip(self._frozen, self._named.values(), strict=True)
        self._frozen = [was and not parameter.requires_grad for was, parameter in still]
        self._grads = sample(grads)
        dense = {number: own for number, grad in enumerate(grads) if (own := _dense(grad)) is not None}
        self._topped = list(dense)
        self._tops = largest(list(dense.values())) if dense else None
        self._rates = {id(parameter): rate for parameter, rate in rates(optimizers)}

    def waiting(self, optimizers: Sequence[Any]) -> None:
        """These optimizers have made no step in this one: it is not their turn."""
        self._waiting = frozenset(id(parameter) for parameter, _ in rates(optimizers))

    def tensors(self) -> dict[str, Tensor]:
        """After the step: what the rows are made of, where it lies."""
        self._after = sample(self._elements())
        groups = {"before": self._before, "after": self._after, "grads": self._grads}
        found = {f"{name}.{at}": group for name, own in groups.items() for at, group in enumerate(own.groups)}
        found |= {f"rate.{key}": rate.detach() for key, rate in self._rates.items() if isinstance(rate, Tensor)}
        return found | ({} if self._tops is None else {"tops": self._tops})

    def rows(self, got: Mapping[str, Tensor], called: Mapping[str, bool] | None) -> list[dict[str, Any]]:
        """Of each part, the model first: JSON of what its parameters were and became, of the fetched tensors."""
        facts = dict(zip(self._named, self._facts(got), strict=True))
        seen = {} if called is None else {WHOLE: True, **called}
        own = {part: [fact for name, fact in facts.items() if _within(name, part)] for part in self._parts}
        return [_row(part, held, seen) for part, held in own.items() if held]

    def _facts(self, got: Mapping[str, Tensor]) -> Iterator[dict[str, Any]]:
        """Of each parameter."""
        samples = {"before": self._before, "after": self._after, "grads": self._grads}
        held = {
            name: own.told([got[f"{name}.{at}"] for at in range(len(own.groups))], len(self._named))
            for name, own in samples.items()
        }
        tops = dict(zip(self._topped, got["tops"].tolist(), strict=True)) if "tops" in got else {}
        known = {key: _number(got, key, rate) for key, rate in self._rates.items()}
        highest = max((rate for rate in known.values() if rate is not None), default=None)
        for number, parameter in enumerate(self._named.values()):
            old, new, grad = (held[name][number] for name in ("before", "after", "grads"))
            # Of a parameter that no optimiser holds, copies may be held: then the largest rate of all.
            waits, outside = id(parameter) in self._waiting, id(parameter) not in self._rates
            rate, outside = (0.0, True) if waits else (known.get(id(parameter), highest), outside)
            yield {
                "trained": parameter.requires_grad,
                "none": self._none[number],
                "consumed": bool(getattr(parameter, "_post_accumulate_grad_hooks", None)),
                "top": tops.get(number),
                "outside": outside,
                "stale": self._frozen[number] and bool(old) and old != new and not (self._none[number] or outside),
                "moved": old != new,
                "rate": rate or 0.0,
                "expected": _expected(rate, torch.finfo(parameter.dtype).eps, old, grad) if old else False,
            }


def _within(name: str, part: str) -> bool:
    return part == WHOLE or name.startswith(f"{part}.")


def _expected(rate: float | None, eps: float, old: Sequence[float], grad: Sequence[float]) -> bool:
    """Whether a step that is taken must show in one of the elements that are looked at."""
    if rate is None or rate <= 0:
        return False
    pairs = zip(old, grad, strict=False)
    return any(min(rate, rate * abs(slope)) > STEPS * eps * abs(value) for value, slope in pairs)


def _number(got: Mapping[str, Tensor], key: int, rate: Any) -> float | None:
    return None if rate is None else float(got.get(f"rate.{key}", rate))


def _dense(grad: Tensor | None) -> Tensor | None:
    own = None if grad is None else local(grad)
    return own if own is not None and own.layout == torch.strided and own.numel() and not own.is_meta else None


def _row(name: str, facts: Sequence[Mapping[str, Any]], called: Mapping[str, bool]) -> dict[str, Any]:
    trained = [fact for fact in facts if fact["trained"]]
    tops = [fact["top"] for fact in trained if fact["top"] is not None]
    finite = all(math.isfinite(top) for top in tops)
    return {
        "name": name,
        "trained": len(trained),
        "frozen": len(facts) - len(trained),
        "without": sum(fact["none"] for fact in trained),
        "consumed": any(fact["none"] and fact["consumed"] for fact in trained),
        "learns": any(fact["rate"] > 0 for fact in trained),
        "called": name in called,
        "recorded": called.get(name, False),
        "finite": finite,
        "top": max(tops, default=0.0) if finite else None,
        "moved": any(fact["moved"] for fact in trained),
        "expected": any(fact["expected"] for fact in trained),
        "outside": sum(fact["outside"] for fact in trained),
        "stale": sum(fact["stale"] for fact in facts),
    }
