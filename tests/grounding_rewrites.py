"""Metrics of grounding as people write them, right and wrong."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from assay.reference.grounding_metrics import grounding_metrics

Box = list[float]


def overlap(box1: Box, box2: Box) -> float:
    """By hand, with early exits."""
    x1, y1 = max(box1[0], box2[0]), max(box1[1], box2[1])
    x2, y2 = min(box1[2], box2[2]), min(box1[3], box2[3])
    if x2 <= x1 or y2 <= y1:
        return 0
    inter = (x2 - x1) * (y2 - y1)
    return inter / ((box1[2] - box1[0]) * (box1[3] - box1[1]) + (box2[2] - box2[0]) * (box2[3] - box2[1]) - inter)


def guarded(box1: Box, box2: Box) -> float:
    """With a small number in the divisor, and areas that are never below zero."""
    w = max(0.0, min(box1[2], box2[2]) - max(box1[0], box2[0]))
    h = max(0.0, min(box1[3], box2[3]) - max(box1[1], box2[1]))
    areas = [max(0, b[2] - b[0]) * max(0, b[3] - b[1]) for b in (box1, box2)]
    return w * h / (sum(areas) - w * h + 1e-6)


def by_torch(box1: Box, box2: Box) -> torch.Tensor:
    """As torchvision computes it, in float64, for boxes in order; else nothing."""
    one, other = torch.tensor([box1, box2], dtype=torch.float64)
    if (one[2:] < one[:2]).any():
        raise ValueError("corners")
    inter = (torch.minimum(one[2:], other[2:]) - torch.maximum(one[:2], other[:2])).clamp(min=0).prod()
    return torch.nan_to_num(inter / ((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod() - inter))


def plain(predictions: list[Box | None], targets: list[Box]) -> dict[str, float]:
    ious = [overlap(p, t) if p else 0.0 for p, t in zip(predictions, targets, strict=True)]
    return {
        "detection_rate": sum(p is not None for p in predictions) / len(predictions),
        "mean_iou": sum(ious) / len(ious), "median_iou": statistics.median_low(ious),
        "acc@0.5": sum(i >= 0.5 for i in ious) / len(ious), "acc@0.75": sum(i > 0.75 for i in ious) / len(ious),
    }  # fmt: skip


def rounded(predictions: list[Box | None], targets: list[Box]) -> dict[str, float]:
    """To four places, with accuracies by short names, and the mean over survivors by its own."""
    ious = np.array([guarded(p, t) if p is not None else np.nan for p, t in zip(predictions, targets, strict=True)])
    found = ~np.isnan(ious)
    report = {
        "Detection rate": found.mean(), "mIoU": np.nan_to_num(ious).mean(), "Acc50": (ious > 0.5).mean(),
        "acc75": (ious > 0.75).mean(), "mean_iou_detected": ious[found].mean() if found.any() else 0.0,
    }  # fmt: skip
    return {name: round(float(value), 4) for name, value in report.items()}


@dataclass
class Report:
    detection_rate: float
    mean_iou: float | None
    median_iou: float | None
    accuracy: dict[str, float]
    ious: list[float]


def survivors_declared(predictions: list[Box | None], targets: list[Box]) -> Report:
    """As in the notes: averages over the answers that have a box, accuracies over all."""
    ious = [overlap(p, t) for p, t in zip(predictions, targets, strict=True) if p is not None]
    count = len(targets)
    return Report(
        detection_rate=len(ious) / count, mean_iou=statistics.fmean(ious) if ious else None,
        median_iou=statistics.median(ious) if ious else None, ious=ious,
        accuracy={str(t): sum(i >= t for i in ious) / count for t in (0.25, 0.5, 0.75)},
    )  # fmt: skip


def in_percent(predictions: list[Box | None], targets: list[Box]) -> dict[str, float]:
    return {name: 100 * value for name, value in plain(predictions, targets).items()}


def with_sizes(predictions: list[Box | None], targets: list[Box], sizes: list[tuple[float, float]]) -> dict[str, Any]:
    clipped = [
        p and [min(max(c, 0), s) for c, s in zip(p, (w, h, w, h), strict=True)]
        for p, (w, h) in zip(predictions, sizes, strict=True)
    ]
    return plain(clipped, targets)


class Two(NamedTuple):
    detection_rate: float
    mean_iou: float


def in_a_named_tuple(predictions: list[Box | None], targets: list[Box]) -> Two:
    made = plain(predictions, targets)
    return Two(made["detection_rate"], made["mean_iou"])


def within_a_thousand(predictions: list[Box | None], targets: list[Box]) -> dict[str, float]:
    """Of Qwen's coordinates, which are clipped to their range."""
    return with_sizes(predictions, targets, [(1000.0, 1000.0)] * len(targets))


