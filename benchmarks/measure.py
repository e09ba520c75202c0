"""Times calls: providers take turns, arguments change from call to call so that no cache holds them, medians count.

On a GPU a kernel is timed by replaying a graph of calls, so that Python's own time is not in it; the wall clock around
single calls is a second number. What cannot be captured, because it waits for the device, is timed by events.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from assay.benchmarks.nouns import Call, Mode, Problem, Tensors

FLUSHED = 256 << 20
"""Bytes of arguments that calls rotate through: several times the largest L2."""
MOST_SETS = 16
SAMPLES = {"cuda": 30, "cpu": 5}
FEWEST = 5
BUDGET = {"cuda": 0.35, "cpu": 2.0}
"""Seconds that the samples of one provider in one mode may take, unless that is fewer than the fewest samples."""


@dataclass
class Timed:
    """One provider's answer to one problem in one mode, ready to be timed. Seconds of each sample are collected."""

    name: str
    sample: Callable[[], float]
    wall: Callable[[], float]
    how: str
    seconds: list[float] = field(default_factory=list)
    walls: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Microseconds."""
        return 1e6 * statistics.median(self.seconds)

    def quantile(self, share: float) -> float:
        """Microseconds that this share of the samples did not take longer than."""
        ordered = sorted(self.seconds)
        return 1e6 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def argument_sets(problem: Problem) -> list[Tensors]:
    """Copies of the tensors, as many as no cache holds together; the first one is the problem's own."""
    size = sum(x.numel() * x.element_size() for x in problem.tensors.values())
    count = 1 if next(iter(problem.tensors.values())).device.type == "cpu" else -(-FLUSHED // max(size, 1))
    return [problem.tensors, *(_copied(problem.tensors) for _ in range(min(count, MOST_SETS) - 1))]


def _copied(tensors: Tensors) -> Tensors:
    return {name: _like(x).requires_grad_(x.requires_grad) for name, x in tensors.items()}


def _like(x: Tensor) -> Tensor:
    """A copy in the same layout: views of a packed tensor stay views of one."""
    if x._base is not None and not x.is_contiguous():  # noqa: SLF001 - there is no public name for it
        base = x._base.detach().clone()  # noqa: SLF001 - as above
        return base.as_strided(x.shape, x.stride(), x.storage_offset())
    return x.detach().clone()


def step(call: Call, problem: Problem, mode: Mode) -> Callable[[Tensors], tuple[Tensor, ...]]:
    """What is timed of a call: without gradients, or with those of what is differentiable."""

    def forward(tensors: Tensors) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return call(tensors)

    def both(tensors: Tensors) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            return gradients(call(tensors), tensors, problem, keep=False)

    return forward if mode == "forward" else both


def gradients(
    outputs: Sequence[Tensor], tensors: Tensors, problem: Problem, *, keep: bool, own: bool = False
) -> tuple[Tensor, ...]:  # fmt: skip
    """The gradients of the differentiable tensors for the problem's upstream ones.

    Some write over the upstream gradients too; ``own``: they are given copies.
    """
    wanted = [tensors[name] for name in problem.differentiable]
    upstream = [grad.to(out.dtype, copy=own) for grad, out in zip(problem.upstream, outputs, strict=True)]
    return torch.autograd.grad(list(outputs), wanted, upstream, retain_graph=keep)


def ready(
    name: str, call: Call, problem: Problem, mode: Mode, sets: Sequence[Tensors], consumed: Sequence[str]
) -> Timed:
    """A provider made ready: warmed up, and captured where that can be. Raises what the provider raises.

    The backward pass of what consumes its input is that of copies of its own: others still need what it overwrites.
    Whatever else is consumed is whole again when this returns, and after each sample.
    """
    cpu = next(iter(problem.tensors.values())).device.type == "cpu"
    if mode == "backward":
        run = _backward(call, problem, [_copied(tensors) for tensors in sets] if consumed else sets)
    else:
        run = Run(step(call, problem, mode), sets, consumed)
    for _ in range(1 if cpu and mode != "backward" else 2):  # some can go back only once
        run()
    if cpu:
        run.mend()
        return Timed(name, sample=lambda: _clocked(run), wall=lambda: _clocked(run), how="wall")
    torch.cuda.synchronize()
    graph = _captured(run, len(sets))
    restore = _captured(run.restore, len(sets)) if graph is not None and run.restores else None
    run.mend()

    def replayed() -> float:
        assert graph is not None
        own = _events(graph.replay) / len(sets)
        return own - (_events(restore.replay) / len(sets) if restore else 0.0)  # which also mends

    def timed() -> float:
        run.restore()
        taken = _events(run.act)
        run.mend()
        return taken

    return Timed(
        name, sample=replayed if graph else timed, wall=lambda: _clocked(run, wait=True),
        how="graph" if graph else "events",
    )  # fmt: skip


class Run:
    """A call on one set of arguments after another; what it consumes is restored first."""

    def __init__(self, act: Callable[[Tensors], Any], sets: Sequence[Tensors], consumed: Sequence[str]) -> None:
        """``consumed`` are names of tensors, the same in all sets."""
        self._act, self._sets, self._at = act, sets, 0
        self._kept = {name: sets[0][name].detach().clone() for name in consumed}

    @property
    def restores(self) -> bool:
        """Whether there is anything to put back."""
        return bool(self._kept)

    def __call__(self) -> Any:
        """Restore and act."""
        self.restore()
        return self.act()

    def restore(self) -> None:
        """Go to the next set, and put back what the call consumes of it."""
        self._at = (self._at + 1) % len(self._sets)
        with torch.no_grad():
            for name, kept in self._kept.items():
                self._sets[self._at][name].copy_(kept)

    def mend(self) -> None:
        """Put back what was consumed of all sets: others are about to be given them."""
        with torch.no_grad():
            for tensors in self._sets:
                for name, kept in self._kept.items():
                    tensors[name].copy_(kept)

    def act(self) -> Any:
        """The call."""
        return self._act(self._sets[self._at])


def _backward(call: Call, problem: Problem, sets: Sequence[Tensors]) -> Run:
    """The backward pass alone, of a forward pass that was made before."""
    with torch.enable_grad():
        made = {id(tensors): call(tensors) for tensors in sets}
    return Run(lambda tensors: gradients(made[id(tensors)], tensors, problem, keep=True), sets, ())


def _captured(run: Callable[[], Any], times: int) -> torch.cuda.CUDAGraph | None:
    """A graph of so many calls; None where one of them cannot be captured."""
    graph = torch.cuda.CUDAGraph()
    try:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            for _ in range(times):
                run()
    except Exception:  # noqa: BLE001 - whatever a provider does that a graph cannot hold
        torch.cuda.synchronize()
        return None
    return graph


def _events(run: Callable[[], Any]) -> float:
    """Seconds between two events around a call."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # as above
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


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
    run.mend()
    return taken


def interleaved(entries: Sequence[Timed], device: str) -> None:
    """Take samples in turns, there and back, until each has enough or has had its time."""
    with _quiet():
        spent = dict.fromkeys(range(len(entries)), 0.0)
        for number in range(SAMPLES[device]):
            order = range(len(entries)) if number % 2 == 0 else reversed(range(len(entries)))
            for place in order:
                if number >= FEWEST and spent[place] > BUDGET[device]:
                    continue
                start = time.perf_counter()
                entries[place].seconds.append(entries[place].sample())
                spent[place] += time.perf_counter() - start
        for entry in entries:
            entry.walls += [entry.wall() for _ in range(FEWEST if device == "cuda" else 1)]


@contextmanager
def _quiet() -> Iterator[None]:
    """No garbage is collected meanwhile."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def peak_memory(run: Callable[[], Any], device: torch.device) -> int:
    """Bytes that a call has at most beyond what was there before; its results are among them."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = run()
        torch.cuda.synchronize()
        del kept
        return int(torch.cuda.max_memory_allocated() - before)
    from torch.profiler import ProfilerActivity, profile

    with _silent(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        kept = run()
    del kept
    most = held = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


@contextmanager
def _silent() -> Iterator[None]:
    """What the profiler's own library writes to the error stream goes nowhere."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def launches_and_waits(run: Callable[[], Any]) -> tuple[int, int]:
    """Kernels that a call launches on a GPU, and how often the host waits for the device."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with _silent(), profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as record:
        run()
    names = [event.name() for event in record.profiler.kineto_results.events()]
    launched = sum("LaunchKernel" in name for name in names)
    waited = sum(name in ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize") for name in names)
    return launched, max(0, waited - 1)  # the profiler itself waits once
