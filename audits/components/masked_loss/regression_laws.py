"""The laws of a masked regression: targets, their normalisation, and ragged targets through padded indices."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch

from assay.audits.components.masked_loss import regression, tokens
from assay.audits.laws.relation import Pair, Run, holds
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Law, Operation


def exact(trial: Trial) -> Iterator[Evidence]:
    """A prediction that equals its target costs nothing and gets no gradient.

    Why: the smallest loss is where the prediction is right. A square root or a division without care for zero
    differences gives NaN there; a target that was moved by one gives a smallest loss elsewhere.

    Example: a power of the difference below two whose gradient is infinite at zero.
    """
    inputs: regression.Inputs = trial.inputs
    target = regression.gathered(inputs)
    same = dataclasses.replace(inputs, prediction=target.clone())
    ones = {"loss": torch.ones_like(trial.truth.values["loss"], dtype=trial.dtype)}
    outcome = trial.call(same, ones)
    for where, value in (("loss", outcome.values["loss"]), *((f"grad:{n}", g) for n, g in outcome.grads.items())):
        wrong = value != 0
        if bool(wrong.any()):
            index = tuple(int(i) for i in torch.nonzero(wrong)[0])
            yield Evidence(
                where=where, measured=float(value[index]), limit=0.0, index=index or None,
                message="the prediction equals the target, and yet it is not zero",
            )  # fmt: skip


def padded(trial: Trial) -> Iterator[Evidence]:
    """Where a padded index points to does not matter, nor what stands there.

    Why: batches of masked tokens are ragged, and their indices are padded, mostly with zero. Without its validity
    carried along, every pad fetches a real token, and the loss counts the first patch of the grid once for each pad.

    Example: a gather through the padded indices, and a mean over all that was fetched.
    """

    def relate(run: Run, inputs: regression.Inputs) -> Iterable[Pair]:
        assert inputs.indices is not None
        expect: Any = trial.operation.expect
        reach = expect.reach(trial.inputs, None)["loss"]
        before = run(inputs)["loss"]
        last = inputs.target.shape[1] - 1
        valid = inputs.mask if inputs.mask.ndim == inputs.indices.ndim else inputs.mask.any(-1)
        elsewhere = dataclasses.replace(inputs, indices=torch.where(valid, inputs.indices, last))
        message = "the index of a pad matters"
        yield Pair(where="loss", left=run(elsewhere)["loss"], right=before, reach=reach, message=message)
        grid = inputs.target.clone()
        grid[~tokens.pointed_at(inputs.indices, valid, grid.shape[1])] = torch.nan
        message = "a token of the grid that no valid index points to reached the loss"
        spoilt = run(dataclasses.replace(inputs, target=grid))["loss"]
        yield Pair(where="loss", left=spoilt, right=before, reach=reach, message=message)

    yield from holds(trial, relate)


def normalised(trial: Trial) -> Iterator[Evidence]:
    """With normalised targets, a target's level and scale do not matter, token by token.

    Why: targets are normalised over their features so that no token weighs more for its size. A normalisation over
    another dimension, or over the batch, looks right in its statistics and mixes tokens.

    Example: a layer norm over the tokens.
    """

    def relate(run: Run, inputs: regression.Inputs) -> Iterable[Pair]:
        expect: Any = trial.operation.expect
        reach = expect.reach(trial.inputs, None)["loss"] * 2**3  # of the largest scale below
        place = torch.arange(inputs.target.shape[1], device=inputs.target.device, dtype=torch.float64) % 4
        moved = (inputs.target.double() * 2.0 ** place[:, None]).to(inputs.target)
        other = dataclasses.replace(inputs, target=moved)
        message = "targets of another scale, token by token"
        yield Pair(where="loss", left=run(other)["loss"], right=run(inputs)["loss"], reach=reach, message=message)

    yield from holds(trial, relate)


def _plain_target(_operation: Operation, case: Any) -> str | None:
    if case.normalise_target:
        return "targets are normalised"
    return "a cosine is rounded, also where both are equal" if case.kind == "cosine" else None


def _ragged(_operation: Operation, case: Any) -> str | None:
    return None if case.grid > 1 and case.batch else "no index is padded"


def _normalises(_operation: Operation, case: Any) -> str | None:
    if not case.normalise_target:
        return "targets are taken as they are"
    return None if case.features > 8 else "too few features for a scale apart from the epsilon"


_law = partial(Law.of, (regression.NAME,))

LAWS = (_law(exact, _plain_target), _law(padded, _ragged), _law(normalised, _normalises))
