"""What a compiled kernel may reach on a chip that is not here: a model of a few lines, and nothing measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from assay.audits.compile import CompileReport

REGISTERS = 65536
"""Of one multiprocessor, the same in all chips below."""
GRAIN = 256
"""Registers are given to a warp in pieces of this many."""
MOST_WARPS = 64
MOST_PROGRAMS = 32
LATENCY = 0.8e-6
"""Seconds from asking for bytes of a busy memory to having them: assumed."""
RAMP = 2.5e-6
"""Seconds that the first and the last programs of a launch leave most of the chip idle: assumed."""
SCHEDULERS = 4
"""Of one multiprocessor; each issues one instruction of a warp per clock."""
SPECIAL_LANES = 16
"""Special functions per clock and multiprocessor."""
Bound = Literal["memory", "latency", "issue", "special", "launch"]


@dataclass(frozen=True, kw_only=True)
class Chip:
    """What bounds a kernel on one chip, from the vendor's tables; `bandwidth` is None where no ceiling is known."""

    name: str
    multiprocessors: int
    shared: int
    """Bytes of shared memory that the programs of one multiprocessor may have together."""
    cache: int
    """Bytes of the second-level cache."""
    clock: float
    bandwidth: float | None = None
    """Bytes per second of a large copy, read and written together."""


CHIPS = {
    80: Chip(name="A100", multiprocessors=108, shared=164 << 10, cache=40_000_000, clock=1.41e9),
    90: Chip(
        name="H200", multiprocessors=132, shared=228 << 10, cache=60_000_000, clock=1.75e9, bandwidth=4.3e12
    ),
    100: Chip(name="B200", multiprocessors=148, shared=228 << 10, cache=126_000_000, clock=1.85e9),
}  # fmt: skip
"""By architecture. Of an H200's 4.8 TB/s large copies reach some 4.3: assumed here, measured in each run of the
comparison on a GPU."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one launch has to do. Bytes are those of the whole launch.

    `moved`: through device memory; `read`: of these and of the cache, by loads; `again`: read a second time, through
    device memory only where what programs keep between both readings (`kept`, each) overflows the cache. `turns`: how
    often each loop is walked by a program. `alone`: one program does all, which no ceiling is meant for.
    """

    shape: str
    tokens: int
    floor: int
    moved: int
    read: int
    again: int = 0
    kept: int = 0
    turns: tuple[int, ...] = ()
    alone: bool = False


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Seconds that each resource is busy, and the share of the ceiling that follows."""

    seconds: dict[Bound, float]
    low: float
    """Where waiting for memory and issuing instructions take turns."""
    high: float
    """Where they overlap entirely."""

    @property
    def bound(self) -> Bound:
        """The resource that is busy longest."""
        return max(self.seconds, key=lambda name: self.seconds[name])


def resident(report: CompileReport, chip: Chip) -> int:
    """Programs that one multiprocessor holds at a time, by registers, shared memory, warps and its own limit."""
    registers = -(-report.registers * 32 // GRAIN) * GRAIN * report.warps
    return min(
        REGISTERS // registers, chip.shared // max(report.shared, 1), MOST_WARPS // report.warps, MOST_PROGRAMS
    )  # fmt: skip


def occupancy(report: CompileReport, chip: Chip) -> float:
    """Resident warps as a share of the most there can be."""
    return resident(report, chip) * report.warps / MOST_WARPS


def executed(report: CompileReport, turns: Iterable[int]) -> tuple[int, int]:
    """(instructions, special ones) that one warp of one program executes.

    Loops count by their turns, everything else once, branches that exclude each other too: a little too much.
    """
    counts = tuple(turns)
    if len(counts) != len(report.loops):
        message = f"turns: expected one number for each of {len(report.loops)} loops of {report.kernel}, got {counts}"
        raise ValueError(message)
    more = [(turn - 1) * body[kind] for kind in (0, 1) for turn, body in zip(counts, report.loops, strict=True)]
    half = len(more) // 2
    return report.instructions + sum(more[:half]), report.special + sum(more[half:])


def predict(report: CompileReport, work: Work, chip: Chip) -> Prediction | None:
    """The share of the copy ceiling that one launch may reach; None where there is no ceiling to share.

    Raises:
        ValueError: the kernel has other loops than `work.turns` tells of.
    """
    if chip.bandwidth is None or work.alone:
        return None
    count = resident(report, chip)
    overflows = chip.multiprocessors * count * work.kept > chip.cache
    in_flight = chip.multiprocessors * count * report.warps * 32 * report.in_flight
    issued, special = (number * report.programs * report.warps for number in executed(report, work.turns))
    clocks = chip.multiprocessors * chip.clock
    seconds: dict[Bound, float] = {
        "memory": (work.moved + work.again * overflows) / chip.bandwidth,
        "latency": work.read * LATENCY / in_flight,
        "issue": issued / SCHEDULERS / clocks,
        "special": special * 32 / SPECIAL_LANES / clocks,
        "launch": RAMP,
    }
    least = work.floor / chip.bandwidth
    waiting, working = max(seconds["memory"], seconds["latency"]), max(seconds["issue"], seconds["special"])
    return Prediction(
        seconds=seconds, low=least / (RAMP + waiting + working), high=least / (RAMP + max(waiting, working))
    )
