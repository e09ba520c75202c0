"""Whether reported numbers agree, where reports may be rounded and divisions guarded by a tiny constant."""

from __future__ import annotations

import math

import torch

from assay.audits.laws.limits import ULPS, accumulation_eps

GUARD = 1e-6
"""What is added to a divisor so that it is not zero, by those who do that."""
PLACES = (3, 4, 5, 6)
"""Decimal places that numbers are rounded to in reports; with fewer, differences that matter are gone."""


def agree(got: float, want: float, slack: float = 0.0) -> bool:
    """Whether two numbers of order 1 are the same, up to float32, ``slack`` and the rounding of ``got`` or ``want``."""
    if not (math.isfinite(got) and math.isfinite(want)):
        return False
    limit = ULPS * accumulation_eps(torch.float32) + slack + 2 * max(rounding(got), rounding(want))
    return abs(got - want) <= limit


def rounding(value: float) -> float:
    """Half a unit of the last decimal place, if there are few of them; 0 for a number that is not rounded."""
    places = next((n for n in PLACES if abs(round(value, n) - value) < 1e-12), None)
    return 0.0 if places is None or value in {0.0, 1.0} else 0.5 * 10.0**-places
