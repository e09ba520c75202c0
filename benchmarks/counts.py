"""What a call takes beside time: memory, kernels that it launches, and how often the host waits for the device."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cuStreamSynchronize")


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


def launches_and_waits(run: Callable[[], Any]) -> tuple[int, int]:
    """Kernels that a call launches on a GPU, and how often the host waits for the device.

    RuntimeError where the profiler sees nothing of the device, as without the right to.
    """
    seen, other = _calls(run), _of_the_profiler()
    if not any(name.startswith("cu") for name in (*seen, *other)):
        raise RuntimeError("the profiler sees no call of the device's library")
    return sum("Launch" in name and "Kernel" in name for name in seen), max(0, _waits(seen) - _waits(other))


@cache
def _of_the_profiler() -> tuple[str, ...]:
    """What it calls itself: at the end of each recording it waits for the device."""
    return _calls(lambda: None)


def _waits(names: tuple[str, ...]) -> int:
    return sum(name in WAITS for name in names)


def _calls(run: Callable[[], Any]) -> tuple[str, ...]:
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with _silent(), profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as record:
        run()
    return tuple(event.name() for event in record.profiler.kineto_results.events())


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
