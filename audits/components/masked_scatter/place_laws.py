"""What goes where: laws of one call of ``masked_scatter.scatter`` and ``masked_scatter.deepstack``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from assay.audits.components.masked_scatter import deepstack, scatter
from assay.audits.components.masked_scatter.batch import LAYOUTS, Case, Inputs
from assay.audits.laws.limits import row_reach
from assay.audits.laws.parity import exactly
from assay.audits.laws.relation import Pair, Run, holds
from assay.audits.laws.trial import Trial, answerable
from assay.audits.observe import same_bits
from assay.audits.terms import Evidence, Inexpressible, Law, Operation, Outcome

BOTH = (scatter.NAME, deepstack.NAME)
PADDED = 3
"""Columns of NaN beside what a strided view looks at."""
TAKEN = "a word that looks like a placeholder was taken for one"


def placement(trial: Trial) -> Iterator[Evidence]:
    """Feature i of a modality is at its i-th placeholder, bit for bit; rows of the batch one after the other.

    Why: nothing but the order says which feature is whose. One that is moved by a place, swapped with the next image's
    or dealt out column by column is another picture to the model, with all counts right.

    Example: features of all images followed by those of all videos, put to the placeholders of both in one go.
    """
    inputs: Inputs = trial.inputs
    out = trial.outcome.values.get(scatter.OUTPUT)
    if out is None or out.shape != inputs.embeddings.shape:
        return
    for name, rows in inputs.flat().items():
        yield from exactly(scatter.OUTPUT, out[inputs.mask(name)], rows, f"not the features of the {name}s in order")


def added(trial: Trial) -> Iterator[Evidence]:
    """At the i-th placeholder of a modality the hidden state is what it was plus feature i.

    Why: these features come on top of what the first layers made of the main ones. Written in their place they undo
    those layers; at other rows they are noise; left out, the model answers fluently with boxes that are off.

    Example: a helper that returns nothing, whose caller goes on with what it had.
    """

    def relate(run: Run, inputs: Inputs) -> Iterable[Pair]:
        out = run(inputs)[deepstack.OUTPUT]
        for name, rows in inputs.flat().items():
            own = inputs.embeddings[inputs.mask(name)]
            yield Pair(
                where=deepstack.OUTPUT, left=out[inputs.mask(name)], right=own + rows,
                reach=row_reach(own) + row_reach(rows), message=f"not the hidden states plus the {name} features",
            )  # fmt: skip

    if trial.outcome.values[deepstack.OUTPUT].shape == trial.inputs.embeddings.shape:
        yield from holds(trial, relate)


def text(trial: Trial) -> Iterator[Evidence]:
    """Rows that are no placeholders, padding among them, are as they were, bit for bit.

    Why: text is most of a batch. A factor, a rounding to another dtype and back or a blend with zeros at all rows
    changes every sample, those without an image too.

    Example: embeddings that are multiplied by the square root of their width here although their layer did so.
    """
    (name,) = trial.operation.outputs
    inputs, out = trial.inputs, trial.outcome.values[name]
    if out.shape == inputs.embeddings.shape:
        other = ~inputs.masked()
        yield from exactly(name, out[other], inputs.embeddings[other], "a row that is no placeholder changed")


def reaches(trial: Trial) -> Iterator[Evidence]:
    """The gradient at each placeholder reaches its own feature; that of every other row its embedding.

    Why: it is all that trains the encoder. Features that are written through ``.data`` give the right forward and a
    vision tower that never learns. What a placeholder's embedding is replaced by gets its gradient; the embedding
    itself must get none, where features are added it must get all.

    Example: features that are detached to get past an error about an in-place operation.
    """
    (name,) = trial.operation.outputs
    message = "not the gradient of the rows that it became"
    yield from gradients_of(trial, trial.outcome, trial.upstream[name], message)


def gradients_of(trial: Trial, outcome: Outcome, upstream: Tensor, message: str) -> Iterator[Evidence]:
    """Evidence where the gradients of a call are not the rows of ``upstream`` [B,S,H] that belong to each input."""
    inputs, grads = trial.inputs, outcome.grads
    masked = inputs.masked()[..., None]
    kept = upstream if trial.operation.name == deepstack.NAME else torch.where(masked, 0.0, upstream)
    wanted = {"embeddings": kept} | {modality: upstream[inputs.mask(modality)] for modality in inputs.flat()}
    for where, want in wanted.items():
        got = grads.get(where)
        got = torch.zeros_like(want) if got is None else got
        if got.shape == want.shape:
            yield from exactly(f"grad:{where}", got, want, message)


def alike(trial: Trial) -> Iterator[Evidence]:
    """Placeholders are found by their ids: a word whose embedding is equal to theirs, or in one channel, stays.

    Why: two rows of a vocabulary may be alike, new tokens are often made as copies, and in low precision or with
    prompt tuning single channels meet by chance. A model that looks for the placeholder's embedding puts a feature
    there and moves all that follow.

    Example: a comparison of each channel with the embedding of the image token.
    """
    inputs: Inputs = trial.inputs
    words, places = (~inputs.masked()).nonzero(), inputs.masked().nonzero()
    if not len(words) or not len(places):
        raise Inexpressible("needs a word and a placeholder")
    twin = inputs.embeddings.clone()
    (row, column), (_row, _column) = words[-1].tolist(), words[0].tolist()
    first = inputs.embeddings[tuple(places[0].tolist())]
    twin[_row, _column, 0] = first[0]
    twin[row, column] = first
    changed = dataclasses.replace(inputs, embeddings=twin)
    outcome = trial.attempt(changed)
    if outcome.raised:
        said = f"{outcome.raised.kind}: {outcome.raised.message}"
        yield Evidence(where=scatter.OUTPUT, measured=said[:200], limit="no error", message=TAKEN)
        return
    out, want = outcome.values[scatter.OUTPUT], trial.oracle(changed).values[scatter.OUTPUT].to(trial.dtype)
    if out.shape == want.shape:
        yield from exactly(scatter.OUTPUT, out, want, TAKEN)


def visible(trial: Trial) -> Iterator[Evidence]:
    """A feature that is not a number stands at its own placeholder, and nowhere else.

    Why: where an encoder overflows, the run has to show it; a NaN that is replaced on the way is trained around. And
    it is one image's: a batch in which all samples turn NaN does not tell which one was broken.

    Example: placing features by a product with a matrix of ones and zeros, in which zero times NaN is NaN.
    """
    inputs: Inputs = trial.inputs
    (output,) = trial.operation.outputs
    for name, rows in inputs.flat().items():
        for wrong in (math.nan, math.inf):
            spoilt = rows.detach().clone()
            spoilt[-1] = wrong
            changed: dict[str, Any] = {name: spoilt}
            out = trial.run(dataclasses.replace(inputs, **changed))[output]
            if out.shape != inputs.embeddings.shape:
                return
            place = tuple(inputs.mask(name).nonzero()[-1].tolist())
            yield from _seen(output, out, trial.outcome.values[output], place, wrong)


def _seen(output: str, out: Tensor, clean: Tensor, place: tuple[int, ...], wrong: float) -> Iterator[Evidence]:
    if bool(out[place].isfinite().any()):
        yield Evidence(
            where=output, measured="finite", limit=f"{wrong}", message=f"{wrong} in a feature is not seen at its place"
        )
    rest = torch.ones(out.shape[:2], dtype=torch.bool, device=out.device)
    rest[place] = False
    if not same_bits(out[rest], clean[rest]):
        yield Evidence(
            where=output, measured="changed", limit="unchanged",
            message=f"{wrong} in one feature changed rows that are not its own",
        )  # fmt: skip


def unread(trial: Trial) -> Iterator[Evidence]:
    """What the embeddings hold at placeholders is not read: NaN there reaches neither values nor gradients.

    Why: the row of a placeholder's id is trained by nothing; it may lie in memory that was never written, or be that
    of an id beyond the vocabulary. Zero times NaN is NaN, in the forward pass or only in the backward.

    Example: ``embeddings * (1 - mask) + placed * mask``.
    """
    inputs: Inputs = trial.inputs
    hidden = inputs.masked()[..., None]
    if not bool(hidden.any()):
        raise Inexpressible("has no placeholder")
    spoilt = dataclasses.replace(inputs, embeddings=inputs.embeddings.masked_fill(hidden, math.nan))
    again = trial.call(spoilt, trial.upstream)
    yield from _unchanged(trial, again, "NaN in the embeddings of placeholders was read")


def strided(trial: Trial) -> Iterator[Evidence]:
    """Views of larger buffers are read by their strides, and nothing beside them.

    Why: features are slices of a padded batch, embeddings come with the sequence first in memory; what lies between
    is another sample's, or was never written.

    Example: a kernel that takes the first N times H numbers of the features' memory.
    """
    inputs: Inputs = trial.inputs
    features: dict[str, Any] = {name: _beside(rows) for name, rows in inputs.flat().items()}
    views = dataclasses.replace(
        inputs, embeddings=_beside(inputs.embeddings.transpose(0, 1)).transpose(0, 1),
        input_ids=inputs.input_ids.t().contiguous().t(), **features,
    )  # fmt: skip
    if inputs.layout == "stacked":
        views = dataclasses.replace(views, layout="list")  # what is cut out of a buffer has no third dimension
    yield from _unchanged(trial, trial.call(views, trial.upstream), "views of larger buffers gave another answer")


def _beside(x: Tensor) -> Tensor:
    """The same values as a view of every second row of a buffer of NaN, with columns beside it."""
    shape = (2 * x.shape[0], *x.shape[1:-1], x.shape[-1] + PADDED)
    buffer = torch.full(shape, math.nan, dtype=x.dtype, device=x.device)
    view = buffer[::2][..., : x.shape[-1]]
    view.copy_(x.detach())
    return view


def layouts(trial: Trial) -> Iterator[Evidence]:
    """Features as one matrix, as a list of media or, where all are of a size, stacked: the same answer.

    Why: which of them an encoder gives depends on its family and on the batch. A list whose first entry alone is
    taken, or a stack read as [N,H], works for the batches that a test has.

    Example: an ``except`` around ``torch.stack`` that goes on with the first image of a ragged batch.
    """
    asked = [_layout(trial, layout) for layout in LAYOUTS if layout != trial.inputs.layout]
    yield from answerable(asked)


def _layout(trial: Trial, layout: str) -> Iterator[Evidence]:
    inputs: Inputs = trial.inputs
    if layout == "stacked" and any(len(set(inputs.media(name))) > 1 for name in inputs.flat()):
        raise Inexpressible("media of different sizes cannot be stacked")
    again = trial.call(dataclasses.replace(inputs, layout=layout), trial.upstream)
    yield from _unchanged(trial, again, f"features handed over as {layout} gave another answer")


def _unchanged(trial: Trial, again: Outcome, message: str) -> Iterator[Evidence]:
    """Evidence where values or gradients are not, bit for bit, those of the ordinary call."""
    first = trial.outcome
    for kind, one, other in (("", first.values, again.values), ("grad:", first.grads, again.grads)):
        for name in one:
            if name not in other or not same_bits(one[name], other[name]):
                yield Evidence(where=f"{kind}{name}", measured="another answer", limit="the same", message=message)


def mixed(trial: Trial) -> Iterator[Evidence]:
    """Features of another dtype than the embeddings are refused, or cast; what comes out has the embeddings' dtype.

    Why: towers are often kept in float32 beside a language model in bfloat16. A result that is promoted makes every
    layer after it run in float32, or fail far from here; bits that are reinterpreted are noise.

    Example: ``torch.where(mask, features, embeddings)``, which promotes.
    """
    inputs: Inputs = trial.inputs
    (output,) = trial.operation.outputs
    other = torch.float32 if trial.dtype != torch.float32 else torch.bfloat16
    changed: dict[str, Any] = {name: rows.detach().to(other) for name, rows in inputs.flat().items()}
    if not changed:
        raise Inexpressible("has no features")
    outcome = trial.attempt(dataclasses.replace(inputs, **changed))
    if outcome.raised:
        return
    out = outcome.values[output]
    if out.dtype != trial.dtype:
        yield Evidence(
            where=output, measured=str(out.dtype), limit=str(trial.dtype),
            message=f"features in {other} changed the dtype of the result",
        )  # fmt: skip
    elif out.shape == inputs.embeddings.shape and trial.operation.name == scatter.NAME:
        for name, rows in changed.items():
            yield from exactly(output, out[inputs.mask(name)], rows.to(trial.dtype), f"{other} was not rounded")


def _pictured(_operation: Operation, case: Case) -> str | None:
    return None if case.sizes() else "no media"


_both = partial(Law.of, BOTH)
_scatter = partial(Law.of, (scatter.NAME,))

LAWS = (
    _scatter(placement, _pictured), Law.of((deepstack.NAME,), added, _pictured), _both(text),
    _both(reaches, _pictured), _scatter(alike, _pictured), _both(visible, _pictured), _scatter(unread, _pictured),
    _both(strided, _pictured), _both(layouts, _pictured), _both(mixed, _pictured),
)  # fmt: skip
