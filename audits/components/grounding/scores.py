"""What functions for grounding metrics return, read under the names that are in use.

Letters: N samples, T thresholds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from assay.audits.observe import BadReturn
from assay.audits.terms import Outputs

RATE = ("detection_rate", "det_rate", "parse_rate", "valid_rate")
AVERAGES: Mapping[str, str] = {
    "mean_iou": "mean_iou", "miou": "mean_iou", "avg_iou": "mean_iou", "average_iou": "mean_iou", "m_iou": "mean_iou",
    "iou_mean": "mean_iou", "median_iou": "median_iou", "iou_median": "median_iou",
}  # fmt: skip
OVER: Mapping[str, str] = {
    "": "", "all": "_all", "over_all": "_all", "detected": "_detected", "over_detected": "_detected",
    "valid": "_detected", "parsed": "_detected", "survivors": "_detected",
}  # fmt: skip
"""What an average may say of whom it is over, after its name."""
_ACCURACY = re.compile(r"(?:acc|accuracy|precision|prec|p|recall)(?:_?at)?(?:_?iou)?_?(0?\.\d+|1\.0|0?_?\d+)")


def read(returned: Any, found: Tensor, percent: float = 1.0) -> Outputs:
    """The numbers of a mapping, or of a record's fields: each divided by ``percent``, NaN where it says None.

    ``detection_rate``; ``mean_iou`` and ``median_iou``, with ``_all`` or ``_detected`` where the name says so;
    ``thresholds`` and ``accuracy`` [T]; ``ious`` [N]. :class:`BadReturn` where nothing of it is there.
    """
    named = _named(returned)
    if named is None:
        message = f"expected a mapping of metrics, got {type(returned).__name__}"
        raise BadReturn(message)
    numbers = {key: value for name, given in named.items() for key, value in _known(str(name), given)}
    values = {key: _number(value) / percent for key, value in numbers.items() if isinstance(key, str)}
    known: dict[str, Tensor] = {key: torch.tensor(value, dtype=torch.float64) for key, value in values.items()}
    accuracy = sorted((key, _number(value) / percent) for key, value in numbers.items() if isinstance(key, float))
    if accuracy:
        known["thresholds"], known["accuracy"] = torch.tensor(accuracy, dtype=torch.float64).T.contiguous()
    for name in ("ious", "iou", "per_sample_iou"):
        known |= overlaps(named.get(name), found)
    if not known:
        names = ", ".join(map(str, named))
        message = f"expected detection_rate, mean_iou, acc@0.5 or some of them, got {names}"
        raise BadReturn(message)
    return known


def _named(returned: Any) -> Mapping[str, Any] | None:
    """The fields of a mapping, a named tuple or a record."""
    if isinstance(returned, Mapping):
        return returned
    names = getattr(returned, "_fields", None) or getattr(type(returned), "__slots__", ())
    if names:
        return {name: getattr(returned, name) for name in names if hasattr(returned, name)}
    return vars(returned) if hasattr(returned, "__dict__") else None


def overlaps(returned: Any, found: Tensor) -> dict[str, Tensor]:
    """``ious`` [N] of one number for each sample, or for each that has a box; without any, nothing."""
    if not isinstance(returned, Sequence | Tensor) and not hasattr(returned, "tolist"):
        return {}
    given = [_number(value) for value in (returned.tolist() if hasattr(returned, "tolist") else returned)]
    ious = torch.zeros(len(found), dtype=torch.float64)
    if len(given) == len(found):
        ious = torch.tensor(given, dtype=torch.float64)
        return {"ious": torch.where(found, ious, ious.nan_to_num(nan=0.0))}
    if len(given) == int(found.sum()):
        ious[found] = torch.tensor(given, dtype=torch.float64)
        return {"ious": ious}
    return {}


def _known(name: str, given: Any) -> Iterator[tuple[str | float, Any]]:
    """Ours for a name of theirs: a threshold for an accuracy."""
    plain = re.sub(r"[^a-z0-9.]+", "_", name.lower()).strip("_")
    if plain in RATE:
        yield "detection_rate", given
    elif plain in {"accuracy", "acc"} and isinstance(given, Mapping):
        yield from ((float(threshold), value) for threshold, value in given.items())
    elif match := _ACCURACY.fullmatch(plain):
        yield _threshold(match[1]), given
    else:
        for start, ours in AVERAGES.items():
            over = plain.removeprefix(start).strip("_")
            if plain.startswith(start) and over in OVER:
                yield ours + OVER[over], given
                return


def _threshold(text: str) -> float:
    """Of ``0.5``, ``.5``, ``05``, ``50`` or ``0_5``."""
    if "." in text:
        return float(text)
    return float(f"0.{text.lstrip('0_')}")


def _number(value: Any) -> float:
    if value is None:
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        message = f"expected a number, got {value!r:.80}"
        raise BadReturn(message) from error
