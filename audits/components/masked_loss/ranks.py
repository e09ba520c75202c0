"""Runs a function on several ranks: processes of this machine joined by gloo."""

from __future__ import annotations

import os
import pickle
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

LOOKS, PAUSE = 6000, 0.0025
"""How often is looked for ranks that have not come back, and for how many seconds is waited each time.

Looks are counted and not seconds: where the machine is busy with other things, ranks and looks are late alike.
"""
MINUTES = 10
"""After which gloo gives up by itself: long after the last look."""
Work = Callable[[int], Mapping[str, Tensor]]


class RankFailed(RuntimeError):
    """A rank raised, exited, or did not come back in time."""


def run(world: int, work: Work) -> list[Mapping[str, Tensor]]:
    """What ``work(rank)`` returned on each rank of a process group of ``world``; in this process where it is 1 alone.

    The ranks are forked, so that ``work`` may be any function. :class:`RankFailed` tells which rank failed, and how.
    """
    with tempfile.TemporaryDirectory(prefix="assay-ranks-") as folder:
        processes = [_forked(Path(folder), rank, world, work) for rank in range(world)]
        try:
            _awaited(processes)
        finally:
            for process in processes:
                with suppress(ProcessLookupError, ChildProcessError):
                    os.kill(process, signal.SIGKILL)
                    os.waitpid(process, 0)
        return [_answer(Path(folder), rank) for rank in range(world)]


def _forked(folder: Path, rank: int, world: int, work: Work) -> int:
    process = os.fork()
    if process:
        return process
    try:
        answer: object = _joined(folder, rank, world, work)
    except BaseException as error:  # noqa: BLE001 - a child must tell its parent whatever went wrong
        answer = "".join(traceback.format_exception(error))[-1500:]
    (folder / f"{rank}.part").write_bytes(pickle.dumps(answer))
    (folder / f"{rank}.part").rename(folder / str(rank))
    os._exit(0)


def _joined(folder: Path, rank: int, world: int, work: Work) -> dict[str, object]:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world,
        timeout=timedelta(minutes=MINUTES),
    )  # fmt: skip
    found = {name: value.detach().cpu() for name, value in work(rank).items()}
    dist.barrier()  # a rank that leaves early takes the connections of the others with it
    return {name: (value.dtype, value.shape, value.contiguous().view(-1).tolist()) for name, value in found.items()}


def _awaited(processes: list[int]) -> None:
    left = set(processes)
    for _ in range(LOOKS):
        left = {process for process in left if not os.waitpid(process, os.WNOHANG)[0]}
        if not left:
            return
        time.sleep(PAUSE)
    message = f"{len(left)} of {len(processes)} ranks did not come back within {LOOKS * PAUSE:g} s"
    raise RankFailed(message)


def _answer(folder: Path, rank: int) -> Mapping[str, Tensor]:
    if not (folder / str(rank)).exists():
        message = f"rank {rank} exited without an answer"
        raise RankFailed(message)
    answer = pickle.loads((folder / str(rank)).read_bytes())  # noqa: S301 - written by our own child
    if isinstance(answer, str):
        message = f"rank {rank}: {answer}"
        raise RankFailed(message)
    return {name: torch.tensor(values, dtype=dtype).view(shape) for name, (dtype, shape, values) in answer.items()}
