"""What samples and pieces of a batch have to do with each other: nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from assay.audits.components.masked_scatter.batch import Case, Inputs, chosen, columns
from assay.audits.components.masked_scatter.place_laws import BOTH
from assay.audits.laws.parity import exactly
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Law, Operation, Outcome


def order(trial: Trial) -> Iterator[Evidence]:
    """Samples in another order, with their features, give the same rows in that order.

    Why: a sampler shuffles. What depends on the place in a batch is trained on by chance.

    Example: features that were sorted by size in the encoder and are put in without being put back.
    """
    samples = list(range(len(trial.inputs.input_ids)))[::-1]
    (name,) = trial.operation.outputs
    out = trial.run(chosen(trial.inputs, samples))[name]
    yield from _rows(name, out, trial.outcome.values[name][samples], "the order of samples matters")


def neighbours(trial: Trial) -> Iterator[Evidence]:
    """Other words and other features in all samples but one leave that one as it was.

    Why: the sum over a batch is right whichever sample a feature went to.

    Example: hidden states with the sequence first, indexed by a mask with the batch first: the images of two samples
    are dealt out in turns.
    """
    inputs: Inputs = trial.inputs
    (name,) = trial.operation.outputs
    first = trial.outcome.values[name]
    for kept in sorted({0, len(first) - 1}):
        others = torch.arange(len(first), device=first.device) != kept
        changed: dict[str, Any] = {
            modality: torch.where(others.repeat_interleave(inputs.mask(modality).sum(1))[:, None], 2 - rows, rows)
            for modality, rows in inputs.flat().items()
        }
        embeddings = torch.where(others[:, None, None], 1 - inputs.embeddings, inputs.embeddings)
        out = trial.run(dataclasses.replace(inputs, embeddings=embeddings, **changed))[name]
        if out.shape == first.shape:
            yield from _rows(name, out[kept], first[kept], f"sample {kept} depends on the others")


def micro(trial: Trial) -> Iterator[Evidence]:
    """Sample by sample, with its own features, is the whole batch: values and gradients.

    Why: gradient accumulation cuts batches. Whoever cuts features by the number of samples where they are counted by
    images, or keeps a mask of the whole batch, is right for one image in each sample.

    Example: a mask that is made once for the batch and used for each of its micro-batches.
    """
    inputs: Inputs = trial.inputs
    (name,) = trial.operation.outputs
    upstream = trial.upstream[name]
    alone = [chosen(inputs, [sample]) for sample in range(len(inputs.input_ids))]
    parts = [trial.call(part, {name: upstream[sample : sample + 1]}) for sample, part in enumerate(alone)]
    message = "samples one by one differ from the batch"
    if all(name in part.values for part in parts):
        yield from _rows(name, torch.cat([part.values[name] for part in parts]), trial.outcome.values[name], message)
    for where in trial.differentiable:
        grads = [_gradient(part, own, where) for part, own in zip(parts, alone, strict=True)]
        yield from _rows(f"grad:{where}", torch.cat(grads), _gradient(trial.outcome, inputs, where), message)


def _gradient(outcome: Outcome, inputs: Inputs, name: str) -> Tensor:
    """The gradient of an input; zeros where none came back, no rows for features that are not there."""
    given, found = getattr(inputs, name), outcome.grads.get(name)
    if given is None:
        return inputs.embeddings.new_zeros(0, inputs.width)
    return torch.zeros_like(given) if found is None else found


def chunks(trial: Trial) -> Iterator[Evidence]:
    """The first tokens of all samples, then the others, each with their features, are the whole.

    Why: a long prompt goes through the model in pieces, and a sequence is cut over ranks. A mask or a list of rows that
    is that of the whole prompt puts features at wrong offsets in every piece, and again in the next one.

    Example: the mask of the first call, kept for the second.
    """
    inputs: Inputs = trial.inputs
    (name,) = trial.operation.outputs
    length = inputs.input_ids.shape[1]
    whole = trial.run(columns(inputs, 0, length))[name]
    cut = (length + 1) // 2
    pieces = [piece for piece in ((0, cut), (cut, length)) if piece[0] < piece[1]] or [(0, length)]
    parts = [trial.run(columns(inputs, *piece))[name] for piece in pieces]
    if all(part.ndim == whole.ndim and len(part) == len(whole) for part in parts):
        yield from _rows(name, torch.cat(parts, 1), whole, "pieces of the sequence differ from the whole")


def _rows(where: str, got: Tensor, want: Tensor, message: str) -> Iterator[Evidence]:
    if got.shape != want.shape:
        shapes = (f"shape {tuple(x.shape)}" for x in (got, want))
        yield Evidence(where=where, measured=next(shapes), limit=next(shapes), message=message)
    else:
        yield from exactly(where, got, want, message)


def _several(_operation: Operation, case: Case) -> str | None:
    return None if len(case.rows) > 1 else "one sample"


def _some(_operation: Operation, case: Case) -> str | None:
    return None if case.rows else "no sample"


_law = partial(Law.of, BOTH)

LAWS = (_law(order, _several), _law(neighbours, _several), _law(micro, _some), _law(chunks, _some))
