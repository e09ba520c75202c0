"""The laws of padding labelled samples to a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from assay.audits.components.label_mask import left_alone
from assay.audits.components.label_mask.collate import EMPTY, NAME, OPTIONAL, Inputs
from assay.audits.laws.parity import exactly
from assay.audits.laws.trial import Trial, answerable
from assay.audits.terms import Evidence, Inexpressible, Law, Operation, Outputs
from assay.reference.label_mask import IGNORE

CARRIED = ("token_types", "spans")
ROWS = ("input_ids", "labels", "attention_mask")
PER_TOKEN = ("labels", "attention_mask", "token_types")


def shaped(trial: Trial) -> Iterator[Evidence]:
    """All rows of a batch have one length, that of the longest sample or more, one for each sample; labels are int64.

    Why: a row of labels that is shorter than its ids is broadcast or cut by whatever comes next.

    Example: labels that are padded to the longest row of labels, ids to a multiple of eight.
    """
    inputs: Inputs = trial.inputs
    values = trial.outcome.values
    for name in ROWS:
        shape = tuple(values[name].shape) if name in values else ()
        width = values["input_ids"].shape[-1] if "input_ids" in values and values["input_ids"].ndim else 0
        if shape != (len(inputs.examples), width) or width < max(inputs.lengths):
            yield Evidence(
                where=name, measured=f"shape {shape}" if shape else "absent",
                limit=f"{len(inputs.examples)} rows of one length, at least {max(inputs.lengths)}",
                message="missing or misshapen",
            )  # fmt: skip
    if "labels" in values and values["labels"].dtype != torch.int64:
        yield Evidence(
            where="labels", measured=str(values["labels"].dtype), limit="torch.int64",
            message="no cross entropy takes labels of this type",
        )  # fmt: skip


def _places(inputs: Inputs, outputs: Outputs) -> list[slice]:
    """Where each sample stands in its row; :class:`Inexpressible` where rows have no such places."""
    width = outputs["input_ids"].shape[-1] if "input_ids" in outputs else 0
    fits = all(name in outputs and outputs[name].shape == (len(inputs.examples), width) for name in ROWS)
    if not fits or width < max(inputs.lengths):
        raise Inexpressible("the rows are misshapen: a law of its own")
    left = inputs.side == "left"
    return [slice(width - length, width) if left else slice(0, length) for length in inputs.lengths]


def conserved(trial: Trial) -> Iterator[Evidence]:
    """Each sample stands in its row as it was, at the side that it is padded to: ids, mask and whatever is per token.

    Why: padding moves tokens. What is not moved with them belongs to other tokens from then on.

    Example: ids padded on the left, token types on the right.
    """
    inputs: Inputs = trial.inputs
    values = trial.outcome.values
    for sample, place in enumerate(_places(inputs, values)):
        for name in ("input_ids", "attention_mask", "token_types"):
            if name in values:
                own = getattr(inputs.examples[sample], name)
                yield from exactly(name, values[name][sample, place], own, f"sample {sample} is not as it was")


def labels(trial: Trial) -> Iterator[Evidence]:
    """The labels of a sample's tokens are those that were given, whatever the tokens are.

    Why: which tokens are trained was decided before, from the conversation. A collator that makes labels from ids, or
    masks them by id, undoes it.

    Example: every label with the pad's id ignored, where the pad is the end of text.
    """
    inputs: Inputs = trial.inputs
    values = trial.outcome.values
    for sample, place in enumerate(_places(inputs, values)):
        own = inputs.examples[sample].labels
        yield from exactly("labels", values["labels"][sample, place], own, f"the labels of sample {sample} are others")


def pads(trial: Trial) -> Iterator[Evidence]:
    """Padding is the pad's id, is masked, and is not trained.

    Why: a trained pad teaches the model to write pads; one that is not masked is text to all that follows.

    Example: labels padded with zeros.
    """
    inputs: Inputs = trial.inputs
    values = trial.outcome.values
    real = torch.zeros(values["input_ids"].shape, dtype=torch.bool)
    for sample, place in enumerate(_places(inputs, values)):
        real[sample, place] = True
    fills = {"input_ids": inputs.pad_id, "labels": IGNORE, "attention_mask": 0, "token_types": 0}
    for name, fill in fills.items():
        if name in values:
            filled = torch.full_like(values[name], fill)
            yield from exactly(name, values[name].where(~real, filled), filled, "padding holds something")


def pad_id(trial: Trial) -> Iterator[Evidence]:
    """Which token is the pad changes no label and no mask.

    Why: where the end of text stands in for a pad, whoever masks by id masks every end of a turn with it, and the
    model never stops.

    Example: ``labels[labels == pad_token_id] = -100``.
    """
    other = dataclasses.replace(trial.inputs, pad="eos" if trial.inputs.pad == "own" else "own")
    values, changed = trial.outcome.values, trial.run(other)
    for name in PER_TOKEN:
        if name in values and name in changed:
            yield from _equal(name, changed[name], values[name], "another pad changed it")


def sides(trial: Trial) -> Iterator[Evidence]:
    """Samples stand at the other end of their rows where they are padded on the other side, unchanged.

    Why: training pads right, generation pads left. A collator that reads the side in one place and not in another is
    right for one of them.

    Example: spans that are counted from the start of the row, whichever side the padding is on.
    """
    inputs: Inputs = trial.inputs
    other = dataclasses.replace(inputs, side="left" if inputs.side == "right" else "right")
    values, changed = trial.outcome.values, trial.run(other)
    before, after = _places(inputs, values), _places(other, changed)
    for sample, (own, its) in enumerate(zip(before, after, strict=True)):
        for name in ("input_ids", *PER_TOKEN):
            if name in values and name in changed:
                message = f"sample {sample} differs on the other side"
                yield from _equal(name, changed[name][sample, its], values[name][sample, own], message)


def optional(trial: Trial) -> Iterator[Evidence]:
    """An optional key that a sample lacks means the same as its empty default: in one sample, in the last, in all.

    Why: real data has samples without it. A direct look-up crashes on the first of them; one that takes the keys of
    the first sample for all drops what the others have.

    Example: ``example["spans"]`` where ``example.get("spans", [])`` was.
    """
    inputs: Inputs = trial.inputs
    count = len(inputs.examples)
    several = dict.fromkeys([(0,), (count - 1,), tuple(range(count))])
    yield from answerable(_dropped(trial, key, samples) for key in OPTIONAL for samples in several)


def _dropped(trial: Trial, key: str, samples: tuple[int, ...]) -> Iterator[Evidence]:
    inputs: Inputs = trial.inputs
    examples = tuple(
        dataclasses.replace(example, **{key: _empty(example.input_ids, key)}) if sample in samples else example
        for sample, example in enumerate(inputs.examples)
    )
    emptied = dataclasses.replace(inputs, examples=examples)
    lacking = dataclasses.replace(emptied, absent=tuple((sample, key) for sample in samples))
    truth, outcome = trial.run(emptied), trial.attempt(lacking)
    message = f"without {key} in samples {list(samples)} of {len(inputs.examples)}"
    if outcome.raised:
        said = f"{outcome.raised.kind}: {outcome.raised.message}"[:200]
        yield Evidence(where=key, measured=said, limit="the batch of an empty default", message=f"{message}, no batch")
        return
    for name in ROWS if key not in truth else (*ROWS, key):
        if name in truth and not (name == key and name not in outcome.values and _says_nothing(key, truth[name])):
            yield from _equal(name, outcome.values.get(name), truth[name], f"{message}, differs")


def _says_nothing(key: str, value: Tensor) -> bool:
    """Whether a batch may as well be without it."""
    return not value.numel() or (key in EMPTY and bool((value == EMPTY[key]).all()))


def _empty(ids: Tensor, key: str) -> Tensor:
    return torch.full_like(ids, EMPTY[key]) if key in EMPTY else ids.new_zeros((0, 2))


def carried(trial: Trial) -> Iterator[Evidence]:
    """Types of tokens and spans that samples were handed over with are in the batch.

    Why: a key that a collator does not know is lost without a sign. Where the types of tokens are gone, a model attends
    to its images as if they were text, or takes all positions for those of text.

    Example: a batch that is made of ids, labels and mask, and of nothing else that a sample has.
    """
    values = trial.outcome.values
    told = [name for name, said in zip(CARRIED, values["said"].tolist(), strict=True) if said]
    if not told:
        raise Inexpressible("no sample says more than ids, labels and mask")
    for name in told:
        if name not in values:
            yield Evidence(
                where=name, measured="absent", limit="what the samples say",
                message=f"the samples have {name}, the batch has none",
            )  # fmt: skip


def spans(trial: Trial) -> Iterator[Evidence]:
    """Spans of tokens point at the same tokens in the padded rows, with the sample that they belong to.

    Why: padding on the left moves every token. Spans that stay point into the padding, or at other words, and the loss
    on them is taken there.

    Example: the spans of the samples concatenated as they are.
    """
    inputs: Inputs = trial.inputs
    values = trial.outcome.values
    if "spans" not in values:
        raise Inexpressible("the answer has no spans")
    places = _places(inputs, values)
    truth = torch.cat([
        torch.cat([torch.full((len(example.spans), 1), sample), example.spans + places[sample].start], dim=1)
        for sample, example in enumerate(inputs.examples)
    ])  # fmt: skip
    yield from _equal("spans", values["spans"], truth, "a span points at other tokens")


def neighbours(trial: Trial) -> Iterator[Evidence]:
    """A sample is the same alone as in a batch, but for its padding.

    Why: what is read off the first sample, its keys, its length, is right for it alone.

    Example: labels dropped from the batch because the first sample has none.
    """
    inputs: Inputs = trial.inputs
    values = trial.outcome.values
    for sample, place in enumerate(_places(inputs, values)):
        single = dataclasses.replace(inputs, examples=(inputs.examples[sample],))
        alone = trial.run(single)
        own = _places(single, alone)[0]
        for name in ("input_ids", *PER_TOKEN):
            if name in values and name in alone:
                message = f"sample {sample} differs from itself alone"
                yield from _equal(name, values[name][sample, place], alone[name][0, own], message)


def untouched(trial: Trial) -> Iterator[Evidence]:
    """The examples are as they were after the call.

    Why: a data set in memory hands out the same objects again. A key that was popped is not there in the next epoch.

    Example: ``example.pop("labels")``.
    """
    yield from left_alone.changes(trial, "examples")


def _equal(name: str, got: Tensor | None, truth: Tensor, message: str) -> Iterator[Evidence]:
    if got is None or got.shape != truth.shape:
        measured = "absent" if got is None else f"shape {tuple(got.shape)}"
        yield Evidence(where=name, measured=measured, limit=f"shape {tuple(truth.shape)}", message=message)
    else:
        yield from exactly(name, got, truth, message)


def _several(_operation: Operation, case: Any) -> str | None:
    return None if len(case.lengths) > 1 else "one sample has no neighbour"


LAWS = (
    Law.of((NAME,), shaped),
    Law.of((NAME,), conserved),
    Law.of((NAME,), labels),
    Law.of((NAME,), pads),
    Law.of((NAME,), pad_id),
    Law.of((NAME,), sides),
    Law.of((NAME,), optional),
    Law.of((NAME,), carried),
    Law.of((NAME,), spans),
    Law.of((NAME,), neighbours, _several),
    Law.of((NAME,), untouched),
)
