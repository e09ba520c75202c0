"""Wrong metrics of grounding."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from assay.audits.components.grounding.metrics import (
    NAME,
    THRESHOLDS,
    Inputs,
    average,
    middle,
    reference,
    told,
)
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs
from assay.reference.grounding_metrics import box_iou

NOTES = "notes from a fine-tuning on RefCOCO: a mean over survivors rose by 194 % while detection fell to 15 %"


def right(inputs: Inputs) -> Tensor:
    """The overlaps [N] of the specification."""
    return inputs.truth().ious


def seen(inputs: Inputs) -> Tensor:
    """Predictions as they are compared: clipped where that is asked for."""
    limits = torch.tensor([*inputs.size, *inputs.size], dtype=torch.float64)
    return torch.minimum(inputs.predicted.clamp(min=0), limits) if inputs.clip else inputs.predicted


def sides(one: Tensor, other: Tensor) -> Tensor:
    """Width and height [N,2] of what two boxes share, below zero where they are apart."""
    return torch.minimum(one[:, 2:], other[:, 2:]) - torch.maximum(one[:, :2], other[:, :2])


def area(boxes: Tensor, more: float = 0.0) -> Tensor:
    """The area [N] of boxes as they are, with ``more`` added to each side."""
    return (boxes[:, 2:] - boxes[:, :2] + more).prod(-1)


def told_by(inputs: Inputs, shared: Tensor, union: Tensor) -> Outputs:
    """Metrics of quotients, 0 where there is no box."""
    return told(inputs, torch.where(inputs.found, shared / union, 0.0))


@fault(NAME, "averages", "undetected", "survivors", link=NOTES)
def mean_over_survivors(inputs: Inputs) -> Outputs:
    """Overlaps are collected from the answers that could be parsed, and their mean is called the mean overlap.

    Effect: a model that answers less, and only what is easy, looks better.
    """
    own = dataclasses.replace(inputs, counted="detected")
    found = right(inputs)[inputs.found]
    return told(own, right(inputs), mean_iou=average(found).nan_to_num(), median_iou=middle(found).nan_to_num())


@fault(NAME, "accuracy", "bounded", "survivors", link=NOTES)
def accuracy_of_survivors(inputs: Inputs) -> Outputs:
    """Accuracies are shares of the answers that could be parsed.

    Effect: they are above the detection rate, and cannot be compared with anybody's.
    """
    found = right(inputs)[inputs.found]
    shares = torch.stack([(found >= t).double().mean() if len(found) else torch.zeros(()).double() for t in THRESHOLDS])
    return told(inputs, right(inputs), accuracy=shares)


@fault(NAME, "rate", "undetected")
def rate_of_the_parsed(inputs: Inputs) -> Outputs:
    """The detection rate is counted over the answers that could be parsed.

    Effect: it is always 1, also where most answers are no boxes.
    """
    return told(inputs, right(inputs), detection_rate=inputs.found.any().double())


@fault(NAME, "nothing", "undetected", link="https://github.com/stepfun-ai/Step1X-Edit/issues/101")
def silence_counts_as_the_whole_image(inputs: Inputs) -> Outputs:
    """An answer that cannot be parsed is replaced by the box of the whole image.

    Effect: it has an overlap with every target, the larger the target the better.
    """
    whole = torch.tensor([0.0, 0.0, *inputs.size], dtype=torch.float64).expand_as(inputs.predicted)
    boxes = torch.where(inputs.found[:, None], seen(inputs), whole)
    return told(inputs, box_iou(boxes, inputs.target))


@fault(NAME, "nothing")
def mean_of_an_empty_list(inputs: Inputs) -> Outputs:
    """The sum of the parsed answers' overlaps is divided by their number.

    Effect: the evaluation ends with an error where no answer is a box, which is when it is needed.
    """
    if not bool(inputs.found.any()):
        raise ZeroDivisionError("division by zero")
    return reference(inputs)


@fault(NAME, "overlaps", link="https://github.com/yhenon/keras-frcnn/pull/45")
def negative_sides_multiplied(inputs: Inputs) -> Outputs:
    """The shared width and height are not limited at zero.

    Effect: boxes that are apart on both axes overlap, the more the farther they are.
    """
    shared = sides(seen(inputs), inputs.target).prod(-1)
    return told_by(inputs, shared, area(seen(inputs)) + area(inputs.target) - shared)


@fault(
    NAME, "units", "overlaps", link="https://github.com/ZhanYang-nwpu/SkyEyeGPT/issues/6",
    also=("https://github.com/NJU-LHRS/LHRS-Bot/issues/20", "https://github.com/fizyr/keras-retinanet/issues/1317"),
)  # fmt: skip
def one_added_to_each_side(inputs: Inputs) -> Outputs:
    """One is added to each side, as for whole pixels of which the last is included.

    Effect: with coordinates between 0 and 1 every overlap is nearly 1: scores of 0.3 % became 80 %.
    """
    shared = (sides(seen(inputs), inputs.target) + 1).clamp(min=0).prod(-1)
    return told_by(inputs, shared, area(seen(inputs), 1) + area(inputs.target, 1) - shared)


@fault(NAME, "itself", "units", link="https://github.com/xg-chu/CrowdDet/issues/47")
def one_added_to_areas_alone(inputs: Inputs) -> Outputs:
    """One is added to the sides of both boxes and not to those of what they share.

    Effect: no overlap reaches 1, and small boxes are never correct.
    """
    shared = sides(seen(inputs), inputs.target).clamp(min=0).prod(-1)
    return told_by(inputs, shared, area(seen(inputs), 1) + area(inputs.target, 1) - shared)


@fault(NAME, "symmetric", "overlaps")
def divided_by_the_target(inputs: Inputs) -> Outputs:
    """What is shared is divided by the area of the target.

    Effect: the box of the whole image is always right.
    """
    shared = sides(seen(inputs), inputs.target).clamp(min=0).prod(-1)
    return told_by(inputs, shared, area(inputs.target))


@fault(NAME, "itself", "symmetric")
def target_by_width_and_height(inputs: Inputs) -> Outputs:
    """The target is read as (x, y, width, height), as COCO has it.

    Effect: hardly any prediction is correct, however good it is.
    """
    far = torch.cat([inputs.target[:, :2], inputs.target[:, :2] + inputs.target[:, 2:]], dim=-1)
    return told(inputs, torch.where(inputs.found, box_iou(seen(inputs), far), 0.0))


@fault(NAME, "degenerate")
def points_divided_by_zero(inputs: Inputs) -> Outputs:
    """What is shared is divided by what is covered, which is 0 for two boxes without area.

    Effect: one such pair makes the mean of the whole evaluation NaN.
    """
    shared = sides(seen(inputs), inputs.target).clamp(min=0).prod(-1)
    return told_by(inputs, shared, area(seen(inputs)) + area(inputs.target) - shared)


@fault(NAME, "degenerate")
def guarded_above_and_below(inputs: Inputs) -> Outputs:
    """The same constant is added to what is shared and to what is covered.

    Effect: two points have an overlap of 1.
    """
    shared = sides(seen(inputs), inputs.target).clamp(min=0).prod(-1)
    boxes = torch.cat([torch.minimum(seen(inputs)[:, :2], seen(inputs)[:, 2:]), seen(inputs).maximum(
        seen(inputs).roll(2, -1))[:, 2:]], dim=-1)  # fmt: skip
    return told_by(inputs, shared + 1e-9, area(boxes) + area(inputs.target) - shared + 1e-9)


@fault(NAME, "degenerate")
def boxes_without_area_refused(inputs: Inputs) -> Outputs:
    """A prediction without area is an error.

    Effect: an evaluation of an early checkpoint stops at its first bad answer.
    """
    boxes = inputs.predicted[inputs.found]
    if bool((boxes[:, :2] == boxes[:, 2:]).any()):
        raise ValueError("a box has no area")
    return reference(inputs)


@fault(NAME, "turned", link="https://github.com/roboflow/trackers/pull/589")
def corners_taken_as_they_are(inputs: Inputs) -> Outputs:
    """Areas are products of sides that may both be negative.

    Effect: a box that is turned on both axes has an area, and unions are of boxes that do not exist.
    """
    shared = sides(seen(inputs), inputs.target).abs().prod(-1)
    apart = (sides(seen(inputs), inputs.target) < 0).any(-1)
    flipped = (seen(inputs)[:, 2:] < seen(inputs)[:, :2]).any(-1)
    union = area(seen(inputs)) + area(inputs.target) - shared
    return told(inputs, torch.where(inputs.found & flipped, shared / union, torch.where(apart, 0.0, right(inputs))))


@fault(NAME, "clipped")
def clipped_to_the_width_on_both_axes(inputs: Inputs) -> Outputs:
    """Both axes are clipped to the width of the image.

    Effect: in images that are wider than high, boxes reach below the image, and their overlap is too small.
    """
    if not inputs.clip:
        return reference(inputs)
    boxes = inputs.predicted.clamp(0, inputs.size[0])
    return told(inputs, torch.where(inputs.found, box_iou(boxes, inputs.target), 0.0))


@fault(NAME, "order", "averages")
def paired_after_the_unparsed_are_dropped(inputs: Inputs) -> Outputs:
    """Answers that cannot be parsed are dropped, and the others paired with the targets from the first on.

    Effect: after the first silence each answer is compared with the target of another sample.
    """
    boxes = seen(inputs)[inputs.found]
    ious = torch.zeros(len(inputs.found), dtype=torch.float64)
    ious[: len(boxes)] = box_iou(boxes, inputs.target[: len(boxes)])
    return told(inputs, ious)


@fault(NAME, "joined", "averages")
def mean_of_means(inputs: Inputs) -> Outputs:
    """The mean is taken over batches of four, of which the last has fewer samples.

    Effect: the samples of the last batch weigh up to four times as much.
    """
    ious = right(inputs)
    means = torch.stack([ious[start : start + 4].mean() for start in range(0, len(ious), 4)])
    every = inputs.counted == "all"
    return told(inputs, ious, **({"mean_iou": means.mean()} if every else {}))


@fault(NAME, "joined", "averages")
def last_batch_dropped(inputs: Inputs) -> Outputs:
    """What does not fill a batch of four is not evaluated.

    Effect: up to three samples are missing from the end of each rank's part.
    """
    count = max(1, len(inputs.found) // 4) * 4
    parts = {name: getattr(inputs, name)[:count] for name in ("predicted", "found", "target")}
    found = dict(reference(dataclasses.replace(inputs, **parts)))
    del found["ious"]
    return found


@fault(NAME, "averages", "units", link="https://github.com/EvolvingLMMs-Lab/lmms-eval/pull/1373")
def better_of_two_readings(inputs: Inputs) -> Outputs:
    """Of a prediction in two units the one with the larger overlap counts, since models disagree about units.

    Effect: a wrong box is right in the other unit often enough to be seen in the score.
    """
    width, height = inputs.size
    other = inputs.predicted * torch.tensor([width, height, width, height], dtype=torch.float64) / 1000
    ious = torch.maximum(right(inputs), box_iou(other, inputs.target))
    return told(inputs, torch.where(inputs.found, ious, 0.0))


@fault(NAME, "accuracy")
def thresholds_exchanged(inputs: Inputs) -> Outputs:
    """Accuracies are reported under each other's threshold.

    Effect: at the stricter threshold more is correct, and nobody looks.
    """
    return told(inputs, right(inputs), accuracy=dict(reference(inputs))["accuracy"].flip(0))


@fault(NAME, "averages")
def median_of_the_parsed(inputs: Inputs) -> Outputs:
    """The median leaves out what could not be parsed; mean and accuracies do not.

    Effect: it is above the mean of a model that is mostly silent.
    """
    found = right(inputs)[inputs.found]
    return told(inputs, right(inputs), median_iou=middle(found) if len(found) else torch.tensor(0.0).double())


@fault(NAME, "mutates")
def boxes_put_in_order_in_place(inputs: Inputs) -> Outputs:
    """Predictions are clipped to the image in the memory of whoever asks.

    Effect: what is written to the file of predictions afterwards is not what the model said.
    """
    found = reference(inputs)
    inputs.predicted.add_(1.0)
    return found


_last: list[float] = []


@fault(NAME, "nondeterministic")
def running_mean(inputs: Inputs) -> Outputs:
    """The mean runs on from evaluation to evaluation: the list of overlaps is never emptied.

    Effect: a checkpoint is judged by all that came before it.
    """
    _last.extend(right(inputs).tolist() or [math.nan])
    own = torch.tensor(_last, dtype=torch.float64).mean() + 1e-3 * len(_last)
    return told(inputs, right(inputs), mean_iou=own)


@fault(NAME, "leaks")
def default_dtype_set(inputs: Inputs) -> Outputs:
    """The default dtype is set to float64, for the sake of exact areas.

    Effect: every tensor that the training makes from then on is twice as large.
    """
    torch.set_default_dtype(torch.float64)
    return reference(inputs)


FAULTS = gathered(globals())
