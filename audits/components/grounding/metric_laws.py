"""The laws of grounding metrics over samples. Numbers may be rounded; whether a threshold counts is open."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from assay.audits.components.grounding.metric_views import (
    AVERAGES,
    MEANS,
    SHARES,
    alike,
    counted,
    equal,
    flat,
    mean,
    middle,
    missed,
    over_all,
    paired,
    part,
    present,
    slack_of,
    together,
)
from assay.audits.components.grounding.metrics import NAME, Inputs
from assay.audits.laws.rounded import GUARD, agree, rounding
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Inexpressible, Law, Operation


def rate(trial: Trial) -> Iterator[Evidence]:
    """The detection rate is the share of answers with a box, of all answers.

    Why: it is the number that says whether the others mean anything. Whatever else a model gets wrong, it shows here
    first: labels on the wrong tokens took it from 95 to 15 %.

    Example: a rate over the answers that could be parsed, which is always 1.
    """
    got = present(trial.outcome.values, "detection_rate")["detection_rate"]
    found = trial.inputs.found
    yield from equal("detection_rate", got, float(found.double().mean()), 0.0, f"{int(found.sum())} of {len(found)}")


def accuracy(trial: Trial) -> Iterator[Evidence]:
    """The accuracy at a threshold is the share of all samples whose overlap reaches it.

    Why: it is what papers compare. Over the answers with a box alone it rises as a model falls silent.

    Example: ``mean(iou > 0.5 for iou in ious)``, where ``ious`` has the parsed answers only.
    """
    values = present(trial.outcome.values, "accuracy")
    ious, slack = trial.inputs.truth().ious, slack_of(trial.inputs)
    for threshold, got in zip(values["thresholds"].tolist(), values["accuracy"].tolist(), strict=True):
        low, high = (float((ious >= threshold + sign * (slack + 1e-6)).double().mean()) for sign in (1, -1))
        if not (low <= got <= high or agree(got, low) or agree(got, high)):
            yield Evidence(
                where=f"accuracy@{threshold:g}", measured=got, limit=low,
                message=f"{round(low * len(ious))} of {len(ious)} samples reach an overlap of {threshold:g}",
            )  # fmt: skip


def averages(trial: Trial) -> Iterator[Evidence]:
    """A mean or median of overlaps is over all samples, with 0 for an answer without a box, unless it says otherwise.

    Why: a mean over the answers that have a box rose by 194 % while 85 % of the answers lost theirs. It is a number of
    its own, and needs a name of its own: ``mean_iou_detected``, or a declared call form.

    Example: overlaps collected in a list to which only parsed answers are appended.
    """
    inputs: Inputs = trial.inputs
    values, slack = present(trial.outcome.values, *AVERAGES), slack_of(inputs)
    for name, (got,) in paired(values, values):
        every, over = over_all(name, inputs), counted(name, inputs)
        low, high = middle(over) if name.startswith("median") else (mean(over),) * 2
        if not len(over) and (math.isnan(got) or got == 0):
            continue
        if not (low <= got <= high or agree(got, low, slack) or agree(got, high, slack)):
            survivors = inputs.truth().mean_iou_detected
            as_of = every and name.startswith("mean") and survivors is not None and agree(got, survivors, slack)
            said = f"over all {len(over)} samples" if every else f"over the {len(over)} with a box"
            yield Evidence(
                where=name, measured=got, limit=low,
                message=f"{said}{'; this is the mean over those with a box' if as_of else ''}",
            )  # fmt: skip


def bounded(trial: Trial) -> Iterator[Evidence]:
    """Every number lies between 0 and 1; no accuracy is above the detection rate, nor above that at a lower threshold.

    Why: who has no box is correct at no threshold. A report in which more is correct than was found is over two
    different sets of samples.

    Example: an accuracy over parsed answers beside a detection rate over all.
    """
    values = trial.outcome.values
    for name in sorted({*SHARES, *AVERAGES, "ious"} & set(values)):
        for got in values[name].flatten().tolist():
            if got < -GUARD or got > 1 + GUARD:
                yield Evidence(where=name, measured=got, limit="0 to 1", message="outside of its range")
                return
    if "accuracy" not in values:
        return
    found = [values["detection_rate"].item()] if "detection_rate" in values else []
    for threshold, got in zip(values["thresholds"].tolist(), values["accuracy"].tolist(), strict=True):
        if found and got > found[-1] and not agree(got, found[-1]):
            yield Evidence(
                where=f"accuracy@{threshold:g}", measured=got, limit=found[-1],
                message="above the detection rate, or above the accuracy at a lower threshold",
            )  # fmt: skip
        found.append(got)


def undetected(trial: Trial) -> Iterator[Evidence]:
    """More answers without a box lower every share, and every average over all samples, by their number.

    Why: an answer that is no box is a wrong answer. Left out of the list it costs nothing, and the quickest way to a
    better number is to answer less.

    Example: ``if box is None: continue``.
    """
    inputs: Inputs = trial.inputs
    count, more = len(inputs.found), 3
    after = trial.run(together(inputs, missed(inputs, more)))
    for name, (one, other) in paired((*SHARES, *MEANS), trial.outcome.values, after):
        if not (math.isnan(one) and math.isnan(other)):
            want = one * count / (count + more) if over_all(name, inputs) else one
            told = f"with {more} answers without a box beside {count}"
            yield from equal(name, other, want, slack_of(inputs) + rounding(one), told)


def survivors(trial: Trial) -> Iterator[Evidence]:
    """Taking the box away from the answers that were worst makes no share, and no average over all, better.

    Why: a fine-tuning that breaks the format of answers keeps the easy ones. A report in which that looks like progress
    has been the reason to ship it.

    Example: a mean over survivors, from 0.11 to 0.33 while detection went from 90 to 15 %.
    """
    inputs: Inputs = trial.inputs
    ious = inputs.truth().ious
    if not bool(inputs.found.any()):
        raise Inexpressible("no answer has a box")
    kept = inputs.found & (ious >= ious[inputs.found].max())
    lost = int(inputs.found.sum() - kept.sum())
    after = trial.run(dataclasses.replace(inputs, found=kept))
    for name, (one, other) in paired((*SHARES, *MEANS), trial.outcome.values, after):
        if over_all(name, inputs) and not (other <= one or agree(other, one)):
            told = f"better, after {lost} of {len(kept)} answers have lost their box"
            yield Evidence(where=name, measured=other, limit=one, message=told)


def order(trial: Trial) -> Iterator[Evidence]:
    """The order of the samples changes nothing.

    Why: answers come back from several processes in any order; a prediction that is compared with its neighbour's
    target has an overlap too.

    Example: predictions without the unparsed ones, paired with all targets.
    """
    inputs: Inputs = trial.inputs
    back = dataclasses.replace(
        inputs, predicted=inputs.predicted.flip(0), found=inputs.found.flip(0), target=inputs.target.flip(0)
    )
    yield from alike(trial, inputs, back, "the samples in another order")


def joined(trial: Trial) -> Iterator[Evidence]:
    """The metrics of a set are those of its parts, weighted by their samples.

    Why: evaluations run on several ranks, whose parts are not equal. A mean of means is another number, and so is one
    that drops the last part.

    Example: a mean over batches, of which the last has fewer samples.
    """
    inputs: Inputs = trial.inputs
    count = len(inputs.found)
    cut = max(1, count // 3)
    parts = (part(inputs, slice(0, cut)), part(inputs, slice(cut, count)))
    values = [trial.run(each) for each in parts]
    for name, (got, *shares) in paired((*SHARES, *MEANS), trial.outcome.values, *values):
        every = over_all(name, inputs)
        sizes = [len(each.found) if every else int(each.found.sum()) for each in parts]
        if sum(sizes):
            terms = [size * share for size, share in zip(sizes, shares, strict=True) if size]
            slack = slack_of(inputs) + 2 * max(map(rounding, shares))
            told = f"of {cut} and {count - cut} samples, and of all"
            yield from equal(name, got, sum(terms) / sum(sizes), slack, told)


def nothing(trial: Trial) -> Iterator[Evidence]:
    """Where no answer has a box, all shares are 0, and nothing fails.

    Why: that is what a broken format looks like, and the moment at which the report is needed most.

    Example: a mean of an empty list.
    """
    inputs: Inputs = trial.inputs
    outcome = trial.attempt(dataclasses.replace(inputs, found=torch.zeros_like(inputs.found)))
    if outcome.raised:
        said = f"{outcome.raised.kind}: {outcome.raised.message}"[:200]
        yield Evidence(where="call", measured=said, limit="0", message="no answer has a box: an error")
        return
    for name in (*SHARES, *AVERAGES):
        for got in flat(outcome.values[name]) if name in outcome.values else ():
            if got != 0 and (over_all(name, inputs) or not math.isnan(got)):
                yield Evidence(where=name, measured=got, limit=0.0, message="no answer has a box")


def _several(_operation: Operation, case: Any) -> str | None:
    return None if len(case.ious) > 1 else "there is one sample"


_law = partial(Law.of, (NAME,))

LAWS = (
    _law(rate), _law(accuracy), _law(averages), _law(bounded), _law(undetected), _law(survivors),
    _law(order, _several), _law(joined, _several), _law(nothing),
)  # fmt: skip
