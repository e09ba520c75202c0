"""How well boxes were found: the share of answers with a box, overlaps, and the share of overlaps above a threshold.

A box is (x1, y1, x2, y2) in continuous coordinates, in the same unit for predictions and targets: an area is
(x2 - x1) (y2 - y1), without one added, which would be wrong for every unit but whole pixels. An answer without a box
has found nothing: it counts with an overlap of 0, and in every share. A mean over the answers that have a box is
another number, with a name that says so: it rises where a model stops answering what it does not know.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Metrics", "box_iou", "grounding_metrics"]


@dataclass(frozen=True)
class Metrics:
    """Over all samples, unless named `detected`; `ious` float64 [N], 0 where there is no box; None where there is none.

    `accuracy` is by threshold: the share of all samples whose overlap is at least the threshold.
    """

    samples: int
    detection_rate: float
    mean_iou: float
    median_iou: float
    mean_iou_detected: float | None
    median_iou_detected: float | None
    accuracy: Mapping[float, float]
    ious: Tensor


def grounding_metrics(
    predictions: Sequence[Sequence[float] | None], targets: Sequence[Sequence[float]], *,
    thresholds: Sequence[float] = (0.5, 0.75), sizes: Sequence[tuple[float, float]] | None = None,
) -> Metrics:  # fmt: skip
    """The metrics of some answers.

    Args:
        predictions: a box, or None for an answer in which there was none; for each sample.
        targets: the box to be found, for each sample.
        thresholds: each above 0 and at most 1.
        sizes: width and height of each image, in the unit of the boxes; predictions are clipped to them. Without, not.

    Raises:
        ValueError: no samples; other numbers of predictions and targets; a box that has not four finite numbers.
    """
    if len(predictions) != len(targets) or not targets:
        raise ValueError(f"predictions: expected one for each of {len(targets)} targets, got {len(predictions)}")
    if not all(0 < t <= 1 for t in thresholds):
        raise ValueError(f"thresholds: expected numbers above 0 and at most 1, got {list(thresholds)}")
    found = torch.tensor([box is not None for box in predictions])
    boxes = _boxes("predictions", [box if box is not None else (0, 0, 0, 0) for box in predictions])
    if sizes is not None:
        limits = torch.tensor([[*size, *size] for size in sizes], dtype=torch.float64)
        boxes = torch.minimum(boxes.clamp(min=0), limits)
    ious = torch.where(found, box_iou(boxes, _boxes("targets", targets)), 0.0)
    return Metrics(
        samples=len(targets),
        detection_rate=float(found.double().mean()),
        mean_iou=float(ious.mean()),
        median_iou=_median(ious),
        mean_iou_detected=float(ious[found].mean()) if found.any() else None,
        median_iou_detected=_median(ious[found]) if found.any() else None,
        accuracy={t: float((ious >= t).double().mean()) for t in thresholds},
        ious=ious,
    )


def box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of boxes [N,4] and others [N,4], pair by pair: float64 [N], 0 to 1.

    Corners in another order are put in order. A box without area overlaps nothing, not even itself.
    """
    (one, other) = (_ordered(x.double()) for x in (boxes, others))
    sides = (torch.minimum(one[:, 2:], other[:, 2:]) - torch.maximum(one[:, :2], other[:, :2])).clamp(min=0)
    overlap = sides.prod(-1)
    union = _area(one) + _area(other) - overlap
    return torch.where(overlap > 0, overlap / union, 0.0)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(-1)


def _ordered(boxes: Tensor) -> Tensor:
    return torch.cat([torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])], dim=-1)


def _median(values: Tensor) -> float:
    """The middle value, or the mean of the two in the middle."""
    ranked = values.sort().values
    return float((ranked[(len(ranked) - 1) // 2] + ranked[len(ranked) // 2]) / 2)


def _boxes(name: str, boxes: Sequence[Sequence[float]]) -> Tensor:
    for place, box in enumerate(boxes):
        if len(box) != 4:
            raise ValueError(f"{name}[{place}]: expected four numbers, got {len(box)}")
    made = torch.tensor([list(map(float, box)) for box in boxes], dtype=torch.float64).reshape(-1, 4)
    if not made.isfinite().all():
        raise ValueError(f"{name}: expected finite numbers, got {made[~made.isfinite().all(-1)][0].tolist()}")
    return made
