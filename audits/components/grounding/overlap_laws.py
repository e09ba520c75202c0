"""The laws of the overlap of two boxes, as a function of its own or within the metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from assay.audits.components.grounding.metric_views import (
    AVERAGES,
    SHARES,
    alike,
    detected_alone,
    equal,
    flat,
    overlap,
    overlap_of,
    pair,
    scaled,
    slack_of,
)
from assay.audits.components.grounding.metrics import NAME, Inputs
from assay.audits.laws.rounded import agree
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Law, Operation

REFUSALS = frozenset({"ValueError", "AssertionError"})
"""What says that a box is refused; other errors are accidents."""


def overlaps(trial: Trial) -> Iterator[Evidence]:
    """The overlap of two boxes is the area that they share over the area that they cover.

    Why: boxes that are apart on both axes have two negative sides, whose product is positive; a pixel that is added to
    each side is nothing in an image of a thousand and everything in one of a unit square.

    Example: ``(min(x2) - max(x1)) * (min(y2) - max(y1))`` without a limit at zero.
    """
    inputs: Inputs = trial.inputs
    for what, box, other, truth in _PAIRS:
        got = overlap(trial, scaled(box, inputs), scaled(other, inputs))
        yield from equal("iou", got, truth, slack_of(inputs, 0.01), f"{what}: {list(box)} and {list(other)}")


_PAIRS = (
    ("a quarter within", (0.2, 0.2, 0.4, 0.4), (0.2, 0.2, 0.6, 0.6), 0.25),
    ("a half moved", (0.2, 0.2, 0.6, 0.4), (0.4, 0.2, 0.8, 0.4), 1 / 3),
    ("a corner shared", (0.1, 0.1, 0.5, 0.5), (0.3, 0.3, 0.7, 0.7), 1 / 7),
    ("a cross", (0.1, 0.4, 0.9, 0.6), (0.4, 0.1, 0.6, 0.9), 1 / 7),
    ("apart on both axes", (0.1, 0.1, 0.3, 0.3), (0.6, 0.6, 0.9, 0.9), 0.0),
    ("apart on one axis", (0.1, 0.1, 0.3, 0.9), (0.6, 0.1, 0.9, 0.9), 0.0),
    ("apart on both axes, the other way", (0.6, 0.1, 0.9, 0.3), (0.1, 0.6, 0.3, 0.9), 0.0),
    ("an edge shared", (0.1, 0.1, 0.3, 0.3), (0.3, 0.1, 0.5, 0.3), 0.0),
    ("at the origin", (0.0, 0.0, 0.5, 0.5), (0.0, 0.0, 1.0, 1.0), 0.25),
)
"""Two boxes in shares of the image, and their overlap."""


def symmetric(trial: Trial) -> Iterator[Evidence]:
    """The overlap does not depend on which of the two boxes is the prediction.

    Why: an intersection over the area of the target is a recall. It is 1 for a box that is the whole image.

    Example: a division by the area of one box.
    """
    inputs = detected_alone(trial.inputs)
    swapped = dataclasses.replace(inputs, predicted=inputs.target, target=inputs.predicted)
    yield from alike(trial, inputs, swapped, "prediction and target changed places")


def itself(trial: Trial) -> Iterator[Evidence]:
    """A target given as the prediction has an overlap of 1, and is correct at every threshold.

    Why: it is the least that can be asked, and one side read as (x, y, width, height) already fails it.

    Example: a target in COCO's form beside a prediction by its corners.
    """
    inputs: Inputs = trial.inputs
    perfect = dataclasses.replace(inputs, predicted=inputs.target, found=torch.ones_like(inputs.found))
    values, slack = trial.run(perfect), slack_of(inputs)
    for name in sorted({*SHARES, *AVERAGES, "ious"} & set(values)):
        for got in flat(values[name])[:1]:
            yield from equal(name, got, 1.0, slack, "every prediction is its target")


def units(trial: Trial) -> Iterator[Evidence]:
    """The same boxes in another unit, or beside another origin, have the same metrics.

    Why: coordinates come in pixels, in thousandths and as shares of the image. One that is added to a side means a
    pixel in the first and the whole image in the last, where every overlap is then nearly 1.

    Example: ``x2 - x1 + 1`` on coordinates between 0 and 1.
    """
    inputs = detected_alone(trial.inputs)
    for factor, shift in ((1 / inputs.size[0], 0.0), (3.7, 0.0), (1.0, 0.0 if inputs.clip else inputs.size[1] / 3)):
        other = dataclasses.replace(
            inputs, predicted=inputs.predicted * factor + shift, target=inputs.target * factor + shift,
            size=(inputs.size[0] * factor, inputs.size[1] * factor),
        )  # fmt: skip
        yield from alike(trial, inputs, other, f"coordinates times {factor:g}, plus {shift:g}")


def degenerate(trial: Trial) -> Iterator[Evidence]:
    """A box without width or height overlaps nothing: no error, no NaN, and never a correct answer.

    Why: models write such boxes early in training. A division by an area of zero ends the evaluation, or makes the mean
    NaN for all samples; guarded the wrong way it is a perfect score.

    Example: ``(inter + eps) / (union + eps)``, which is 1 for two points.
    """
    inputs: Inputs = trial.inputs
    normal = (0.2, 0.2, 0.6, 0.6)
    for what, box, other in (
        ("a point as the prediction", (0.3, 0.3, 0.3, 0.3), normal),
        ("a line as the prediction", (0.2, 0.3, 0.6, 0.3), normal),
        ("a point as both", (0.3, 0.3, 0.3, 0.3), (0.3, 0.3, 0.3, 0.3)),
        ("a line as both", (0.3, 0.2, 0.3, 0.6), (0.3, 0.2, 0.3, 0.6)),
        ("zeros as both", (0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0)),
    ):
        outcome = trial.attempt(pair(inputs, scaled(box, inputs), scaled(other, inputs)))
        refused = outcome.raised and outcome.raised.kind in REFUSALS and box == other  # such a target is bad data
        if outcome.raised and not refused:
            said = f"{outcome.raised.kind}: {outcome.raised.message}"[:200]
            yield Evidence(where="iou", measured=said, limit="0", message=f"{what} is an error")
        elif not outcome.raised:
            got = overlap_of(outcome.values)
            if got != 0 and not agree(got, 0.0):
                yield Evidence(where="iou", measured=got, limit=0.0, message=what)


def turned(trial: Trial) -> Iterator[Evidence]:
    """A prediction whose corners come in another order counts as if they were in order, or as nothing, or is an error.

    Why: two negative sides make a positive area, one makes a negative one: unions shrink, and quotients are above 1 or
    below 0.

    Example: corners that are taken as they are.
    """
    inputs: Inputs = trial.inputs
    x1, y1, x2, y2 = (0.2, 0.2, 0.6, 0.5)
    target = (0.3, 0.3, 0.7, 0.7)
    truth = 0.06 / (0.12 + 0.16 - 0.06)
    for what, box in (
        ("left and right", (x2, y1, x1, y2)), ("top and bottom", (x1, y2, x2, y1)), ("both", (x2, y2, x1, y1)),
    ):  # fmt: skip
        outcome = trial.attempt(pair(inputs, scaled(box, inputs), scaled(target, inputs)))
        if outcome.raised:
            continue
        got, slack = overlap_of(outcome.values), slack_of(inputs, 0.01)
        if not (agree(got, truth, slack) or agree(got, 0.0, slack)):
            yield Evidence(where="iou", measured=got, limit=truth, message=f"{what} of the prediction changed places")


def clipped(trial: Trial) -> Iterator[Evidence]:
    """A prediction that reaches beyond the image counts with the part of it that lies within, where that is declared.

    Why: models round outwards. What lies outside can belong to no target and makes every overlap smaller; a box that
    lies outside as a whole has none.

    Example: coordinates clipped to the width on both axes.
    """
    inputs: Inputs = trial.inputs
    for what, box, other, truth in (
        ("below the image", (0.5, 0.5, 0.9, 1.4), (0.5, 0.5, 0.9, 1.0), 1.0),
        ("right of the image", (0.6, 0.2, 1.5, 0.6), (0.6, 0.2, 1.0, 0.6), 1.0),
        ("left of and above the image", (-0.3, -0.2, 0.4, 0.4), (0.0, 0.0, 0.4, 0.8), 0.5),
        ("outside as a whole", (1.2, 1.2, 1.5, 1.6), (0.6, 0.6, 0.9, 0.9), 0.0),
    ):
        got = overlap(trial, scaled(box, inputs), scaled(other, inputs))
        yield from equal("iou", got, truth, slack_of(inputs, 0.01), what)
    if not inputs.fixed:
        yield from _each_to_its_own(trial)


def _each_to_its_own(trial: Trial) -> Iterator[Evidence]:
    """Of two images the second is twice as wide and half as high; its prediction reaches beyond the first, and itself.

    Both predictions are their targets, once clipped.
    """
    width, height = trial.inputs.size
    target = [[0.5 * width, 0.5 * height, width, height], [1.2 * width, 0.1 * height, 2 * width, 0.5 * height]]
    beyond = [[0.5 * width, 0.5 * height, 1.4 * width, 1.2 * height], [1.2 * width, 0.1 * height, 3 * width, height]]
    made = dataclasses.replace(
        trial.inputs, found=torch.ones(2, dtype=torch.bool), target=torch.tensor(target, dtype=torch.float64),
        predicted=torch.tensor(beyond, dtype=torch.float64),
        images=torch.tensor([[width, height], [2 * width, 0.5 * height]], dtype=torch.float64),
    )  # fmt: skip
    values = trial.run(made)
    for name in sorted({*SHARES, *AVERAGES, "ious"} & set(values)):
        for got in flat(values[name]):
            yield from equal(name, got, 1.0, slack_of(made), "two images of different sizes")


def _clips(_operation: Operation, case: Any) -> str | None:
    return None if case.clip else "predictions are not said to be clipped"


def _never_clips(_operation: Operation, case: Any) -> str | None:
    return "predictions are clipped, targets are not" if case.clip else None


def _any_unit(_operation: Operation, case: Any) -> str | None:
    return "the function is declared to be of one unit" if case.fixed else None


_law = partial(Law.of, (NAME,))

LAWS = (
    _law(overlaps), _law(symmetric, _never_clips), _law(itself), _law(units, _any_unit), _law(degenerate), _law(turned),
    _law(clipped, _clips),
)  # fmt: skip
