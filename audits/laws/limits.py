"""How far a candidate may be from the truth: measured from the ordinary form's error, never typed in.

    limit = max(FACTOR x eager error, ULPS x eps(accumulation dtype) + error of rounding the oracle)

All errors are relative to the largest magnitude that enters an element's row (its reach), so that a small row beside
a large one is judged by its own scale. Three norms: the worst element, the root mean square over all, and the worst
row's root mean square; worst is compared with worst, never element with element.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from assay.audits.terms import Evidence

FACTOR = 2.0
ULPS = 4.0
FEW = 4
"""Of so few elements the error of rounding is not measured but bounded."""

_ACCUMULATES = {torch.float64: torch.float64}


def accumulation_eps(dtype: torch.dtype) -> float:
    """The unit round-off step of the dtype in which arithmetic on ``dtype`` is expected to be done."""
    return float(torch.finfo(_ACCUMULATES.get(dtype, torch.float32)).eps)


@dataclass(frozen=True)
class Norms:
    """An error by the worst element, over all elements, and by the worst row."""

    worst: float
    rms: float
    row: float


def norms(error: Tensor) -> Norms:
    """The three norms of a non-negative error tensor whose last dimension is the row. NaN counts as infinite."""
    if error.numel() == 0:
        return Norms(0.0, 0.0, 0.0)
    error = error.nan_to_num(nan=math.inf, posinf=math.inf)
    error = error.reshape(1, 1) if error.ndim == 0 else error
    square = error.square()
    return Norms(float(error.max()), float(square.mean().sqrt()), float(square.mean(dim=-1).sqrt().max()))


def row_reach(x: Tensor) -> Tensor:
    """Largest finite magnitude of each row of the last dimension, in float64, kept as a dimension of one."""
    x = x.detach().double().abs().nan_to_num(nan=0.0, posinf=0.0)
    return x.amax(dim=-1, keepdim=True) if x.shape[-1] else x.new_zeros((*x.shape[:-1], 1))


def relative(error: Tensor, reach: Tensor) -> Tensor:
    """Error over reach; where nothing enters a row, any error at all is infinite."""
    reach = reach.to(error).expand_as(error)
    quotient = error / torch.where(reach > 0, reach, torch.ones_like(reach))
    return torch.where(reach > 0, quotient, torch.where(error > 0, math.inf, 0.0).to(quotient))


def difference(got: Tensor, truth: Tensor) -> Tensor:
    """Absolute difference in float64; equal infinities and two NaNs do not differ, one NaN differs infinitely."""
    got, truth = got.detach().double(), truth.detach().double()
    same = (got == truth) | (got.isnan() & truth.isnan())
    return torch.where(same, 0.0, (got - truth).abs().nan_to_num(nan=math.inf, posinf=math.inf))


def rounding(truth: Tensor, dtype: torch.dtype) -> Tensor:
    """What storing the truth in ``dtype`` costs, element by element; nothing where it overflows to infinity.

    Of a few elements alone, half a unit in the last place: how near one number lies to one of the dtype is luck.
    """
    truth = truth.detach().double()
    rounded = truth.to(dtype).double()
    if truth.numel() <= FEW and truth.is_floating_point():
        unit = truth.abs() * (torch.finfo(dtype).eps / 2)
        return torch.where(torch.isfinite(rounded), unit, 0.0)
    return difference(rounded, truth).nan_to_num(posinf=0.0)


def floor(truths: Sequence[Tensor], reach: Tensor, dtype: torch.dtype) -> Tensor:
    """The error that no implementation in ``dtype`` can be blamed for, relative to ``reach``."""
    stored = sum((rounding(truth, dtype) for truth in truths), torch.zeros((), dtype=torch.float64))
    return ULPS * accumulation_eps(dtype) + relative(stored, reach).nan_to_num(posinf=0.0)


def excess(
    where: str, error: Tensor, allowed: Tensor, eager: Callable[[], Iterable[Tensor]], message: str
) -> Evidence | None:
    """Evidence when a relative error exceeds its limit by any of the three norms, else None.

    ``allowed`` is the floor of :func:`floor`. ``eager`` gives the ordinary form's relative errors, on one or more
    draws of the same case, of which the worst finite one counts; it is asked only where the floor does not suffice.
    """
    least, got = norms(allowed.expand_as(error)), norms(error)
    if got.worst <= least.worst and got.rms <= least.rms and got.row <= least.row:
        return None
    ordinary = [norms(item) for item in eager() if bool(torch.isfinite(item).all())]
    for name, label in (("worst", "largest error"), ("rms", "RMS error"), ("row", "RMS error of the worst row")):
        usual = max((getattr(item, name) for item in ordinary), default=0.0)
        limit = max(FACTOR * usual, getattr(least, name))
        measured = getattr(got, name)
        if measured > limit:
            return Evidence(
                where=where, measured=measured, limit=limit, message=f"{message}: {label}", index=_worst(error)
            )
    return None


def worst(where: str, found: Sequence[Evidence]) -> Iterator[Evidence]:
    """Of evidence at ``group:NAME`` of many tensors, that which is furthest beyond its limit stands for the rest."""
    if found:
        item = max(found, key=lambda item: float(item.measured) / float(item.limit))
        message = f"{item.where.partition(':')[2]}: {item.message} ({len(found)} differ)"
        yield dataclasses.replace(item, where=where, message=message)


def _worst(error: Tensor) -> tuple[int, ...]:
    flat = int(error.nan_to_num(nan=math.inf, posinf=math.inf).argmax())
    return tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), error.shape))
