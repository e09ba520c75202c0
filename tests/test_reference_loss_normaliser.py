"""The divisor of a mean over micro-batches and ranks, and the label shift over shards; two processes over gloo.

The ranks are child processes that run this file; what each of them finds comes back as JSON.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from assay.reference.masked_loss import (
    accumulated_count,
    cross_entropy,
    global_count,
    per_rank,
    shift_across_ranks,
    shift_labels,
    valid_tokens,
)

IGNORED = -100
LABELS = torch.tensor([[3, 1, IGNORED, 2, 2, 0], [1, IGNORED, IGNORED, IGNORED, 4, IGNORED]])
RANKS = 2
FRACTION: Any = 2.0
"""Ranks that are no whole number, unknown to the types."""


def logits() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 6, 5, generator=generator, dtype=torch.float64).requires_grad_()


def test_valid_tokens_by_hand() -> None:
    for shift, ignore_index, count in ((False, IGNORED, 7), (True, IGNORED, 5), (True, 2, 8), (False, 9, 12)):
        got = valid_tokens(LABELS, shift=shift, ignore_index=ignore_index)
        assert (got.dtype, got.ndim, int(got)) == (torch.int64, 0, count)
        assert (
            torch.equal(got, valid_tokens(shift_labels(LABELS, ignore_index), shift=False, ignore_index=ignore_index))
            or not shift
        )
    assert int(valid_tokens(torch.zeros(2, 0, dtype=torch.int64), shift=True)) == 0


def test_the_count_is_the_losss_own() -> None:
    for shift in (False, True):
        assert torch.equal(valid_tokens(LABELS, shift=shift), cross_entropy(logits(), LABELS, shift=shift).count)


def test_shift_by_hand() -> None:
    assert shift_labels(LABELS, IGNORED).tolist() == [
        [1, IGNORED, 2, 2, 0, IGNORED],
        [*[IGNORED] * 3, 4, *[IGNORED] * 2],
    ]
    assert shift_labels(torch.tensor([7]), 3).tolist() == [3]
    assert shift_labels(torch.zeros(2, 0, dtype=torch.int64), 3).shape == (2, 0)


def test_micro_batches_of_unequal_counts_add_up_to_the_whole() -> None:
    """And the mean of their means does not: which is what the count is for."""
    x = logits()
    parts = [(x[at : at + 1], LABELS[at : at + 1]) for at in range(2)]
    count = accumulated_count([labels for _, labels in parts], shift=True)
    assert (count.dtype, int(count)) == (torch.int64, 5)
    whole = cross_entropy(x, LABELS, shift=True)
    cut = sum(cross_entropy(z, labels, shift=True, normaliser=count).value for z, labels in parts)
    averaged = sum(cross_entropy(z, labels, shift=True).value for z, labels in parts) / 2
    assert isinstance(cut, Tensor)
    assert isinstance(averaged, Tensor)
    error = [
        float(
            (
                torch.autograd.grad(value, x, retain_graph=True)[0]
                - torch.autograd.grad(whole.value, x, retain_graph=True)[0]
            )
            .abs()
            .max()
        )
        for value in (cut, averaged)
    ]
    assert error[0] <= 8 * torch.finfo(torch.float64).eps < 0.01 < error[1]


def test_one_process_is_all_ranks() -> None:
    count = torch.tensor(7)
    total = global_count(count)
    assert torch.equal(total, count)
    assert total is not count
    assert torch.equal(shift_across_ranks(LABELS), shift_labels(LABELS, IGNORED))
    assert shift_across_ranks(LABELS, ignore_index=2)[0, -1] == 2


def test_per_rank_by_hand() -> None:
    assert per_rank(6, 4) == 1.5
    exact = per_rank(torch.tensor(2**53 - 1), 1)
    assert isinstance(exact, Tensor)
    assert exact.dtype == torch.float64
    assert int(exact) == 2**53 - 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: valid_tokens(LABELS.int(), shift=True), TypeError, "labels: expected torch.int64"),
        (lambda: valid_tokens(torch.tensor(1), shift=True), ValueError, "labels: expected at least one dimension"),
        (lambda: shift_labels(LABELS.float(), 0), TypeError, "labels"),
        (lambda: accumulated_count([], shift=True), ValueError, "labels: expected those of at least one micro-batch"),
        (lambda: global_count(torch.tensor(1.0)), TypeError, "count: expected torch.int64"),
        (lambda: global_count(torch.tensor([1])), ValueError, r"count: expected a 0-d tensor, got the shape \[1\]"),
        (lambda: per_rank(1.0, 0), ValueError, "world_size: expected at least 1, got 0"),
        (lambda: per_rank(1.0, FRACTION), TypeError, "world_size: expected an int, got float"),
    ],
)
def test_bad_arguments_are_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        call()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    meeting = tmp_path_factory.mktemp("gloo") / "store"
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(meeting)], stdout=subprocess.PIPE, text=True, env=environment
        )
        for rank in range(RANKS)
    ]
    found = []
    for child in children:
        output, _ = child.communicate(timeout=120)
        assert child.returncode == 0, "a rank failed; its error is above"
        found.append(json.loads(output.splitlines()[-1]))
    return found


def on_rank(rank: int) -> dict[str, Any]:
    """Data parallel: a rank has one row. Context parallel: every rank has three columns of both rows."""
    x = logits()
    row, columns = slice(rank, rank + 1), slice(3 * rank, 3 * rank + 3)
    mine = valid_tokens(LABELS[row], shift=True)
    total = global_count(mine)
    value = cross_entropy(x[row], LABELS[row], shift=True, normaliser=per_rank(total, RANKS)).value
    (averaged,) = torch.autograd.grad(value, x)
    dist.all_reduce(averaged)
    shard = shift_across_ranks(LABELS[:, columns], ignore_index=IGNORED)
    shard_count = global_count(valid_tokens(shard, shift=False))
    sharded = cross_entropy(x[:, columns], shard, normaliser=shard_count).value
    (summed,) = torch.autograd.grad(sharded, x)
    dist.all_reduce(summed)
    alone = dist.new_group([rank], use_local_synchronization=True)
    return {
        "counts": [int(mine), int(total), int(shard_count)],
        "alone": [int(global_count(mine, alone)), shift_across_ranks(LABELS, alone)[0].tolist()],
        "nothing": int(global_count(torch.tensor(5 * rank))),
        "shard": shard.tolist(),
        "averaged": (averaged / RANKS).tolist(),
        "summed": summed.tolist(),
        "values": [value.item(), sharded.item()],
    }


def test_counts_over_ranks(ranks: list[dict[str, Any]]) -> None:
    assert [found["counts"] for found in ranks] == [[4, 5, 5], [1, 5, 5]]
    assert [found["nothing"] for found in ranks] == [5, 5]
    assert [found["alone"][0] for found in ranks] == [4, 1]
    assert all(found["alone"][1] == shift_labels(LABELS, IGNORED)[0].tolist() for found in ranks)


def test_the_shift_crosses_ranks(ranks: list[dict[str, Any]]) -> None:
    joined = torch.cat([torch.tensor(found["shard"]) for found in ranks], dim=1)
    assert torch.equal(joined, shift_labels(LABELS, IGNORED))


@pytest.mark.parametrize("layout", ["averaged", "summed"])
def test_ranks_train_as_one_process(ranks: list[dict[str, Any]], layout: str) -> None:
    x = logits()
    whole = cross_entropy(x, LABELS, shift=True).value
    (expected,) = torch.autograd.grad(whole, x)
    for found in ranks:
        got = torch.tensor(found[layout], dtype=torch.float64)
        assert float((got - expected).abs().max()) <= 8 * torch.finfo(torch.float64).eps
    values = [found["values"] for found in ranks]
    together = {"averaged": sum(v[0] for v in values) / RANKS, "summed": sum(v[1] for v in values)}[layout]
    assert abs(together - whole.item()) <= 8 * torch.finfo(torch.float64).eps * whole.item()


if __name__ == "__main__":
    this_rank = int(sys.argv[1])
    dist.init_process_group("gloo", init_method=Path(sys.argv[2]).as_uri(), rank=this_rank, world_size=RANKS)
    print(json.dumps(on_rank(this_rank)), flush=True)
    dist.destroy_process_group()
