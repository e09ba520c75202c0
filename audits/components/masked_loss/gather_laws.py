"""The laws of choosing ragged tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from assay.audits.components.masked_loss.gather import NAME, Inputs
from assay.audits.laws.parity import exactly
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Law, Operation


def pads(trial: Trial) -> Iterator[Evidence]:
    """What a padded index fetches is zero, and no token gets a gradient through it.

    Why: indices are padded with zero, a valid place. What is fetched there looks like any other token, and whoever
    forgets the validity on the way to the loss trains on it.

    Example: a gather through the padded indices with nothing after it.
    """
    inputs: Inputs = trial.inputs
    got = trial.outcome.values["gathered"]
    if got.shape != trial.truth.values["gathered"].shape:
        return
    hidden = ~inputs.valid[..., None].expand_as(got)
    if bool((got[hidden] != 0).any()):
        index = tuple(int(i) for i in torch.nonzero((got != 0) & hidden)[0])
        yield Evidence(
            where="gathered", measured=float(got[index]), limit=0.0, index=index, message="a pad fetched a token"
        )
    grad = trial.outcome.grads.get("features")
    if grad is not None and grad.shape == inputs.features.shape:
        unused = ~inputs.chosen()[..., None].expand_as(grad)
        yield from exactly(
            "grad:features", torch.where(unused, grad, 0.0), torch.zeros_like(grad), "no valid index points there"
        )


def ragged(trial: Trial) -> Iterator[Evidence]:
    """Samples that choose different numbers of tokens are gathered rightly, or refused.

    Why: boolean indexing over a batch gives one flat list. Cutting it into equal rows works for every batch whose
    samples happen to choose as many tokens, and mixes samples as soon as they do not.

    Example: The rows of ``features[mask].view(B, -1, D)``.
    """
    inputs: Inputs = trial.inputs
    batch, grid = inputs.features.shape[:2]
    counts = [1 + (2 * sample) % grid for sample in range(batch)]  # mostly add up to batch**2, which can be cut
    longest = max(counts)
    indices = torch.arange(longest, device=inputs.indices.device).expand(batch, longest).clone()
    valid = indices < torch.tensor(counts, device=indices.device)[:, None]
    uneven = dataclasses.replace(inputs, indices=torch.where(valid, indices, 0), valid=valid)
    outcome = trial.attempt(uneven)
    if outcome.raised:
        return
    got, truth = outcome.values["gathered"], trial.oracle(uneven).values["gathered"].to(trial.dtype)
    if got.shape != truth.shape:
        yield Evidence(
            where="gathered", measured=f"shape {tuple(got.shape)}", limit=f"shape {tuple(truth.shape)}, or an error",
            message="ragged counts changed the shape in silence",
        )  # fmt: skip
    else:
        yield from exactly("gathered", got, truth, "ragged counts: tokens of another place or sample")


def _several(_operation: Operation, case: Any) -> str | None:
    return None if len(case.counts) > 1 and case.tokens > 2 else "one sample cannot be ragged"


LAWS = (
    Law.of((NAME,), pads),
    Law.of((NAME,), ragged, _several),
)
