"""The laws of a sum of several losses."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch

from assay.audits.components.masked_loss.total import NAME, Inputs
from assay.audits.laws.relation import Pair, Run, holds
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Law


def reaches(trial: Trial) -> Iterator[Evidence]:
    """Every component with a weight reaches its own parameters, and one without does not.

    Why: a loss that was turned into a number on its way to the sum is logged and falls by chance, and its head never
    learns. Nothing fails: the other losses are trained.

    Example: A sum in which ``teacher_loss.item()`` stands for the loss.
    """
    grads = trial.outcome.grads
    weights = trial.inputs.weight_of()
    for name, value in trial.inputs.parameters().items():
        grad = grads.get(name)
        moved = grad is not None and bool((grad != 0).any())
        if moved != bool(weights[name]) and bool((value != 0).any()):
            yield Evidence(
                where=f"grad:{name}", measured="a gradient" if moved else "no gradient",
                limit=f"weight {weights[name]:g}",
                message=f"the loss {name!r} {'reaches' if moved else 'does not reach'} its parameters",
            )  # fmt: skip


def linear(trial: Trial) -> Iterator[Evidence]:
    """A component's part of the total, and of no other gradient, doubles with its weight.

    Why: a weight is the one thing a user sets. Where it is squared, forgotten, shared or divided by the sum of all
    weights, another objective is trained than the one in the configuration.

    Example: an average over the components instead of a sum.
    """

    def relate(run: Run, inputs: Inputs) -> Iterable[Pair]:
        expect: Any = trial.operation.expect
        ones = {"total": torch.ones_like(trial.truth.values["total"])}
        reach = expect.reach(inputs, ones)
        before, grads = run(inputs)["total"].double(), run.grads(inputs, ones)
        for place, name in enumerate(inputs.parameters()):
            weights = tuple(w * (2 if other == place else 1) for other, w in enumerate(inputs.weights))
            twice = dataclasses.replace(inputs, weights=weights)
            own = inputs.losses()[name].detach().double() * inputs.weights[place]
            message = f"the weight of {name!r} doubled"
            yield Pair(
                where="total", left=run(twice)["total"].double() - own, right=before, reach=2 * reach["total"],
                message=message,
            )  # fmt: skip
            after = run.grads(twice, ones)
            for other, value in inputs.parameters().items():
                one, two = (part.get(other, torch.zeros_like(value)).double() for part in (grads, after))
                factor = 2.0 if other == name else 1.0
                where = f"grad:{other}"
                yield Pair(where=where, left=two, right=one * factor, reach=2 * reach[where], message=message)

    yield from holds(trial, relate)


_law = partial(Law.of, (NAME,))

LAWS = (_law(reaches), _law(linear))
