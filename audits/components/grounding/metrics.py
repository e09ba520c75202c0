"""``grounding.metrics``: predicted boxes and targets to the numbers that a run is compared by.

Letters: N samples, T thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from assay.audits.candidates import of_reference
from assay.audits.components.grounding import scores
from assay.audits.fields import Count, one_of
from assay.audits.strategies import st
from assay.audits.terms import Form, Operation, Outputs, Relations
from assay.reference import grounding_metrics

NAME = "grounding.metrics"
NONE = -1.0
"""The overlap of an answer without a box, in a case."""
THRESHOLDS = (0.5, 0.75)
UNITS: Mapping[str, tuple[float, float]] = {"pixels": (640.0, 480.0), "thousand": (1000.0, 1000.0), "unit": (1.0, 1.0)}
"""Width and height of an image in each unit of coordinates."""
CLEAR = 1e-3
"""No overlap of a case is nearer than this to a threshold: whether equality counts is a convention."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """``predicted`` and ``target`` float64 [N,4], of which ``predicted`` means something where ``found`` [N] is True.

    ``size``: width and height of the images, in the unit of the boxes. ``clip``: predictions are to be clipped to it.
    ``images`` float64 [N,2], None where all have this size. ``fixed``: the function knows the size without being told.
    ``counted``: whom a mean or median is over that does not say it by its name, ``all`` samples or the ``detected``.
    """

    predicted: Tensor
    found: Tensor
    target: Tensor
    size: tuple[float, float]
    clip: bool
    counted: str
    fixed: bool = False
    images: Tensor | None = None

    def predictions(self) -> list[list[float] | None]:
        """As an evaluation hands them over: a box, or None."""
        return [box if there else None for box, there in zip(self.predicted.tolist(), self.found.tolist(), strict=True)]

    def targets(self) -> list[list[float]]:
        """As an evaluation hands them over."""
        boxes: list[list[float]] = self.target.tolist()
        return boxes

    def sizes(self) -> list[tuple[float, float]] | None:
        """One for each sample, where predictions are clipped to it."""
        if not self.clip:
            return None
        if self.images is None:
            return [self.size] * len(self.target)
        return [(width, height) for width, height in self.images.tolist()]

    def truth(self) -> grounding_metrics.Metrics:
        """The specification's answer."""
        return grounding_metrics.grounding_metrics(
            self.predictions(), self.targets(), thresholds=THRESHOLDS, sizes=self.sizes()
        )


@dataclass(frozen=True, kw_only=True)
class Case:
    """Parameters of a case: the overlap of each sample, -1 for an answer without a box; the seed places the boxes.

    ``repeated``: the first sample, with its boxes, stands there so many times more. ``fixed``: the function clips to
    the size of the unit, which it knows.
    """

    seed: Count = 0
    ious: tuple[Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)], ...] = (0.9, 0.6, NONE, 0.3, 0.0, 0.8, NONE)
    unit: Annotated[str, one_of(UNITS)] = "pixels"
    clip: bool = False
    counted: Annotated[str, one_of(("all", "detected"))] = "all"
    repeated: Count = 0
    fixed: bool = False


def build(case: Case, _dtype: torch.dtype, device: torch.device) -> Inputs:
    """Targets of different sizes at different places, and predictions that overlap them as the case says."""
    generator = torch.Generator().manual_seed(case.seed)
    width, height = UNITS[case.unit]
    targets, boxes = [], []
    for place, iou in enumerate(case.ious):
        x, y, w, h = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        target = (width * (0.25 + x / 4), height * (0.25 + y / 4), width * (0.1 + w / 7), height * (0.1 + h / 7))
        targets.append([target[0], target[1], target[0] + target[2], target[1] + target[3]])
        boxes.append(_overlapping(targets[-1], iou, place % 4))
    more = case.repeated
    targets, boxes, ious = ([*each, *each[:1] * more] for each in (targets, boxes, [*case.ious]))
    return Inputs(
        predicted=torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4).to(device),
        found=torch.tensor([iou != NONE for iou in ious], dtype=torch.bool).to(device),
        target=torch.tensor(targets, dtype=torch.float64).reshape(-1, 4).to(device),
        size=(width, height), clip=case.clip, counted=case.counted, fixed=case.fixed,
    )  # fmt: skip