def within_one(predictions: list[Box | None], targets: list[Box]) -> dict[str, float]:
    return with_sizes(predictions, targets, [(1.0, 1.0)] * len(targets))


def shares_alone(predictions: list[Box | None], targets: list[Box]) -> dict[str, float]:
    """Two numbers and nothing else, by a running count."""
    hits = found = 0
    for prediction, target in zip(predictions, targets, strict=True):
        if prediction is None:
            continue
        found += 1
        hits += overlap(prediction, target) >= 0.5
    return {"det_rate": found / len(targets), "precision@0.5": hits / len(targets)}


def survivors_undeclared(predictions: list[Box | None], targets: list[Box]) -> dict[str, Any]:
    """Wrong: a mean over survivors that does not say so."""
    return vars(survivors_declared(predictions, targets))


def pixels_counted(box1: Box, box2: Box) -> float:
    """Wrong: one added to each side, in whatever unit."""
    w = max(0.0, min(box1[2], box2[2]) - max(box1[0], box2[0]) + 1)
    h = max(0.0, min(box1[3], box2[3]) - max(box1[1], box2[1]) + 1)
    areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (box1, box2)]
    return w * h / (sum(areas) - w * h)


def divided_by_nothing(box1: Box, box2: Box) -> float:
    """Wrong: two points are a division by zero."""
    w = max(0.0, min(box1[2], box2[2]) - max(box1[0], box2[0]))
    h = max(0.0, min(box1[3], box2[3]) - max(box1[1], box2[1]))
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box1, box2)]
    return w * h / (sum(areas) - w * h)


def by_prediction(predictions: list[Box | None], targets: list[Box]) -> dict[str, float]:
    """Wrong: samples in a dict by what was predicted, in which the same stands once."""
    held = {str(p or place): (p, t) for place, (p, t) in enumerate(zip(predictions, targets, strict=True))}
    return plain([p for p, _ in held.values()], [t for _, t in held.values()])


def size_of_the_first(predictions: list[Box | None], targets: list[Box], sizes: Any) -> dict[str, Any]:
    """Wrong: all are clipped to the first image."""
    return with_sizes(predictions, targets, sizes[:1] * len(targets))


def as_in_the_reference(predictions: list[Box | None], targets: list[Box]) -> Any:
    return grounding_metrics(predictions, targets)


RIGHT = [
    ("as_in_the_reference", "metrics"),
    ("overlap", "iou"), ("guarded", "iou"), ("by_torch", "iou"), ("plain", "metrics"), ("rounded", "metrics"),
    ("survivors_declared", "metrics-detected"), ("in_percent", "metrics-percent"), ("with_sizes", "sized"),
    ("shares_alone", "metrics"), ("in_a_named_tuple", "metrics"), ("within_a_thousand", "metrics-thousand"),
    ("within_one", "metrics-unit"),
]  # fmt: skip
WRONG = [
    ("survivors_undeclared", "metrics", {"averages", "undetected", "survivors"}),
    ("pixels_counted", "iou", {"units", "overlaps"}), ("divided_by_nothing", "iou", {"degenerate"}),
    ("by_prediction", "metrics", {"rate", "averages", "accuracy"}), ("size_of_the_first", "sized", {"clipped"}),
    ("within_a_thousand", "metrics-unit", {"clipped"}), ("within_a_thousand", "metrics", {"units"}),
    ("plain", "metrics-percent", {"rate"}), ("plain", "metrics-detected", {"averages"}),
]  # fmt: skip
