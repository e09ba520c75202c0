"""Ranks in processes of this machine: what they return, and how they fail."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from assay.audits.components.masked_loss import ranks


def _summed(rank: int) -> Mapping[str, Tensor]:
    total = torch.tensor([rank + 1.0, torch.nan])
    dist.all_reduce(total)
    return {"total": total, "rank": torch.tensor(rank), "half": torch.tensor(0.1, dtype=torch.bfloat16)}


@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_rank_answers_in_its_place(world: int) -> None:
    found = ranks.run(world, _summed)
    assert [int(part["rank"]) for part in found] == list(range(world))
    assert all(float(part["total"][0]) == world * (world + 1) / 2 for part in found)
    assert bool(found[0]["total"][1].isnan())
    assert found[0]["half"].dtype == torch.bfloat16
    assert not dist.is_initialized()


def _raising(rank: int) -> Mapping[str, Tensor]:
    if rank == 0:
        message = "no labels here"
        raise ValueError(message)
    return {}


def test_what_a_rank_raises_is_told() -> None:
    with pytest.raises(ranks.RankFailed, match="rank 0: (.|\n)*no labels here"):
        ranks.run(2, _raising)


def _exiting(_rank: int) -> Mapping[str, Tensor]:
    os._exit(3)


def test_a_rank_that_exits_is_told() -> None:
    with pytest.raises(ranks.RankFailed, match="rank 0 exited without an answer"):
        ranks.run(1, _exiting)


def _hanging(rank: int) -> Mapping[str, Tensor]:
    time.sleep(60 * rank)
    return {}


def test_a_rank_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "LOOKS", 800)
    started = time.monotonic()
    with pytest.raises(ranks.RankFailed, match="did not come back"):
        ranks.run(2, _hanging)
    assert time.monotonic() - started < 30
