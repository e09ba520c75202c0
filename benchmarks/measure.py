"""Times calls: providers take turns, arguments change from call to call so that no cache holds them, medians count.

On a GPU a kernel is timed by replaying a graph of calls, so that Python's own time is not in it; the wall clock around
single calls is a second number. What cannot be captured, because it waits for the device, is timed by events.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from assay.benchmarks import counts, graphs
from assay.benchmarks.nouns import Arguments, Call, Mode, Problem

MOST_SETS = 16
SAMPLES = {"cuda": 30, "cpu": 5}
FEWEST = 5
BUDGET = {"cuda": 0.35, "cpu": 2.0}
"""Seconds that the samples of one provider in one mode may take, unless that is fewer than the fewest samples."""
WARM = {"cuda": 0.2, "cpu": 0.0}
"""Seconds of turns that are not counted, all providers together: a chip that was idle clocks up."""


@dataclass
class Timed:
    """One provider's answer to one problem in one mode, ready to be timed. Seconds of each sample are collected.

    ``launches`` and ``waits`` of one call; None where nobody can count them. ``failed``: what it raised meanwhile.
    """

    name: str
    sample: Callable[[], float]
    wall: Callable[[], float]
    how: str
    launches: int | None = None
    waits: int | None = None
    seconds: list[float] = field(default_factory=list)
    walls: list[float] = field(default_factory=list)
    failed: Exception | None = None

    @property
    def median(self) -> float:
        """Microseconds."""
        return 1e6 * statistics.median(self.seconds)

    def quantile(self, share: float) -> float:
        """Microseconds that this share of the samples did not take longer than."""
        ordered = sorted(self.seconds)
        return 1e6 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Sets:
    """A problem's arguments, as many copies as no cache holds together; the first has the problem's own tensors.

    Upstream gradients are always copies, since some write over theirs: the problem's stay as they are.
    """

    def __init__(self, problem: Problem, several: Sequence[Arguments] = ()) -> None:
        """``several``: the copies, where there are some already."""
        self.device = next(iter(problem.tensors.values())).device
        self.all = list(several) or _several(problem, _count(problem, self.device))
        self._problem = problem
        self._pristine: dict[str, Tensor] = {}

    def pristine(self, name: str) -> Tensor:
        """A tensor as it was before anything wrote over it; shared by all who do, and first asked for before."""
        if name not in self._pristine:
            self._pristine[name] = self.all[0].tensors[name].detach().clone()
        return self._pristine[name]

    def copied(self) -> Sets:
        """As many sets of their own memory."""
        return Sets(self._problem, [_copied(each) for each in self.all])


def _several(problem: Problem, count: int) -> list[Arguments]:
    own = Arguments(tensors=problem.tensors, upstream=tuple(x.clone() for x in problem.upstream))
    return [own, *(_copied(own) for _ in range(count - 1))]


def _count(problem: Problem, device: torch.device) -> int:
    size = sum(x.numel() * x.element_size() for x in (*problem.tensors.values(), *problem.upstream))
    return 1 if device.type == "cpu" else min(-(-graphs.FLUSHED // max(size, 1)), MOST_SETS)


def _copied(arguments: Arguments) -> Arguments:
    tensors = {name: _like(x).requires_grad_(x.requires_grad) for name, x in arguments.tensors.items()}
    return Arguments(tensors=tensors, upstream=tuple(x.clone() for x in arguments.upstream))


def _like(x: Tensor) -> Tensor:
    """A copy in the same layout: views of a packed tensor stay views of one."""
    if x._base is not None and not x.is_contiguous():  # noqa: SLF001 - there is no public name for it
        base = x._base.detach().clone()  # noqa: SLF001 - as above
        return base.as_strided(x.shape, x.stride(), x.storage_offset())
    return x.detach().clone()


def step(call: Call, problem: Problem, mode: Mode) -> Callable[[Arguments], tuple[Tensor, ...]]:
    """What is timed of a call: without gradients, or with those of what is differentiable."""

    def forward(arguments: Arguments) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return call(arguments.tensors)

    def both(arguments: Arguments) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            return gradients(call(arguments.tensors), arguments, problem, keep=False)

    return forward if mode == "forward" else both


def gradients(
    outputs: Sequence[Tensor], arguments: Arguments, problem: Problem, *, keep: bool
) -> tuple[Tensor, ...]:  # fmt: skip
    """The gradients of the differentiable tensors for the upstream ones."""
    wanted = [arguments.tensors[name] for name in problem.differentiable]
    upstream = arguments.upstream_in(tuple(out.dtype for out in outputs))
    return torch.autograd.grad(list(outputs), wanted, upstream, retain_graph=keep)


def ready(
    name: str, call: Call, problem: Problem, mode: Mode, sets: Sets, consumed: Sequence[str], pool: graphs.Pool = None
) -> Timed:  # fmt: skip
    """A provider made ready: warmed up, and captured where that can be. Raises what the provider raises.

    The backward pass of what consumes its input is that of copies of its own: others still need what it overwrites.
    Whatever else is consumed is whole again when this returns, and after each sample. ``pool``: where its graph has its
    memory.
    """
    cpu = sets.device.type == "cpu"
    if mode == "backward":
        run = _backward(call, problem, sets.copied() if consumed else sets)
    else:
        run = Run(step(call, problem, mode), sets, consumed)
    for _ in range(1 if cpu and mode != "backward" else 2):  # some can go back only once
        run()
    if cpu:
        run.restore_all()
        return Timed(name, sample=lambda: _clocked(run), wall=lambda: _clocked(run), how="wall")
    return _on_a_gpu(name, run, pool)


def _on_a_gpu(name: str, run: Run, pool: graphs.Pool) -> Timed:
    """What waits for the device is not even tried in a graph; of a graph each call has a set of its own."""
    launches, waits = _counted(run)
    run.restore_all()  # what is captured does not run
    graph = None if waits else graphs.captured(run.everywhere, pool)

    def replayed() -> float:
        assert graph is not None
        taken = graphs.seconds(graph.replay) / run.sets
        run.restore_all()
        return taken

    def timed() -> float:
        run.restore()
        taken = graphs.seconds(run.act)
        run.restore_all()
        return taken

    return Timed(
        name, sample=replayed if graph else timed, wall=lambda: _clocked(run, wait=True),
        how="graph" if graph else "events", launches=launches, waits=waits,
    )  # fmt: skip


def _counted(run: Run) -> tuple[int | None, int | None]:
    """Launches and waits of one call, where the profiler can see them: it may not, and then nobody knows."""
    run.restore()
    try:
        return counts.launches_and_waits(run.act)
    except Exception:  # noqa: BLE001 - the call has worked before, so that this is the profiler's
        torch.cuda.synchronize()
        return None, None


class Run:
    """A call on one set of arguments after another; what it consumes is restored first."""

    def __init__(self, act: Callable[[Arguments], Any], sets: Sets, consumed: Sequence[str]) -> None:
        """``consumed`` are names of tensors, the same in all sets."""
        self._act, self._sets, self._at = act, sets.all, 0
        self._kept = {name: sets.pristine(name) for name in consumed}

    @property
    def sets(self) -> int:
        """How many sets there are."""
        return len(self._sets)

    def __call__(self) -> Any:
        """Restore and act."""
        self.restore()
        return self.act()

    def restore(self) -> None:
        """Go to the next set, and put back what the call consumes of it."""
        self._at = (self._at + 1) % len(self._sets)
        self._put_back(self._sets[self._at])

    def restore_all(self) -> None:
        """Put back what the call consumes of every set."""
        for arguments in self._sets:
            self._put_back(arguments)

    def _put_back(self, arguments: Arguments) -> None:
        with torch.no_grad():
            for name, kept in self._kept.items():
                arguments.tensors[name].copy_(kept)

    def act(self) -> Any:
        """The call; where it raises, what it has overwritten by then is put back for all who come after."""
        try:
            return self._act(self._sets[self._at])
        except Exception:
            self.restore_all()
            raise

    def everywhere(self) -> None:
        """The call on every set, once; nothing is restored."""
        for arguments in self._sets:
            self._act(arguments)


def _backward(call: Call, problem: Problem, sets: Sets) -> Run:
    """The backward pass alone, of a forward pass that was made before."""
    with torch.enable_grad():
        made = {id(arguments): call(arguments.tensors) for arguments in sets.all}
    return Run(lambda arguments: gradients(made[id(arguments)], arguments, problem, keep=True), sets, ())


def _clocked(run: Run, *, wait: bool = False) -> float:
    """Seconds of a call by the wall clock; what is restored before is not in it."""
    run.restore()
    if wait:
        torch.cuda.synchronize()
    start = time.perf_counter()
    run.act()
    if wait:
        torch.cuda.synchronize()
    taken = time.perf_counter() - start
    run.restore_all()
    return taken


def interleaved(entries: Sequence[Timed], device: str) -> None:
    """Take samples in turns, there and back, until each has enough or has had its time.

    Who raises meanwhile takes no further part, and ``failed`` says why.
    """
    with _quiet():
        _warmed(entries, WARM[device])
        spent = dict.fromkeys(range(len(entries)), 0.0)
        for number in range(SAMPLES[device]):
            order = range(len(entries)) if number % 2 == 0 else reversed(range(len(entries)))
            for place in order:
                if number >= FEWEST and spent[place] > BUDGET[device]:
                    continue
                start = time.perf_counter()
                _taken(entries[place], entries[place].sample, entries[place].seconds)
                spent[place] += time.perf_counter() - start
        for entry in entries:
            for _ in range(FEWEST if device == "cuda" else 1):
                if sum(entry.walls) < BUDGET[device] / 2:
                    _taken(entry, entry.wall, entry.walls)


def _warmed(entries: Sequence[Timed], most: float) -> None:
    """Turns that nobody counts."""
    start = time.perf_counter()
    while time.perf_counter() - start < most and any(entry.failed is None for entry in entries):
        for entry in entries:
            _taken(entry, entry.sample, [])


def _taken(entry: Timed, sample: Callable[[], float], into: list[float]) -> None:
    if entry.failed is None:
        try:
            into.append(sample())
        except Exception as error:  # noqa: BLE001 - foreign code: whatever it raises is the reason
            entry.failed = error


@contextmanager
def _quiet() -> Iterator[None]:
    """No garbage is collected meanwhile."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
