"""The laws of what a family's own forward puts to its placeholders."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from assay.audits.components.masked_scatter.model import NAME, Case
from assay.audits.families.samples import parse
from assay.audits.families.scatter_given import LAYERS
from assay.audits.families.scatter_run import ScatterCall
from assay.audits.laws.parity import exactly
from assay.audits.laws.trial import Trial, answerable
from assay.audits.terms import Evidence, Inexpressible, Law, Operation, Outcome, Outputs


def placement(trial: Trial) -> Iterator[Evidence]:
    """Feature i of a modality reaches the text model at its i-th placeholder, bit for bit.

    Why: what a forward does between the tower and the text model differs from family to family: flattening, splitting
    by image, cutting off padding, one mask for images and videos. Each is a place to lose the order.

    Example: features of all images followed by those of all videos, put to the placeholders of both in one go.
    """
    yield from placed(trial.outcome.values)


def placed(out: Outputs) -> Iterator[Evidence]:
    """Evidence unless each modality's features stand at its placeholders, in order."""
    for name, mask in _masks(out):
        if f"feature:{name}" in out:
            got, want = out["embeddings"][mask], _expected(out, name)
            if got.shape != want.shape:
                raise Inexpressible(f"its {name} features are not as many as its placeholders")
            yield from exactly("embeddings", got, want, f"not the {name} features in order")


def text(trial: Trial) -> Iterator[Evidence]:
    """Words and padding reach the text model as the embedding layer gave them, bit for bit.

    Why: what is scaled or rounded here is so a second time where the layer or the text model does it too.

    Example: a family that multiplies all rows by the square root of its width, images included.
    """
    yield from worded(trial.outcome.values)


def worded(out: Outputs) -> Iterator[Evidence]:
    """Evidence unless all other rows are those of the embedding layer."""
    words = ~_any(out)
    yield from exactly("embeddings", out["embeddings"][words], out["text"][words], "a word's embedding changed")


def reaches(trial: Trial) -> Iterator[Evidence]:
    """Gradients reach the features that were used and the embeddings of words, and nothing at placeholders.

    Why: a projector that gets no gradient is a fine-tune of the text model alone, and the loss falls all the same.

    Example: features that are computed under ``no_grad`` for inference and kept so for training.
    """
    yield from reached(trial.outcome.values)


def reached(out: Outputs) -> Iterator[Evidence]:
    """Evidence unless gradients go to words and features, to each its own."""
    masked, upstream = _any(out), out["upstream"]
    words = upstream if bool(out["adds"]) else torch.where(masked[..., None], 0.0, upstream)
    yield from exactly("grad:text", out["grad:text"], words, "not the gradient of the words alone")
    for name, mask in _masks(out):
        if f"feature:{name}" in out and out[f"grad:feature:{name}"].shape == upstream[mask].shape:
            got = out[f"grad:feature:{name}"]
            yield from exactly(f"grad:{name}", got, upstream[mask], f"not the gradient at the {name}s' placeholders")


def surplus(trial: Trial) -> Iterator[Evidence]:
    """More features than placeholders are an error: one more, a whole medium more.

    Why: truncation of a prompt cuts placeholders, never pixels. What is left over moves everything behind it.

    Example: a forward that goes by ``masked_scatter`` alone, which takes what it needs from the front.
    """
    yield from answerable(_refused(trial, features=amount) for amount in ("more", "medium"))


def missing(trial: Trial) -> Iterator[Evidence]:
    """Fewer features than placeholders are an error: one less, one for all, a placeholder that somebody typed.

    Why: the user's text may hold the placeholder, and the model may generate it. Its row is then that of some image, or
    of a word that was never trained.

    Example: assignment by a mask, which repeats a single feature over all places.
    """
    yield from answerable(
        [_refused(trial, features="less"), _refused(trial, features="one"), _refused(trial, typed=True)]
    )


def unfilled(trial: Trial) -> Iterator[Evidence]:
    """Placeholders are an error where the forward is given no media at all.

    Why: a collator that forgets the pixels, or text that was tokenised with a placeholder in it, trains the model on
    the embedding of an id that means nothing, and answers are learned without their image.

    Example: a count that is only taken ``if pixel_values is not None``.
    """
    outcome = attempted(trial, features="none")
    if outcome.raised is None:
        out = outcome.values
        count = int(_any(out).sum())
        kept = bool(torch.equal(out["embeddings"][_any(out)], out["text"][_any(out)]))
        said = "they stay embeddings of the id" if kept else "they become something else"
        yield Evidence(
            where="embeddings", measured=float(count), limit=0.0,
            message=f"no media were given, and so many placeholders were accepted: {said}",
        )  # fmt: skip


def compensated(trial: Trial) -> Iterator[Evidence]:
    """A feature too many of one modality does not make up for one that another lacks.

    Why: with one count for images and videos, frames stand where a picture was announced.

    Example: one mask for both modalities.
    """
    yield from _refused(trial, features="moved")


