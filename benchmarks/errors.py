"""How far an answer is from the truth: the norm of the difference over the norm of the truth, both in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

PIECE = 1 << 26
"""Elements that are compared at a time: what is compared may be as large as the memory."""


def distance(got: Tensor, truth: Tensor) -> float:
    """Of two tensors of one shape; infinite where an element of the answer is no number, and of another shape."""
    if got.shape != truth.shape:
        return math.inf
    apart = size = 0.0
    for own, true in zip(got.reshape(-1).split(PIECE), truth.reshape(-1).split(PIECE), strict=True):  # type: ignore[no-untyped-call]  # torch leaves it untyped
        wide, right = own.detach().double(), true.detach().double()
        apart += float((wide - right).square().sum())
        size += float(right.square().sum())
    if math.isnan(apart):
        return math.inf
    return math.sqrt(apart / size) if size else math.sqrt(apart)


def errors(got: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> dict[str, float]:
    """Of each named tensor of the truth; one that is lacking is infinitely far."""
    return {name: distance(got[name], right) if name in got else math.inf for name, right in truth.items()}


def rounding(truth: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, float]:
    """What storing the truth in a dtype costs: no answer in it is nearer on average."""
    return {name: distance(right.to(dtype), right) for name, right in truth.items()}
