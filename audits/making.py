"""Calls what a user wrote to set things up, so that its seeds and settings stay its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from assay.audits import settings
from assay.audits.pipelines import seeded

T = TypeVar("T")
SEED = 71
"""Of the global generators while something is made."""


def called(make: Callable[[], T], seed: int = SEED) -> T:
    """What ``make()`` returns. A script may set seeds, dtypes and threads for itself: all are put back."""
    before = settings.read()
    try:
        with seeded(seed):
            return make()
    finally:
        settings.restore(before)
