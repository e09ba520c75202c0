"""The laws of a step over micro-batches and ranks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from assay.audits.components.masked_loss.step import IGNORED, NAME, Inputs
from assay.audits.laws.relation import Pair, Run, holds
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Inexpressible, Law, Operation


def cut(trial: Trial) -> Iterator[Evidence]:
    """How a batch is cut into micro-batches and ranks changes neither loss nor gradient.

    Why: the cut is a matter of memory. Samples have different numbers of trained tokens, so means of parts are not
    the mean of the whole; what depends on the cut trains another model on four GPUs than on one.

    Example: each rank divides by its own tokens, and the gradients are averaged.
    """

    def relate(run: Run, inputs: Inputs) -> Iterable[Pair]:
        expect: Any = trial.operation.expect
        reach = expect.reach(inputs, None)
        uncut = run(dataclasses.replace(inputs, world=1, micro=1, layout="data"))
        for name, value in run(inputs).items():
            message = f"{inputs.world} ranks ({inputs.layout}) with {inputs.micro} micro-batches are not one batch"
            yield Pair(where=name, left=value, right=uncut[name], reach=reach[name], message=message)

    yield from holds(trial, relate)


def order(trial: Trial) -> Iterator[Evidence]:
    """Which rank or micro-batch a sample comes to does not matter.

    Why: a sampler deals them out at random. Where it matters, some samples are trained on more than others.

    Example: the count of the first micro-batch is used for all.
    """

    def relate(run: Run, inputs: Inputs) -> Iterable[Pair]:
        expect: Any = trial.operation.expect
        reach, before = expect.reach(inputs, None), run(inputs)
        turned = run(dataclasses.replace(inputs, hidden=inputs.hidden.roll(1, 0), labels=inputs.labels.roll(1, 0)))
        for name, value in turned.items():
            yield Pair(where=name, left=value, right=before[name], reach=reach[name], message="the samples moved on")

    yield from holds(trial, relate)


def uniform(trial: Trial) -> Iterator[Evidence]:
    """A head of zeros costs the logarithm of the vocabulary's size, however the batch is cut.

    Why: two cuts may be wrong alike, and agree. This is the one loss that is known without computing it: what differs
    from it divides by another count than that of the tokens which are trained on.

    Example: tokens counted before the labels are shifted.
    """
    inputs: Inputs = trial.inputs
    if not bool((inputs.labels[:, 1:] != IGNORED).any()):
        raise Inexpressible("no token is trained on")

    def relate(run: Run, own: Inputs) -> Iterable[Pair]:
        known = torch.tensor(math.log(len(own.head)), dtype=torch.float64)
        told = run(dataclasses.replace(own, head=torch.zeros_like(own.head)))["loss"]
        reach = torch.ones((), dtype=torch.float64)
        yield Pair(where="loss", left=told, right=known, reach=reach, message="a head of zeros does not cost log V")

    yield from holds(trial, relate)


def _is_cut(_operation: Operation, case: Any) -> str | None:
    return None if case.world * case.micro > 1 else "one rank and one micro-batch"


def _deals(_operation: Operation, case: Any) -> str | None:
    parts = case.micro * (case.world if case.layout == "data" else 1)
    return None if parts > 1 else "all samples are together"


LAWS = (
    Law.of((NAME,), uniform),
    Law.of((NAME,), cut, _is_cut),
    Law.of((NAME,), order, _deals),
)
