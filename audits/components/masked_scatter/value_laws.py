"""What features and gradients hold decides nothing: zeros, copies, the very large and what is not a number."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from assay.audits.components.masked_scatter import scatter
from assay.audits.components.masked_scatter.batch import Case, Inputs
from assay.audits.components.masked_scatter.place_laws import BOTH, gradients_of
from assay.audits.laws.limits import row_reach
from assay.audits.laws.parity import exactly
from assay.audits.laws.relation import Pair, Run, holds
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Law, Operation

LARGE, TINY = 2.0**17, 2.0**-40
"""Powers of two, so that nothing is rounded: beyond the largest number of float16, and below its smallest."""
LARGE_HALF, TINY_HALF = 2.0**9, 2.0**-6
"""The same where the features are float16 themselves."""


def blank(trial: Trial) -> Iterator[Evidence]:
    """A feature of zeros, and one that is equal to another's, is a feature like any other: put, and trained.

    Why: an empty crop, a black frame or silence may give zeros, and the same image may be there twice. What tells
    features from padding, or one image from the next, is their number and order, never what they hold.

    Example: rows of zeros that are dropped as the tower's padding before anything is counted.
    """
    for changed, what in _blanks(trial.inputs):
        yield from _put(trial, changed, what)


def _blanks(inputs: Inputs) -> Iterator[tuple[Inputs, str]]:
    given = {name: rows.detach() for name, rows in inputs.flat().items()}
    empty: dict[str, Any] = {name: torch.cat([rows[:-1], 0 * rows[-1:]]) for name, rows in given.items()}
    begun: dict[str, Any] = {name: _begun_alike(rows, inputs.media(name)) for name, rows in given.items()}
    yield dataclasses.replace(inputs, **empty), "a feature of zeros"
    yield dataclasses.replace(inputs, **begun), "media with the same first feature"


def _begun_alike(rows: Tensor, media: list[int]) -> Tensor:
    starts = torch.tensor([0, *media]).cumsum(0)[:-1]
    return rows.index_copy(0, starts.to(rows.device), rows[:1].expand(len(media), -1))


def magnitude(trial: Trial) -> Iterator[Evidence]:
    """Very large and very small features are put as they are.

    Why: vision towers have a few activations beyond 65504, which float16 cannot hold and bfloat16 can. A function
    that goes through float16, or clamps to what it can hold, is exact for all that a test draws.

    Example: ``features.half()`` on the way from one bfloat16 to the other.
    """
    half = trial.dtype == torch.float16
    for scale in (LARGE_HALF, TINY_HALF) if half else (LARGE, TINY):
        changed: dict[str, Any] = {name: rows.detach() * scale for name, rows in trial.inputs.flat().items()}
        yield from _put(trial, dataclasses.replace(trial.inputs, **changed), f"features times {scale:g}")


def _put(trial: Trial, inputs: Inputs, what: str) -> Iterator[Evidence]:
    """Evidence where a batch of the same counts is refused, or its features and their gradients are elsewhere."""
    (name,) = trial.operation.outputs
    outcome = trial.attempt(inputs, trial.upstream)
    if outcome.raised:
        said = f"{outcome.raised.kind}: {outcome.raised.message}"
        yield Evidence(where=name, measured=said[:200], limit="no error", message=f"{what}: refused")
        return
    if outcome.values[name].shape != inputs.embeddings.shape:
        return
    if trial.operation.name == scatter.NAME:
        for modality, rows in inputs.flat().items():
            own = outcome.values[name][inputs.mask(modality)]
            yield from exactly(name, own, rows, f"{what}: not the {modality} features in order")
    else:
        yield from holds(trial, lambda run, _inputs: _sums(run, inputs, what))
    yield from gradients_of(trial, outcome, trial.upstream[name], f"{what}: not the gradient of the rows it became")


def _sums(run: Run, inputs: Inputs, what: str) -> Iterator[Pair]:
    ((name, out),) = run(inputs).items()
    for modality, rows in inputs.flat().items():
        own = inputs.embeddings[inputs.mask(modality)]
        yield Pair(
            where=name, left=out[inputs.mask(modality)], right=own + rows, reach=row_reach(own) + row_reach(rows),
            message=f"{what}: not the hidden states plus the {modality} features",
        )  # fmt: skip


def loud(trial: Trial) -> Iterator[Evidence]:
    """Gradients that are large, or no numbers, reach the features as they are.

    Why: a loss scaler multiplies gradients by 65536 and looks for those that overflow, to leave out the step. What is
    clipped or replaced on the way is another step, of another size, that nobody left out.

    Example: ``register_hook(torch.nan_to_num)`` on the features, to get over a spike.
    """
    inputs: Inputs = trial.inputs
    (name,) = trial.operation.outputs
    grads = trial.upstream[name] * (LARGE_HALF if trial.dtype == torch.float16 else LARGE)
    outcome = trial.call(inputs, {name: grads})
    yield from gradients_of(trial, outcome, grads, "a large gradient did not come through")
    for wrong in (math.nan, math.inf):
        spoilt = trial.upstream[name].masked_fill(inputs.masked()[..., None], wrong)
        found = trial.call(inputs, {name: spoilt}).grads
        for modality in inputs.flat():
            if modality in found and bool(found[modality].isfinite().any()):
                yield Evidence(
                    where=f"grad:{modality}", measured="finite", limit=f"{wrong}",
                    message=f"{wrong} in the gradient is not seen at the features",
                )  # fmt: skip


def _pictured(_operation: Operation, case: Case) -> str | None:
    return None if case.sizes() else "no media"


_law = partial(Law.of, BOTH)

LAWS = (_law(blank, _pictured), _law(magnitude, _pictured), _law(loud, _pictured))
