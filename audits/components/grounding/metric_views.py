"""What laws of grounding metrics read of answers, and how they ask about other samples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from assay.audits.components.grounding.metrics import Inputs
from assay.audits.laws.rounded import GUARD, agree
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Inexpressible, Outputs

AVERAGES = tuple(f"{name}{over}" for name in ("mean_iou", "median_iou") for over in ("", "_all", "_detected"))
SHARES = ("detection_rate", "accuracy")
MEANS = tuple(name for name in AVERAGES if name.startswith("mean"))


def present(values: Outputs, *names: str) -> dict[str, Tensor]:
    """What an answer has of these, and its thresholds. Inexpressible where it has none."""
    found = {name: values[name] for name in names if name in values}
    if not found:
        raise Inexpressible(f"the answer has no {' or '.join(names)}")
    return found | ({"thresholds": values["thresholds"]} if "accuracy" in found else {})


def equal(where: str, got: Tensor | float, want: float, slack: float, message: str) -> Iterator[Evidence]:
    """Evidence unless two numbers agree."""
    if not agree(float(got), want, slack):
        yield Evidence(where=where, measured=float(got), limit=want, message=message)


def alike(trial: Trial, one: Inputs, other: Inputs, message: str) -> Iterator[Evidence]:
    """Evidence for each metric, but the order of overlaps, that differs between two sets of samples."""
    before, after = trial.run(one), trial.run(other)
    slack = slack_of(one) + slack_of(other)
    for name in (*SHARES, *AVERAGES):
        if name in before and name in after:
            for left, right in zip(flat(before[name]), flat(after[name]), strict=True):
                if not (math.isnan(left) and math.isnan(right)):
                    yield from equal(name, right, left, slack, message)
    if "ious" in before and "ious" in after:
        ours, theirs = (values["ious"].sort().values for values in (before, after))
        worst = int((ours - theirs).abs().argmax())
        yield from equal("ious", theirs[worst], float(ours[worst]), slack, message)


def over_all(name: str, inputs: Inputs) -> bool:
    """Whether a metric is over all samples, by its name or by what was declared."""
    if name in SHARES or name.endswith("_all"):
        return True
    return inputs.counted == "all" and not name.endswith("_detected")


def counted(name: str, inputs: Inputs) -> Tensor:
    """The overlaps that an average is over."""
    ious = inputs.truth().ious
    return ious if over_all(name, inputs) else ious[inputs.found]


def paired(names: Iterable[str], *answers: Outputs) -> Iterator[tuple[str, tuple[float, ...]]]:
    """The numbers that all answers have, side by side. Inexpressible where there are none."""
    shared = [name for name in names if all(name in values for values in answers)]
    if not shared:
        raise Inexpressible("the answer has no share and no mean that this is said of")
    for name in shared:
        yield from ((name, numbers) for numbers in zip(*(flat(values[name]) for values in answers), strict=True))


def mean(values: Tensor) -> float:
    """The mean, NaN of nothing."""
    return float(values.mean()) if len(values) else math.nan


def middle(values: Tensor) -> tuple[float, float]:
    """The two values in the middle: either, or what lies between, is called the median."""
    if not len(values):
        return math.nan, math.nan
    ranked = values.sort().values
    return float(ranked[(len(ranked) - 1) // 2]), float(ranked[len(ranked) // 2])


def overlap_of(values: Outputs) -> float:
    """The overlap of the only sample; 0 where nothing is said of it because it does not count as found."""
    for name in ("ious", *MEANS):
        if name in values:
            got = float(values[name].flatten()[0])
            return 0.0 if math.isnan(got) and name.endswith("_detected") else got
    raise Inexpressible("the answer has no overlap and no mean of them")


def pair(inputs: Inputs, box: list[float], other: list[float]) -> Inputs:
    """One sample: a predicted box, and its target."""
    predicted, target = (torch.tensor([x], dtype=torch.float64) for x in (box, other))
    return dataclasses.replace(inputs, predicted=predicted, target=target, found=torch.ones(1, dtype=torch.bool))


def scaled(box: tuple[float, ...], inputs: Inputs) -> list[float]:
    """A box in shares of the image, in the unit of the boxes."""
    return [share * size for share, size in zip(box, (*inputs.size, *inputs.size), strict=True)]


def part(inputs: Inputs, which: slice | Tensor) -> Inputs:
    """Some of the samples."""
    chosen: dict[str, Any] = {name: getattr(inputs, name)[which] for name in ("predicted", "found", "target")}
    return dataclasses.replace(inputs, **chosen)


def detected_alone(inputs: Inputs) -> Inputs:
    """The samples that have a box, alone."""
    if not bool(inputs.found.any()):
        raise Inexpressible("no answer has a box")
    return part(inputs, inputs.found)


def missed(inputs: Inputs, count: int) -> Inputs:
    """So many answers without a box, to the first target."""
    return dataclasses.replace(
        inputs, predicted=torch.zeros(count, 4, dtype=torch.float64), found=torch.zeros(count, dtype=torch.bool),
        target=inputs.target[:1].expand(count, 4).clone(),
    )  # fmt: skip


def together(one: Inputs, other: Inputs) -> Inputs:
    """The samples of both."""
    both: dict[str, Any] = {
        name: torch.cat([getattr(one, name), getattr(other, name)]) for name in ("predicted", "found", "target")
    }
    return dataclasses.replace(one, **both)


def flat(values: Tensor) -> list[float]:
    """The numbers of a tensor."""
    found: list[float] = values.flatten().tolist()
    return found


def slack_of(inputs: Inputs, share: float | None = None) -> float:
    """What a guard adds to an overlap where a box has the least area, or this ``share`` of the image's."""
    if share is not None:
        return GUARD / (share * inputs.size[0] * inputs.size[1])
    area = (inputs.target[:, 2:] - inputs.target[:, :2]).prod(-1)
    return GUARD / float(area.min())


def overlap(trial: Trial, box: list[float], other: list[float]) -> float:
    """The candidate's overlap of two boxes."""
    return overlap_of(trial.run(pair(trial.inputs, box, other)))
