"""The laws that every operation is under, whatever it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from assay.audits.laws import autograd, conduct, parity
from assay.audits.terms import Evidence, Law, Operation

RAISES = """The candidate returns on inputs inside its contract.

Why: an exception on an ordinary input stops a training run; an exit takes the whole process with it. A call that does
not end within the time limit is reported as UNKNOWN, since nothing is known of its answer.

Example: a rotation that fails on a batch whose last sample is empty.
"""

MACHINE_RULES = {
    "raises": RAISES,
    "timeout": "The candidate answers within the time limit; one that does not is UNKNOWN, not passed.",
    "unloadable": "The candidate could be imported and built; one that could not is UNKNOWN, with the reason.",
    "device": "The device asked for is present; without it nothing is known, so the verdict is UNKNOWN.",
    "unverified": "The machine can do the arithmetic that was asked; an answer from one that cannot is UNKNOWN.",
    "not-exercised": "A law that applied was exercised at least once; one that was not is UNKNOWN, not passed.",
    "checker-failed": "The checker itself did not fail; where it did, the candidate is UNKNOWN, not passed.",
}
"""Rules that the judge itself reports, with their manual pages."""
COMPARISONS = frozenset({"parity", "gradients", "returns"})
"""Laws that compare with the reference. What only they catch, no relation notices."""


def laws(operation: Operation) -> tuple[Law, ...]:
    """The shared laws, for one operation; those of differentiation only where there is something to differentiate."""
    return (
        _law("returns", parity.returns, operation, parity.has_oracle),
        _law("parity", parity.parity, operation, parity.has_oracle),
        _law("gradients", parity.gradients, operation, parity.numeric_only),
        _law("nondeterministic", conduct.nondeterministic, operation),
        _law("mutates", conduct.mutates, operation),
        _law("leaks", conduct.leaks, operation),
        *(_differentiation(operation) if operation.differentiable else ()),
    )


def _differentiation(operation: Operation) -> tuple[Law, ...]:
    return (
        _law("upstream", autograd.upstream, operation, autograd.laid_out),
        _law("unused", autograd.unused, operation, autograd.several_outputs),
        _law("frozen", autograd.frozen, operation, autograd.several_inputs),
        _law("interleaved", autograd.interleaved, operation, autograd.seeded),
        _law("retained", autograd.retained, operation),
        _law("modes", autograd.modes, operation),
    )


def _always(_operation: Operation, _params: object) -> str | None:
    return None


def _law(
    name: str,
    check: Callable[[Any], Iterable[Evidence]],
    operation: Operation,
    applies: Callable[[Operation, Any], str | None] = _always,
) -> Law:
    return Law(name=name, operations=(operation.name,), check=check, doc=check.__doc__ or "", applies=applies)