def _overlapping(target: list[float], iou: float, way: int) -> list[float]:
    """A box with this overlap: moved along one axis, grown or shrunk, or (for 0) apart on both axes."""
    x1, y1, x2, y2 = target
    w, h = x2 - x1, y2 - y1
    if iou <= 0:
        sign = -1 if way % 2 else 1
        return [x1 + sign * 1.1 * w, y1 + sign * 1.2 * h, x2 + sign * 1.1 * w, y2 + sign * 1.2 * h]
    step = (1 - iou) / (1 + iou)
    return [
        [x1 + step * w, y1, x2 + step * w, y2],
        [x1, y1 - step * h, x2, y2 - step * h],
        [x1, y1, x1 + iou * w, y2],
        [x1, y1, x2, y1 + h / iou] if iou > 0.4 else [x1, y2 - iou * h, x2, y2],
    ][way]


def supports(case: Case) -> str | None:
    """At least one sample; no overlap so near a threshold that a convention decides."""
    if not case.ious:
        return "there are no samples"
    near = any(abs(iou - t) < CLEAR for iou in case.ious for t in THRESHOLDS)
    if any(-1 < iou < 0 for iou in case.ious):
        return "an overlap is -1, for no box, or between 0 and 1"
    if case.fixed and not case.clip:
        return "a size that is known is clipped to"
    return "an overlap is at a threshold, where a convention decides" if near else None


def reference(inputs: Inputs) -> Outputs:
    """The specification."""
    return told(inputs, inputs.truth().ious)


def told(inputs: Inputs, ious: Tensor, **changes: Tensor) -> Outputs:
    """What is reported of some overlaps [N], of which those without a box count as 0."""
    found = inputs.found
    over = ious if inputs.counted == "all" else ious[found]
    return {
        "detection_rate": found.double().mean(),
        "mean_iou": average(over),
        "median_iou": middle(over),
        "thresholds": torch.tensor(THRESHOLDS, dtype=torch.float64),
        "accuracy": torch.stack([(ious >= t).double().mean() for t in THRESHOLDS]),
        "ious": ious,
        **changes,
    }


def average(values: Tensor) -> Tensor:
    """The mean, NaN of nothing."""
    return values.mean() if values.numel() else torch.tensor(math.nan, dtype=torch.float64)


def middle(values: Tensor) -> Tensor:
    """The median, NaN of nothing."""
    return values.quantile(0.5) if values.numel() else torch.tensor(math.nan, dtype=torch.float64)


def _metrics(function: Callable[..., Any], inputs: Inputs, percent: float = 1.0) -> Outputs:
    return scores.read(function(inputs.predictions(), inputs.targets()), inputs.found, percent)


