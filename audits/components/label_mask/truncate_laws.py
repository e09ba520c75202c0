"""The laws of cutting a labelled sequence."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from assay.audits.components.label_mask.truncate import IMAGE, NAME, START, Inputs
from assay.audits.laws.parity import exactly
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Inexpressible, Law, Outcome
from assay.reference.label_mask import IGNORE


def together(trial: Trial) -> Iterator[Evidence]:
    """Labels are cut where ids are: the labels of what is left are what is left of the labels.

    Why: two arrays that are cut by two rules are out of step from then on, by as many tokens as were cut.

    Example: ids cut on the left, as the tokenizer's settings say, and the mask always on the right.
    """
    inputs: Inputs = trial.inputs
    ids, labels = (trial.outcome.values[name] for name in ("input_ids", "labels"))
    if ids.shape != labels.shape:
        yield Evidence(
            where="labels", measured=f"{len(labels)} labels", limit=f"{len(ids)} ids",
            message="ids and labels are not cut to the same length",
        )  # fmt: skip
        return
    of = dict(zip(inputs.input_ids.tolist(), inputs.labels.tolist(), strict=True))
    own = torch.tensor([of.get(token, IGNORE) for token in ids.tolist()], dtype=torch.int64)
    yield from exactly("labels", labels, own, "the label of a token is not the one it had")


def slices(trial: Trial) -> Iterator[Evidence]:
    """What is left is the beginning of the sequence, or its end where it is cut on the left, as long as allowed.

    Why: a side that is ignored drops the answer instead of the oldest turns. A piece out of the middle is a text that
    nobody wrote.

    Example: the side of the tokenizer's settings not read.
    """
    inputs: Inputs = trial.inputs
    ids = trial.outcome.values["input_ids"]
    limit, whole = inputs.max_length, len(inputs.input_ids)
    if len(ids) > limit:
        yield Evidence(where="input_ids", measured=len(ids), limit=limit, message="more tokens than allowed are left")
    elif len(ids) < min(whole, limit) and not inputs.divides(limit):
        yield Evidence(
            where="input_ids", measured=len(ids), limit=min(whole, limit), message="more is cut off than need be"
        )
    else:
        rest = inputs.input_ids[: len(ids)] if inputs.side == "right" else inputs.input_ids[whole - len(ids) :]
        yield from exactly("input_ids", ids, rest, f"cut at the {inputs.side}, something else is left")


def images(trial: Trial) -> Iterator[Evidence]:
    """No image is cut in two, wherever the cut falls: all of it is left, or none, or it is an error.

    Why: the features of an image are as many as its placeholders were. With some of them gone the counts do not match,
    and where that is repaired in silence, the features of later images move.

    Example: a slice of the ids.
    """
    inputs: Inputs = trial.inputs
    if not len(inputs.blocks):
        raise Inexpressible("the sequence has no image")
    for first, last in inputs.pairs:
        for cut in sorted({first + 1, (first + last) // 2, last - 1}):
            length = cut if inputs.side == "right" else len(inputs.input_ids) - cut
            if inputs.divides(length):
                yield from _whole(inputs, length, _asked(trial, length))


def _asked(trial: Trial, length: int) -> Outcome:
    return trial.attempt(dataclasses.replace(trial.inputs, max_length=length))


def _whole(inputs: Inputs, length: int, outcome: Outcome) -> Iterator[Evidence]:
    if outcome.raised:
        return
    left = outcome.values["input_ids"].tolist()
    edges = [edge for edge in inputs.pairs if edge[0] < inputs.cut(length) < edge[1]]
    rest = edges[0][0] if inputs.side == "right" else len(inputs.input_ids) - edges[0][1]
    if 0 < len(left) < rest:
        yield Evidence(
            where="input_ids", measured=f"{len(left)} tokens", limit=f"{rest}, up to the image that does not fit",
            message=f"cut to {length} of {len(inputs.input_ids)} tokens, more than the image is dropped",
        )  # fmt: skip
    kinds = {int(last) - int(first) - 2 for first, last in inputs.pairs}
    found = _counts(left)
    if not set(found) <= kinds or left.count(IMAGE) != sum(found):
        yield Evidence(
            where="input_ids", measured=f"{found} placeholders", limit="whole images, or an error",
            message=f"cut to {length} of {len(inputs.input_ids)} tokens, an image is cut in two",
        )  # fmt: skip


def _counts(ids: list[int]) -> list[int]:
    """The placeholders between each marker that opens an image and the one that closes it; -1 for one without."""
    counts: list[int] = []
    for place, token in enumerate(ids):
        if token == START:
            rest = ids[place + 1 :]
            count = next((i for i, after in enumerate(rest) if after != IMAGE), len(rest))
            counts.append(count if count < len(rest) else -1)
    return counts


def unnoticed(trial: Trial) -> Iterator[Evidence]:
    """Where no trained token is left, it is an error, or nothing at all is left.

    Why: a long image before a short answer is cut to a prompt. The sample costs a step, teaches nothing, and a batch
    of such samples is a loss of 0 / 0. That is so beside an image that is dropped whole, too.

    Example: right truncation of ids and labels, and no look at what is left of them.
    """
    inputs: Inputs = trial.inputs
    lengths = _untrained(inputs)
    if not lengths:
        raise Inexpressible("every cut leaves something to train on")
    for length in lengths:
        outcome = _asked(trial, length)
        if not outcome.raised and len(outcome.values["labels"]):
            yield Evidence(
                where="labels", measured="no trained token, and no error", limit="an error, or nothing left",
                message=f"cut to {length} of {len(inputs.input_ids)} tokens, the sample has nothing to train on",
            )  # fmt: skip
            return


def _untrained(inputs: Inputs) -> list[int]:
    """Lengths that leave nothing to train on: the longest without and with an image that the cut falls into."""
    found: dict[bool, int] = {}
    for length in range(1, len(inputs.input_ids)):
        cut = inputs.cut(length)
        left = inputs.labels[:cut] if inputs.side == "right" else inputs.labels[cut:]
        if not bool((left != IGNORE).any()):
            found[inputs.divides(length)] = length
    return sorted(found.values())


LAWS = (
    Law.of((NAME,), together),
    Law.of((NAME,), slices),
    Law.of((NAME,), images),
    Law.of((NAME,), unnoticed),
)
