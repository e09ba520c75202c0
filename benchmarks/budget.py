"""How long a comparison will take: an estimate before it is begun, and what fits into the time that is left.

Guessed, from the floors: it is printed before a run and corrected by what the first shapes took. No measured number
depends on it, only which shapes are left out.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

import torch

from assay.benchmarks import graphs, machine, measure, operations
from assay.benchmarks.nouns import MODES, Mode, Offer, Shape

SHARES = {"rotary": 0.25, "cross_entropy": 0.15, "linear_cross_entropy": 0.54, "masked_regression": 0.06}
"""Of the time of a whole run; what an operation leaves over goes to those after it."""
AUDIT = 2.0
"""Seconds of one audit."""
FIXED = 0.08
"""Seconds of one provider in one mode beside its calls: capture, profiler, its kernels compiled for the first time."""
SLOWER = {"rotary": 4.0, "cross_entropy": 3.0, "linear_cross_entropy": 1.8, "masked_regression": 5.0}
"""How many times the floor an average provider takes that skips nothing, as most do."""
CALLS = 6
"""Calls that are no samples: errors, memory, warm-up, profiler."""
MOST = 12.0
"""Seconds of one provider on one shape; who would take longer is not timed there."""


def of_shape(operation: Any, shape: Shape, offers: Sequence[Offer], ceilings: machine.Ceilings, size: int) -> float:
    """Seconds for one shape, all providers in all modes. ``size``: bytes of an element."""
    took = {
        skips: _of_modes(operation, shape if skips else replace(shape, masked=0.0), ceilings, size)
        for skips in (False, True)
    }  # fmt: skip
    return sum(
        min(MOST / 2, sum(took[offer.skips][mode] for mode in MODES if not (mode == "backward" and offer.early)))
        for offer in offers if not offer.refuses(shape)
    )  # fmt: skip


def _of_modes(operation: Any, shape: Shape, ceilings: machine.Ceilings, size: int) -> dict[Mode, float]:
    floors = operation.floors(shape, size)
    sets = min(max(1, -(-graphs.FLUSHED // max(floors["both"].bytes, 1))), measure.MOST_SETS)
    return {
        mode: _of_mode(SLOWER[operation.NAME] * ceilings.least(floor.bytes, floor.flops) / 1e6, sets)
        for mode, floor in floors.items()
    }  # fmt: skip


def _of_mode(call: float, sets: int) -> float:
    samples = max(measure.FEWEST, min(measure.SAMPLES["cuda"], measure.BUDGET["cuda"] / (call * sets)))
    walls = max(1.0, min(measure.FEWEST, measure.BUDGET["cuda"] / 2 / call))
    return FIXED + call * (CALLS + samples * sets + walls)


def too_slow(seconds: float) -> bool:
    """Whether a provider of which one call takes so long would take more than its part of the whole run."""
    return seconds * len(MODES) * (CALLS + measure.FEWEST) > MOST


def lines(
    grid: str, names: Iterable[str], offers: Mapping[str, Sequence[Offer]], ceilings: machine.Ceilings
) -> list[str]:  # fmt: skip
    """What each operation will take, for the one who waits."""
    size = torch.bfloat16.itemsize
    told, whole = [], 0.0
    for name in names:
        operation = import_module(f"{operations.__name__}.{name}")
        shapes = list(operation.shapes(grid))
        took = sum(of_shape(operation, shape, offers[name], ceilings, size) for shape in shapes)
        took += AUDIT * len(offers[name])
        whole += took
        told.append(f"estimated: {name}, {len(shapes)} shapes, {len(offers[name])} providers: {took:.0f} s")
    return [*told, f"estimated: {whole:.0f} s together; what does not fit is left out, the least telling shapes first"]


@dataclass
class Clock:
    """The time that one operation has, and how wrong the estimates have been so far."""

    deadline: float
    guessed: float = 0.0
    took: float = 0.0
    _start: float = field(default=0.0, repr=False)

    def fits(self, guess: float) -> bool:
        """Whether a shape of which this was guessed will be done in time."""
        ratio = self.took / self.guessed if self.guessed else 0.0
        return time.monotonic() + guess * ratio < self.deadline

    def begin(self) -> None:
        """A shape is begun."""
        self._start = time.monotonic()

    def end(self, guess: float) -> None:
        """It is done, and so much had been guessed."""
        self.guessed += guess
        self.took += time.monotonic() - self._start


class Shares:
    """A whole run's seconds, dealt out to its operations one after another."""

    def __init__(self, names: Iterable[str], seconds: float) -> None:
        """In the order of their turns."""
        self._end = time.monotonic() + seconds
        self._left = list(names)

    def next(self) -> Clock:
        """The clock of the operation whose turn it is."""
        whole = sum(SHARES[name] for name in self._left)
        now = time.monotonic()
        return Clock(deadline=now + max(0.0, self._end - now) * SHARES[self._left.pop(0)] / whole)