def straddles(trial: Trial) -> Iterator[Evidence]:
    """A placeholder too many in one sample does not make up for one that another sample lacks.

    Why: counts are compared over the batch. Two samples that are wrong by one each pass, and the last rows of the one's
    image are put into the other; in a batch of one the same sample would have been refused.

    Example: ``input_ids == image_token_id`` summed over the batch.
    """
    outcome = attempted(trial, typed=True, lost=True)
    if outcome.raised is None:
        whose = [_samples(out) for out in (trial.outcome.values, outcome.values)]
        moved = float((whose[0] != whose[1]).sum()) if whose[0].shape == whose[1].shape else math.inf
        yield Evidence(
            where="embeddings", measured=moved, limit=0.0,
            message="one sample has a placeholder too many, a later one too few: so many features changed samples",
        )  # fmt: skip


def numbers(trial: Trial) -> Iterator[Evidence]:
    """The error about a wrong count says how many placeholders and how many features there are.

    Why: both numbers are what a cut-off prompt is told by; a wrong one sends whoever reads it the wrong way.

    Example: a number of features that is multiplied by their width.
    """
    found = [_number(trial, amount) for amount in ("more", "less")]
    yield from [item for item in found if item is not None][:1]


def order(trial: Trial) -> Iterator[Evidence]:
    """Samples in another order, with their media, reach the text model with the same rows.

    Why: a sampler shuffles. Features sorted by size in a tower must come back in the order of the batch.

    Example: media grouped by their shape.
    """
    call: ScatterCall = trial.inputs
    out = trial.varied(samples=call.samples[::-1], keys=call.keys[::-1])["embeddings"].flip(0)
    yield from _same(out, trial.outcome.values["embeddings"], "the order of samples matters")


def neighbours(trial: Trial) -> Iterator[Evidence]:
    """Other words and other media in all samples but one leave that one as it was.

    Why: what a batch is put together from is chance.

    Example: features normalised over the batch.
    """
    call: ScatterCall = trial.inputs
    first = trial.outcome.values["embeddings"]
    for place in sorted({0, len(call.keys) - 1}):
        others = tuple(key for key in call.keys if key != call.keys[place])
        out = trial.varied(changed=others)["embeddings"]
        yield from _same(out[place], first[place], f"sample {place} depends on the others")


def micro(trial: Trial) -> Iterator[Evidence]:
    """A sample by itself, with its own media, reaches the text model with the rows that it has in the batch.

    Why: a batch of one is what inference has. A sample without media goes another way through the forward than beside
    one with an image.

    Example: a forward that pads features to the longest sample.
    """
    call: ScatterCall = trial.inputs
    whole = trial.outcome.values["embeddings"]
    for place, (sample, key) in enumerate(zip(call.samples, call.keys, strict=True)):
        out = trial.varied(samples=(sample,), keys=(key,))["embeddings"][0]
        own = whole[place][-len(out) :] if call.padding == "left" else whole[place][: len(out)]
        yield from _same(out, own, f"sample {place} by itself differs from the batch")


def alike(trial: Trial) -> Iterator[Evidence]:
    """A word with the embedding of the placeholder is a word, where ids are given.

    Why: new tokens are initialised as copies, or all alike.

    Example: placeholders that are looked for among the embeddings.
    """
    out = trial.varied(twin=True)
    for name, mask in _masks(out):
        if f"feature:{name}" in out:
            message = f"with a word whose embedding is the placeholder's, not the {name} features in order"
            yield from exactly("embeddings", out["embeddings"][mask], _expected(out, name), message)
    words = ~_any(out)
    yield from exactly("embeddings", out["embeddings"][words], out["text"][words], "a word was taken for a placeholder")


def deepstack(trial: Trial) -> Iterator[Evidence]:
    """Features of inner layers are handed on for the rows of their own placeholders, in order, layer by layer.

    Why: they are put together from images and videos in a way of their own, beside the main features.

    Example: features of images and videos concatenated, for a mask in which they alternate.
    """
    out = trial.outcome.values
    visual = [(name, mask) for name, mask in _masks(out) if name in ("image", "video") and f"feature:{name}" in out]
    if "deepstack:mask" not in out or not visual:
        raise Inexpressible("has no deepstack features")
    either = torch.stack([mask for _, mask in visual]).any(0)
    yield from exactly("deepstack:mask", out["deepstack:mask"], either, "not the placeholders of images and videos")
    for layer in range(LAYERS):
        for name, mask in visual:
            got, want = out[f"deepstack:{layer}"][mask], out[f"feature:{name}"] * (2 + layer)
            yield from exactly(f"deepstack:{layer}", got, want, f"not the {name} features of that layer in order")