def _sized(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    made = function(inputs.predictions(), inputs.targets(), inputs.sizes())
    return scores.read(made, inputs.found)


def _iou(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    pairs = zip(inputs.predictions(), inputs.targets(), strict=True)
    return scores.overlaps([function(box, other) for box, other in pairs if box is not None], inputs.found)


FORMS = (
    Form(
        name="metrics",
        summary="function(predictions, targets) -> {detection_rate, mean_iou, median_iou, acc@0.5, acc@0.75, ious}, or "
        "some of these; a prediction is a box or None; averages are over all samples unless named mean_iou_detected",
        parameters=("predictions", "targets"),
        call=_metrics,
        fixes={"clip": False, "counted": "all", "fixed": False},
    ),
    Form(
        name="metrics-detected",
        summary="as metrics, whose mean_iou and median_iou are declared to be over the answers that have a box",
        parameters=(),
        call=_metrics,
        fixes={"clip": False, "counted": "detected", "fixed": False},
    ),
    Form(
        name="metrics-percent",
        summary="as metrics, all in percent",
        parameters=(),
        call=lambda function, inputs: _metrics(function, inputs, 100.0),
        fixes={"clip": False, "counted": "all", "fixed": False},
    ),
    *(
        Form(
            name=f"metrics-{unit}",
            summary=f"as metrics, of boxes {what} alone, to which predictions are clipped",
            parameters=(),
            call=_metrics,
            fixes={"clip": True, "counted": "all", "fixed": True, "unit": unit},
        )
        for unit, what in (("thousand", "in thousandths of the image, 0 to 1000,"), ("unit", "between 0 and 1"))
    ),
    Form(
        name="sized",
        summary="function(predictions, targets, sizes) -> as metrics; predictions are clipped to (width, height)",
        parameters=("predictions", "targets", "sizes"),
        call=_sized,
        fixes={"clip": True, "counted": "all", "fixed": False},
    ),
    Form(
        name="iou",
        summary="function(box1, box2) -> the overlap of two boxes (x1, y1, x2, y2)",
        parameters=("box1", "box2"),
        call=_iou,
        fixes={"clip": False, "fixed": False},
    ),
)

BASE = (0.8, 0.55, 0.551, 0.552, *(0.1422,) * 18, *(0.0,) * 23, *(NONE,) * 5)
"""As reported before a fine-tuning: 45 of 50 with a box, a mean over these of 0.111, a median of 0, 4 and 1 correct."""
TUNED = (*(0.9,) * 14, *(0.6,) * 3, *(0.1043,) * 9, *(0.0634,) * 24)
"""And after it: 50 of 50, 0.337, 0.104, 17 and 14."""
COLLAPSED = (0.81, 0.62, 0.3, 0.1, 0.08, 0.055, *(NONE,) * 34)
"""A fine-tuning whose labels were wrong: 15 % with a box, and a mean over these that is three times that of before."""

CASES = {
    "ordinary": Case(),
    "before-tuning": Case(ious=BASE, seed=1),
    "tuned": Case(ious=TUNED, unit="thousand", seed=2),
    "collapsed": Case(ious=COLLAPSED, seed=3),
    "collapsed-declared": Case(ious=COLLAPSED, counted="detected", seed=3),
    "unit-square": Case(ious=(0.9, 0.2, 0.7, NONE, 0.0, 0.45), unit="unit", seed=4),
    "clipped": Case(ious=(0.95, 0.4, NONE, 0.6), clip=True, seed=5),
    "all-found": Case(ious=(1.0, 0.7, 0.2, 0.0), seed=6),
    "perfect": Case(ious=(1.0, 1.0, 1.0), unit="unit", seed=7),
    "none-found": Case(ious=(NONE, NONE, NONE), seed=8),
    "none-found-declared": Case(ious=(NONE, NONE), counted="detected", seed=9),
    "one": Case(ious=(0.65,), seed=10),
    "one-missed": Case(ious=(0.0,), unit="thousand", seed=11),
    "repeated": Case(ious=(0.9, 0.2, NONE, 0.3, 0.6), repeated=3, seed=13),
    "even": Case(ious=(0.9, NONE, 0.3, 0.1), seed=12),
}


def strategy() -> st.SearchStrategy[Case]:
    """Up to a dozen overlaps, among them none, 0 and 1, in each unit."""
    iou = st.one_of(st.sampled_from([NONE, 0.0, 1.0]), st.integers(1, 99).map(lambda n: n / 100 + 0.004))
    return st.builds(
        Case, seed=st.integers(0, 2**16), ious=st.lists(iou, min_size=1, max_size=12).map(tuple),
        unit=st.sampled_from(tuple(UNITS)), clip=st.booleans(), counted=st.sampled_from(("all", "all", "detected")),
        repeated=st.sampled_from((0, 0, 2)),
    )  # fmt: skip


OPERATION = Operation(
    name=NAME,
    summary="predicted boxes and targets to detection rate, overlaps and accuracies",
    params=Case,
    build=build,
    outputs=("detection_rate", "mean_iou", "accuracy"),
    expect=Relations(),
    forms=FORMS,
    cases=CASES,
    strategy=strategy,
    supports=supports,
    dtypes=("float64",),
)

CANDIDATES = (of_reference(NAME, f"{__name__}:reference", origin="assay.reference.grounding_metrics"),)
