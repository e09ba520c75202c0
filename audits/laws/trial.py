"""One law, one case, one candidate: what a law is given to look at, and how it asks related questions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from assay.audits.observe import evaluate, tensors
from assay.audits.terms import (
    Evidence,
    Exact,
    Implementation,
    Inexpressible,
    Numeric,
    Operation,
    Outcome,
    Outputs,
    Subject,
    Tape,
)  # fmt: skip

NO_ANSWER = frozenset({"exit", "signal", "timeout", "memory", "unloadable", "BadReturn"})
"""Ways in which a call ends that are no refusal: those are exceptions of the candidate's own."""


class Broken(Exception):
    """A call that a law needed did not return; the judge turns it into a finding of its own."""

    def __init__(self, outcome: Outcome, inputs: Any) -> None:
        """Keep how the call ended."""
        super().__init__(outcome.raised)
        self.outcome = outcome
        self.inputs = inputs


def answerable(asks: Iterable[Iterator[Evidence]]) -> Iterator[Evidence]:
    """What those questions find that the candidate can be asked. :class:`Inexpressible` where it can be asked none."""
    reasons, asked = set(), False
    for ask in asks:
        try:
            yield from ask
        except Inexpressible as reason:
            reasons.add(str(reason))
        else:
            asked = True
    if not asked:
        raise Inexpressible("; ".join(sorted(reasons)) or "there is nothing to ask of this case")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A candidate's subject with one built case of its operation.

    Laws read ``inputs`` and make calls; every call that does not return raises :class:`Broken`, or
    :class:`Inexpressible` where the candidate cannot be given what the law asks.
    """

    operation: Operation
    params: Any
    inputs: Any
    dtype: torch.dtype
    subject: Subject
    seed: int = 0
    _memo: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """What ``compute`` returned the first time a law of this trial asked for ``name``."""
        if name not in self._memo:
            self._memo[name] = compute()
        return self._memo[name]

    @property
    def doubted(self) -> bool:
        """Whether some call of this trial went through arithmetic that the machine cannot do."""
        return "unverified" in self._memo

    def call(self, inputs: Any, upstream: Outputs | None = None, tape: Tape | None = None) -> Outcome:
        """Run the candidate on related inputs, or on the same ones recorded in another way."""
        outcome = self.attempt(inputs, upstream, tape)
        if outcome.raised:
            raise Broken(outcome, inputs)
        return outcome

    def attempt(self, inputs: Any, upstream: Outputs | None = None, tape: Tape | None = None) -> Outcome:
        """One call that may be refused: it returned, or ended in an exception of the candidate's own.

        :class:`Broken` where it ended in any other way, as where the process did not survive it.
        """
        outcome = self.subject.call(inputs, upstream, tape)
        raised = outcome.raised
        if raised and raised.kind == Inexpressible.__name__:
            raise Inexpressible(raised.message)
        if raised and raised.kind in NO_ANSWER:
            raise Broken(outcome, inputs)
        return outcome

    def run(self, inputs: Any) -> Outputs:
        """The candidate's outputs on related inputs."""
        return self.call(inputs).values

    def varied(self, **changes: Any) -> Outputs:
        """The candidate's outputs on the case's inputs with these fields changed; asked once for all laws."""
        key = "varied " + repr(sorted(changes.items()))
        found: Outputs = self.once(key, lambda: self.run(dataclasses.replace(self.inputs, **changes)))
        return found

    @functools.cached_property
    def outcome(self) -> Outcome:
        """The candidate's outputs and gradients on the case itself."""
        return self.call(self.inputs, self.upstream if self.operation.differentiable else None)

    @functools.cached_property
    def truth(self) -> Outcome:
        """The oracle's outputs and gradients on the case, in float64 (or exact)."""
        return self.oracle(self.inputs, self.upstream if self.operation.differentiable else None)

    @functools.cached_property
    def other(self) -> Any:
        """Inputs of the case with another seed, for cases that have one: other values, in sizes that are parameters."""
        params = dataclasses.replace(self.params, seed=self.params.seed + 1)
        return self.operation.build(params, self.dtype, self.device)

    @property
    def differentiable(self) -> tuple[str, ...]:
        """The inputs that get gradients, without those that the case leaves out."""
        return tuple(name for name in self.operation.differentiable if getattr(self.inputs, name) is not None)

    @property
    def device(self) -> torch.device:
        """Where the inputs are: that of the first tensor among them."""
        return next((tensor.device for _, tensor in tensors(self.inputs)), torch.device("cpu"))

    @functools.cached_property
    def upstream(self) -> Outputs:
        """Gradients for the outputs: different for each element, of both signs, never one."""
        shapes = {name: value.shape for name, value in self.oracle(self.inputs).values.items()}
        generator = torch.Generator().manual_seed(self.seed + 7919)
        return {
            name: (torch.randn(shape, generator=generator, dtype=torch.float64) * 1.5 + 0.25).to(
                device=self.device, dtype=self.dtype
            )
            for name, shape in shapes.items()
        }

    def oracle(self, inputs: Any, upstream: Outputs | None = None) -> Outcome:
        """The reference on any inputs, in float64 where it is numeric. One that fails is our own error and raises."""
        expect: Any = self.operation.expect
        if isinstance(expect, Exact):
            return _trusted(expect.oracle, inputs, None, ())
        wide = {name: grad.double() for name, grad in upstream.items()} if upstream is not None else None
        return _trusted(expect.oracle, upcast(inputs), wide, self.operation.differentiable)

    def eager(self, inputs: Any, upstream: Outputs | None = None) -> Outcome:
        """The ordinary low-precision form on any inputs."""
        expect = self.operation.expect
        assert isinstance(expect, Numeric)
        return _trusted(expect.eager, inputs, upstream, self.operation.differentiable)


def _trusted(
    implementation: Implementation, inputs: Any, upstream: Outputs | None, differentiable: tuple[str, ...]
) -> Outcome:
    values, grads = evaluate(implementation, inputs, upstream, differentiable)
    return Outcome(values=values, grads=grads)


def upcast(record: Any) -> Any:
    """The same record with every floating tensor in float64."""
    wide = {field.name: _wide(getattr(record, field.name)) for field in dataclasses.fields(record)}
    return dataclasses.replace(record, **wide)


def _wide(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.double()
    if isinstance(value, Mapping):
        return {key: _wide(item) for key, item in value.items()}
    return value
