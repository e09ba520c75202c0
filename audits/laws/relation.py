"""Relations between several answers of one implementation, with limits measured on the ordinary form."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from assay.audits.laws.limits import difference, excess, floor, relative
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Numeric, Outcome, Outputs


@dataclass(frozen=True)
class Run:
    """One implementation, to be asked related questions: the candidate, the ordinary form or the oracle."""

    ask: Callable[..., Outcome]

    def __call__(self, inputs: Any) -> Outputs:
        """Its outputs."""
        return self.ask(inputs).values

    def grads(self, inputs: Any, upstream: Outputs) -> Outputs:
        """Its gradients of the inputs, for the given gradients of the outputs."""
        return self.ask(inputs, upstream).grads


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two tensors that a right implementation makes equal; ``reach`` is what rounding is proportional to."""

    where: str
    left: Tensor
    right: Tensor
    reach: Tensor
    message: str


def holds(trial: Trial, relate: Callable[[Run, Any], Iterable[Pair]]) -> Iterator[Evidence]:
    """Evidence where the two sides of a relation lie further apart than twice the ordinary form's errors explain.

    ``relate(run, inputs)`` makes the related calls through ``run`` and yields pairs, the same ones for the
    candidate, for the ordinary form and for the oracle. The scale is what both sides of the ordinary form err against
    the oracle, not how far apart they lie: where its two sides round alike their distance is luck.
    """
    expect = trial.operation.expect
    assert isinstance(expect, Numeric)

    @functools.cache
    def ordinary() -> list[tuple[list[Pair], list[Pair]]]:
        drawn = [trial.inputs, *expect.draws(trial.inputs)]
        return [(list(relate(Run(trial.eager), own)), list(relate(Run(trial.oracle), own))) for own in drawn]

    @functools.cache
    def truth() -> list[Pair]:
        return list(relate(Run(trial.oracle), trial.inputs))

    for position, pair in enumerate(relate(Run(trial.call), trial.inputs)):
        error = _error(pair)
        if not bool(error.any()):
            continue  # equal to the bit: no limit is needed
        exact = truth()[position]
        allowed = floor([exact.left, exact.right], pair.reach.double(), trial.dtype)
        errors = functools.partial(_errors_at, ordinary, position)
        found = excess(pair.where, error, allowed, errors, pair.message)
        if found:
            yield found


def _errors_at(ordinary: Callable[[], list[tuple[list[Pair], list[Pair]]]], position: int) -> list[Tensor]:
    return [_both(eager[position], exact[position]) for eager, exact in ordinary()]


def _both(eager: Pair, exact: Pair) -> Tensor:
    sides = difference(eager.left, exact.left) + difference(eager.right, exact.right)
    return relative(sides, exact.reach.double())


def _error(pair: Pair) -> Tensor:
    return relative(difference(pair.left, pair.right), pair.reach.double())