def inner_reaches(trial: Trial) -> Iterator[Evidence]:
    """Gradients come back from every layer that adds features of inner layers.

    Why: these features train the tower from within, by a way of their own beside the main ones. Without it the loss
    falls a little slower, and fine detail is what is never learned.

    Example: a patch that detaches them so that checkpointed layers do not compute them again.
    """
    out, asked = trial.outcome.values, False
    for name, mask in _masks(out):
        for layer in range(LAYERS):
            got = out.get(f"grad:deepstack:{layer}:{name}")
            if got is not None and got.shape == out["upstream"][mask].shape:
                asked = True
                want = out["upstream"][mask] * (2 + layer)
                message = f"not the gradient of the {name}s' inner features"
                yield from exactly(f"grad:deepstack:{layer}", got, want, message)
    if not asked:
        raise Inexpressible("has no deepstack features")


def _masks(out: Outputs) -> list[tuple[str, Tensor]]:
    return [(name.partition(":")[2], mask) for name, mask in out.items() if name.startswith("mask:")]


def _expected(out: Outputs, name: str) -> Tensor:
    """What is to stand at a modality's placeholders: its features, on top of the embeddings in families that add."""
    rows = out[f"feature:{name}"]
    below = out["text"][out[f"mask:{name}"]]
    return rows + below if bool(out["adds"]) and below.shape == rows.shape else rows


def _samples(out: Outputs) -> Tensor:
    """The samples of the placeholders of the first modality that has features, in order."""
    name = next(name for name, _ in _masks(out) if f"feature:{name}" in out)
    return out[f"mask:{name}"].nonzero()[:, 0]


def _any(out: Outputs) -> Tensor:
    """[B,S] bool: the placeholders of all modalities."""
    return torch.stack([mask for _, mask in _masks(out)]).any(0)


def _same(got: Tensor, want: Tensor, message: str) -> Iterator[Evidence]:
    if got.shape != want.shape:
        shapes = [f"shape {tuple(x.shape)}" for x in (got, want)]
        yield Evidence(where="embeddings", measured=shapes[0], limit=shapes[1], message=message)
    else:
        yield from exactly("embeddings", got, want, message)


def attempted(trial: Trial, **changes: Any) -> Outcome:
    """A call that may be refused, asked once for all laws."""
    wrong = dataclasses.replace(trial.inputs, **changes)
    outcome: Outcome = trial.once(f"wrong {sorted(changes.items())}", lambda: trial.attempt(wrong))
    return outcome


def _refused(trial: Trial, **changes: Any) -> Iterator[Evidence]:
    said = {
        "more": "a feature more than placeholders", "medium": "the features of a medium more than placeholders",
        "less": "a feature less than placeholders", "one": "one feature for all placeholders",
        "moved": "a feature too many of one modality, one too few of another",
        "typed": "a placeholder more than features",
    }[str(changes.get("features", "typed"))]  # fmt: skip
    if changes.get("features") == "one" and int(_any(trial.outcome.values).sum()) < 2:
        raise Inexpressible("has one placeholder")
    if attempted(trial, **changes).raised is None:
        yield Evidence(where="embeddings", measured="no error", limit="an error", message=f"{said}: accepted")


def _number(trial: Trial, amount: str) -> Evidence | None:
    """What is wrong with the error about a wrong count; None where nothing is, or where there is no error."""
    outcome = attempted(trial, features=amount)
    if outcome.raised is None:
        return None
    out = trial.outcome.values
    name = next(name for name, _ in _masks(out) if f"feature:{name}" in out)
    tokens = int(out[f"mask:{name}"].sum())
    said = {int(number) for number in re.findall(r"\d+", outcome.raised.message)}
    step = 1 if amount == "more" else -1
    media = sum(type(part).__name__.lower() == name for row in trial.inputs.samples for part in parse(row).segments)
    if tokens in said and {tokens + step, tokens + step * media} & said:  # stacked ones change by one in each
        return None
    return Evidence(
        where="error", measured=outcome.raised.message[:200], limit=f"{tokens} tokens, and the number of features",
        message=f"with {amount} {name} features than placeholders the error does not say both counts",
    )  # fmt: skip


def pictured(_operation: Operation, case: Case) -> str | None:
    """Why a law of media has nothing to ask of a case; None where it has."""
    return None if case.modalities else "no media"


def _several(_operation: Operation, case: Case) -> str | None:
    return None if len(case.samples) > 1 else "one sample"


_law = partial(Law.of, (NAME,))

LAWS = (
    _law(placement, pictured), _law(text, pictured), _law(reaches, pictured), _law(surplus, pictured),
    _law(missing, pictured), _law(unfilled, pictured), _law(compensated, pictured), _law(straddles, _several),
    _law(numbers, pictured), _law(order, _several), _law(neighbours, _several), _law(micro, pictured),
    _law(alike, pictured), _law(deepstack, pictured), _law(inner_reaches, pictured),
)  # fmt: skip
