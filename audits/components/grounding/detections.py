"""What parsers of answers return, read as one thing, and what laws see of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from assay.audits.observe import BadReturn
from assay.audits.terms import Outputs

BOXES = ("box", "bbox", "bbox_2d", "box_2d", "coordinates", "xyxy")
LABELS = ("label", "description", "desc", "phrase", "name", "category", "class_name", "ref", "text")
LISTS = ("detections", "objects", "boxes", "bboxes", "items", "results")
FINE = ("complete", "ok", "success", "valid", "parsed", "is_valid", "is_complete")
WRONG = ("error", "errors", "failed", "error_status", "malformed", "truncated", "parse_error", "incomplete", "reason")
STATUS = frozenset({"ok", "success", "complete", "valid", "parsed"})
"""What a ``status`` in words is where all was read."""
NAMES = ("labels", "descriptions", "descs", "phrases", "names")
"""Lists of descriptions beside a list of boxes."""
"""How an answer is told to have been read, or not: true, or false and empty."""
UNNAMED = frozenset(
    {"", "unknown", "unlabeled", "unlabelled", "<unknown>", "n/a", "none", "no label", "<no label>", "null"}
)
"""What stands for a description that is missing, and says so."""

Pair = tuple[str | None, tuple[float, ...]]


@dataclass(frozen=True)
class Read:
    """Descriptions with boxes. ``reported``: it is said that something was not read; None if that cannot be said.

    ``partly``: it can be said beside what was read. ``labelled``: descriptions are told at all.
    """

    pairs: tuple[Pair, ...]
    reported: bool | None
    partly: bool
    labelled: bool = True

    def outputs(self) -> Outputs:
        """As tensors: boxes float64 [N,4], all else as the bytes of a JSON text."""
        told = [[label for label, _ in self.pairs], self.reported, self.partly, self.labelled]
        boxes = torch.tensor([box for _, box in self.pairs], dtype=torch.float64).reshape(-1, 4)
        return {"boxes": boxes, "told": torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8)}

    @classmethod
    def of(cls, values: Outputs) -> Read:
        """The inverse of :meth:`outputs`."""
        labels, reported, partly, labelled = json.loads(bytes(values["told"].tolist()))
        boxes = [tuple(box) for box in values["boxes"].tolist()]
        return cls(tuple(zip(labels, boxes, strict=True)), reported, partly, labelled)


UNREAD = Read((), reported=True, partly=False)


def read(returned: Any) -> Read:
    """Of None, detections, (detections, how it went), or a record or mapping with both; else :class:`BadReturn`."""
    if returned is None:
        return UNREAD
    if isinstance(returned, tuple) and len(returned) == 2 and _status(returned[1]):
        return Read(_pairs(returned[0] or ()), reported=_wrong(returned[1]), partly=True)
    fields = _fields(returned)
    if fields is not None:
        name = next((name for name in LISTS if name in fields), None)
        if name is None:
            message = f"expected {', '.join(LISTS)} or a list, got {', '.join(fields) or type(returned).__name__}"
            raise BadReturn(message)
        states = [bool(fields[key]) for key in WRONG if key in fields] + [not fields[k] for k in FINE if k in fields]
        states += [str(fields["status"]).casefold() not in STATUS] if "status" in fields else []
        beside = next((fields[key] for key in NAMES if key in fields and name in {"boxes", "bboxes"}), None)
        found = fields[name] or () if beside is None else _beside(fields[name], beside)
        return Read(_pairs(found), reported=any(states), partly=bool(states))
    if isinstance(returned, tuple) and len(returned) == 2 and _named(returned):
        return Read(_pairs(_beside(*returned)), reported=False, partly=False)
    return Read(_pairs(returned), reported=False, partly=False)


def first_box(returned: Any) -> Read:
    """A box, or None where there is none: which cannot be told from one that could not be read."""
    pairs = () if returned is None or len(returned) == 0 else ((None, _box(returned)),)
    return Read(pairs, reported=None, partly=False, labelled=False)


def _status(value: Any) -> bool:
    return value is None or isinstance(value, bool | str | Exception)


def _wrong(value: Any) -> bool:
    """Of what stands beside detections: False, or words, say that something went wrong."""
    return not value if isinstance(value, bool) else bool(value)


def _fields(value: Any) -> Mapping[str, Any] | None:
    if isinstance(value, Mapping):
        return value
    if hasattr(value, "_asdict"):
        return dict(value._asdict())
    if hasattr(value, "__dataclass_fields__"):
        return {name: getattr(value, name) for name in value.__dataclass_fields__}
    if isinstance(value, Sequence) or hasattr(value, "tolist"):
        return None
    slots = getattr(type(value), "__slots__", ())
    return {name: getattr(value, name) for name in slots if hasattr(value, name)} or vars(value)


def _named(returned: tuple[Any, Any]) -> bool:
    """Whether it is a list of boxes and one of descriptions, not two detections."""
    boxes, names = returned
    listed = isinstance(boxes, list | tuple) and isinstance(names, list | tuple)
    return listed and all(name is None or isinstance(name, str) for name in names)


def _beside(boxes: Any, names: Any) -> list[tuple[Any, Any]]:
    """Boxes with the descriptions in a list of their own."""
    if len(boxes) != len(names):
        message = f"expected a description for each box, got {len(names)} for {len(boxes)}"
        raise BadReturn(message)
    return [*zip(names, boxes, strict=True)]


def _pairs(detections: Any) -> tuple[Pair, ...]:
    if isinstance(detections, str) or not isinstance(detections, Sequence):
        message = f"expected a list of detections, got {type(detections).__name__}"
        raise BadReturn(message)
    return tuple(_pair(detection) for detection in detections)


def _pair(detection: Any) -> Pair:
    """Of a mapping, a record, (label, box), (box, label), or a box alone."""
    if isinstance(detection, Sequence) and not hasattr(detection, "_asdict"):
        labels = [part for part in detection if part is None or isinstance(part, str)]
        boxes = [part for part in detection if isinstance(part, Sequence) and not isinstance(part, str)]
        if len(boxes) == 1:
            return _label(labels[0] if labels else None), _box(boxes[0])
        return None, _box(detection)
    fields = _fields(detection) or {}
    label = next((fields[name] for name in LABELS if fields.get(name) is not None), None)
    box = next((fields[name] for name in BOXES if fields.get(name) is not None), None)
    if box is None and {"x1", "y1", "x2", "y2"} <= set(fields):
        box = [fields[name] for name in ("x1", "y1", "x2", "y2")]
    return _label(label), _box(box)


def _label(label: Any) -> str | None:
    text = " ".join(str(label if label is not None else "").split()).casefold()
    return None if text in UNNAMED else text


def _box(box: Any) -> tuple[float, ...]:
    try:
        values = tuple(float(value) for value in (box.tolist() if hasattr(box, "tolist") else box))
    except (TypeError, ValueError) as error:
        message = f"expected a box of four numbers, got {box!r:.80}"
        raise BadReturn(message) from error
    if len(values) != 4 or not all(map(math.isfinite, values)):
        message = f"expected a box of four finite numbers, got {box!r:.80}"
        raise BadReturn(message)
    return values
