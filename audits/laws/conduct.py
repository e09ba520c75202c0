"""How an implementation behaves, whatever it computes: the same answer twice, nothing changed behind one's back."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from assay.audits.laws.trial import Trial
from assay.audits.observe import same_bits
from assay.audits.terms import Evidence, Numeric, Outcome


def nondeterministic(trial: Trial) -> Iterator[Evidence]:
    """The same inputs give the same answer, also after another call.

    Why: state kept between calls (a cache keyed by too little, a buffer reused, a delta of the previous batch) makes
    a model depend on what it saw before; a race gives another answer each time. Values, shapes, strides and alignment
    are the same at both calls, so arithmetic alone gives the same bits.

    Example: a table cache keyed by sequence length alone returns the positions of the previous batch.
    """
    once = trial.outcome  # before the second call: where no law has made the first one yet, libraries come with it
    again = _again(trial)
    for kind, first, second in (
        ("", once.values, again.values),
        ("grad:", once.grads, again.grads),
    ):
        for name in first:
            if name not in second or not same_bits(first[name], second[name]):
                yield Evidence(
                    where=f"{kind}{name}",
                    measured="two answers",
                    limit="one answer",
                    message="the same inputs gave another answer at the second call",
                )


def mutates(trial: Trial) -> Iterator[Evidence]:
    """The inputs, and the gradients handed to the backward, are as they were after the call.

    Why: an argument changed in place is a wrong value for whoever reads it next, and a wrong gradient wherever
    autograd saved it; under activation checkpointing the change is applied twice. A gradient may belong to several
    branches of a graph at once.

    Example: a rotation that writes into q, which the projection's backward still needs.
    """
    for note in trial.outcome.notes:
        kind, _, what = note.partition(":")
        if kind == "mutates":
            yield Evidence(where=what, measured="changed", limit="unchanged", message="the call changed its input")


def leaks(trial: Trial) -> Iterator[Evidence]:
    """Global settings are as they were after the call.

    Why: a default dtype, a thread count, a seed or a grad mode that a component leaves behind changes all code that
    runs after it. Environment variables are compared over the second call only: importing a library at the first one
    may set its own.

    Example: a patch that calls ``torch.manual_seed`` in its forward makes every dropout mask the same.
    """
    first = set(trial.outcome.notes) - {"state:environment"}
    for note in sorted(first | set(_again(trial).notes)):
        kind, _, what = note.partition(":")
        if kind == "state":
            yield Evidence(
                where=what, measured="changed", limit="unchanged", message="the call changed a global setting"
            )


def _again(trial: Trial) -> Outcome:
    """The same call a second time, after one on other inputs of the same shape where the operation has such."""

    def compute() -> Outcome:
        expect = trial.operation.expect
        for other in itertools.islice(expect.draws(trial.inputs) if isinstance(expect, Numeric) else (), 1):
            trial.run(other)
        return trial.call(trial.inputs, trial.upstream if trial.operation.differentiable else None)

    again: Outcome = trial.once("again", compute)
    return again
