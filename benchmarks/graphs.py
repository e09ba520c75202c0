"""Calls replayed as a graph on a GPU, and the events around them, so that Python's own time is not in a number.

All of a comparison runs on one stream of its own. A graph is captured on no other than that, and a backward pass runs
on the stream of its forward pass: one that was made on the default stream can not be captured.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor

FLUSHED = 256 << 20
"""Bytes of arguments that calls rotate through, and that are read before each sample: several times the largest L2."""
Pool = Any
"""Where graphs have their memory: the same for all that are replayed in turns, since none reads another's."""


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Everything inside runs on a stream that can be captured; nothing to do on a CPU."""
    if device.type == "cpu":
        yield
        return
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]  # torch leaves it untyped
        yield


def pool(device: torch.device) -> Pool:
    """Memory for the graphs that are alive together; None on a CPU."""
    return None if device.type == "cpu" else torch.cuda.graph_pool_handle()


def captured(run: Callable[[], Any], shared: Pool) -> torch.cuda.CUDAGraph | None:
    """A graph of what a function does on the current stream; None where that cannot be captured.

    ``torch.cuda.graph`` would return all free memory to the device first, which takes longer than the measurement.
    """
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    collected = gc.isenabled()
    gc.disable()  # what is collected meanwhile may call what a capture forbids
    try:
        graph.capture_begin(pool=shared)
        try:
            run()
        finally:
            graph.capture_end()
    except torch.OutOfMemoryError:
        _abandoned(shared)
        raise
    except Exception:  # noqa: BLE001 - whatever a provider does that a graph cannot hold
        _abandoned(shared)
        return None
    finally:
        if collected:
            gc.enable()
    return graph


def _abandoned(shared: Pool) -> None:
    """What torch leaves undone where a capture fails: its allocator would free nothing more for the rest of the run."""
    torch.cuda.synchronize()
    device = torch.cuda.current_device()
    with suppress(Exception):  # an assertion of torch's where the capture was ended in order
        torch._C._cuda_endAllocateToPool(device, shared)  # noqa: SLF001 - there is no public name for it
        torch._C._cuda_releasePool(device, shared)  # noqa: SLF001 - as above


def seconds(run: Callable[[], Any]) -> float:
    """Between two events around a call.

    Other memory is read before: no cache holds the arguments then, and while the device reads, the call is queued, so
    that the time it takes to launch a graph is not measured.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # as above
    _other_memory().sum()
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


@cache
def _other_memory() -> Tensor:
    return torch.ones(FLUSHED // 4, device="cuda")
