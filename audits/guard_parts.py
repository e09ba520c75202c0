"""The parameters of a model before a step and after it, told by its large parts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from assay.audits.guard_model import Sample, largest, local, rates, sample
from assay.audits.guard_step_laws import WHOLE

STEPS = 4
"""By how many steps of its dtype a parameter has to be moved for the move to be certain to show."""


class Ledger:
    """Samples of the trained parameters of a model and of their gradients. Everything stays where it lies."""

    def __init__(self, inner: nn.Module, parts: Mapping[str, nn.Module]) -> None:
        """Before the step."""
        self._named = dict(inner.named_parameters())
        self._parts = {WHOLE: inner, **parts}
        self._all = list(self._named.values())
        self._before = sample(self._elements())
        self._grads = Sample((), (None,) * len(self._all))
        self._tops: Tensor | None = None
        self._topped: list[int] = []
        self._none = [True] * len(self._all)
        self._rates: dict[int, Any] = {}
        self._top_rate: tuple[float | None] | None = None
        self._after = self._before

    def _elements(self) -> Iterator[Tensor | None]:
        return (parameter if parameter.requires_grad else None for parameter in self._all)

    def graded(self, optimizers: Sequence[Any]) -> None:
        """Between the backward passes and the step."""
        grads = [parameter.grad for parameter in self._all]
        self._none = [grad is None for grad in grads]
        self._grads = sample(grads)
        dense = {number: own for number, grad in enumerate(grads) if (own := _dense(grad)) is not None}
        self._topped = list(dense)
        self._tops = largest(list(dense.values())) if dense else None
        self._rates = {id(parameter): rate for parameter, rate in rates(optimizers)}

    def tensors(self) -> dict[str, Tensor]:
        """After the step: what the rows are made of, where it lies."""
        after = sample(self._elements())
        groups = {"before": self._before, "after": after, "grads": self._grads}
        found = {f"{name}.{at}": group for name, own in groups.items() for at, group in enumerate(own.groups)}
        found |= {f"rate.{key}": rate.detach() for key, rate in self._rates.items() if isinstance(rate, Tensor)}
        self._after = after
        return found | ({} if self._tops is None else {"tops": self._tops})

    def rows(self, got: Mapping[str, Tensor], called: Mapping[str, bool] | None) -> list[dict[str, Any]]:
        """Of each part, the model first: JSON of what its parameters were and became, of the fetched tensors."""
        facts = list(self._facts(got))
        numbers = {id(parameter): number for number, parameter in enumerate(self._all)}
        seen = {} if called is None else {WHOLE: True, **called}
        return [
            _row(name, [facts[numbers[id(one)]] for one in part.parameters() if id(one) in numbers], seen)
            for name, part in self._parts.items()
            if next(part.parameters(), None) is not None
        ]

    def _facts(self, got: Mapping[str, Tensor]) -> Iterator[dict[str, Any]]:
        """Of each parameter."""
        groups = {
            name: [got[f"{name}.{at}"] for at in range(len(own.groups))]
            for name, own in (("before", self._before), ("after", self._after), ("grads", self._grads))
        }
        tops = dict(zip(self._topped, got["tops"].tolist(), strict=True)) if "tops" in got else {}
        for number, parameter in enumerate(self._all):
            before, after = self._before.of(groups["before"], number), self._after.of(groups["after"], number)
            yield {
                "trained": parameter.requires_grad,
                "none": self._none[number],
                "top": tops.get(number),
                "outside": id(parameter) not in self._rates,
                "moved": before is not None and after is not None and bool((before != after).any()),
                "expected": self._expected(got, parameter, before, self._grads.of(groups["grads"], number)),
            }

    def _expected(self, got: Mapping[str, Tensor], parameter: Tensor, old: Tensor | None, grad: Tensor | None) -> bool:
        """Whether a step that is taken must show in one of the elements that are looked at."""
        if old is None or grad is None or grad.shape != old.shape or not self._rates:
            return False
        rate = self._rate(got, parameter)
        if rate is None or rate <= 0:
            return False
        moves = torch.minimum(rate * grad.abs(), torch.full_like(grad, rate))
        return bool((moves > STEPS * torch.finfo(parameter.dtype).eps * old.abs()).any())

    def _rate(self, got: Mapping[str, Tensor], parameter: Tensor) -> float | None:
        """Its learning rate; of one that no optimiser holds the largest of all, since copies of it may be held."""
        if id(parameter) not in self._rates:
            return self._highest(got)
        return _number(got, id(parameter), self._rates[id(parameter)])

    def _highest(self, got: Mapping[str, Tensor]) -> float | None:
        if self._top_rate is None:
            found = (_number(got, key, rate) for key, rate in self._rates.items())
            self._top_rate = (max((rate for rate in found if rate is not None), default=None),)
        return self._top_rate[0]


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
        "called": name in called,
        "recorded": called.get(name, False),
        "finite": finite,
        "top": max(tops, default=0.0) if finite else None,
        "moved": any(fact["moved"] for fact in trained),
        "expected": any(fact["expected"] for fact in trained),
        "outside": sum(fact["outside"] for fact in trained),
        "stale": sum(not fact["trained"] and not fact["none"] and not fact["outside"] for fact in facts),
    }
