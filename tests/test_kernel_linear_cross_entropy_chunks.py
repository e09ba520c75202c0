"""The chunks of the cross-entropy through a head: how many rows, what memory, and which matrix products."""

# mypy: allow-untyped-calls
# Some of torch's own methods carry no types.

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_device import GPU
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from truth_linear_cross_entropy import BUDGET, DTYPES, Data, H, random

from assay.kernels import linear_cross_entropy_chunks as chunks
from assay.kernels.linear_cross_entropy import linear_cross_entropy
from assay.kernels.masked_cross_entropy_launch import Rules

pytestmark = pytest.mark.usefixtures("poisoned_memory")


class Watch(TorchDispatchMode):
    """The bytes of the largest tensor that any operator made, and how many matrix products there were."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.products = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return out


def watched(data: Data, wanted: chunks.Wanted, budget: int | None, **rules: Any) -> Watch:
    options: dict[str, Any] = {"ignore_index": -100, "shift": False, "mean": True, "num_valid": None, "check": True}
    with torch.no_grad(), Watch() as watch:
        scored = chunks.find_scored(
            data.labels, None, None, vocabulary=len(data.head), dtype=chunks.arithmetic(data.head.dtype), **options
        )
        chunks.score(data.hidden, data.head, None, scored, Rules(**rules), wanted, budget)
    return watch


@pytest.mark.skipif(GPU, reason="counts what the plain path does")
@pytest.mark.parametrize("dtype_name", DTYPES)
def test_no_tensor_is_larger_than_a_chunk(dtype_name: str) -> None:
    """Of the logits, that is: 2,000 tokens, a tenth of them scored, 500 entries; a budget of 16 rows of fp64."""
    dtype = DTYPES[dtype_name]
    data = Data(dtype)
    data.hidden, data.head = random(2000, H, seed=0, dtype=dtype), random(500, H, seed=1, dtype=dtype)
    data.labels = torch.where(torch.arange(2000) % 10 == 0, torch.arange(2000) % 500, -100)
    budget = 16 * 500 * 8
    wanted = chunks.Wanted(hidden=True, head=True)
    small = max(2000 * H * dtype.itemsize, 500 * H * 8, 2000 * 8)
    for rules in ({}, {"softcap": 2.0, "label_smoothing": 0.1}):
        assert watched(data, wanted, budget, **rules).largest <= max(budget, small)
    watch = watched(data, wanted, None)
    assert (
        200 * 500 * dtype.itemsize <= watch.largest <= 200 * 500 * max(dtype.itemsize, 4)
    )  # one chunk: scored rows only


def peak(call: Callable[..., None], *arguments: Any) -> int:
    """The most bytes that were allocated at one time during a call, over those before it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call(*arguments)
    assert profile.profiler is not None
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.skipif(GPU, reason="measures what the plain path allocates on the CPU")
def test_memory_follows_the_scored_tokens_and_the_budget() -> None:
    torch.use_deterministic_algorithms(False)
    tokens, vocabulary = 4000, 1000
    hidden, head = random(tokens, 4, seed=0).float(), random(vocabulary, 4, seed=1).float()
    hidden.requires_grad_()
    labels = torch.arange(tokens) % vocabulary
    tenth = torch.where(torch.arange(tokens) % 10 == 0, labels, -100)
    logits = tokens * vocabulary * 4

    def step(labels: Tensor, budget: int | None) -> None:
        linear_cross_entropy(hidden, head, labels, memory_budget=budget).value.backward()

    rest = 1_000_000  # bytes: hidden states, labels and head, and what is made of them
    step(labels, None)
    assert logits < peak(step, labels, None) < 1.1 * logits + rest
    assert peak(step, tenth, None) < 0.11 * logits + rest
    assert peak(step, labels, logits // 100) < 0.02 * logits + rest


@pytest.mark.skipif(GPU, reason="counts what the plain path does")
def test_frozen_parts_skip_their_products() -> None:
    data = Data()
    chunk_count = 7 // 2 + 1
    for wanted, products in (
        (chunks.Wanted(), 1),
        (chunks.Wanted(hidden=True), 2),
        (chunks.Wanted(head=True), 2),
        (chunks.Wanted(hidden=True, head=True), 3),
    ):
        assert watched(data, wanted, BUDGET).products == chunk_count * products


def test_rows_per_chunk() -> None:
    """Few large chunks; on an H200 (132 multiprocessors) whole waves of tiles of 128 x 256."""
    assert chunks.rows_per_chunk(8000, 152064, 3584, 2, chunks.GPU_BUDGET, 132) == 8000
    assert chunks.rows_per_chunk(10**6, 152064, 3584, 2, chunks.GPU_BUDGET, 132) == 66 * 128  # 7 waves of 132 tiles
    for width in (2048, 4096, 5120, 8192):
        waves = chunks.rows_per_chunk(10**6, 152064, width, 2, chunks.GPU_BUDGET, 132) / 128 * (width / 256) / 132
        assert 0.99 * math.ceil(waves) <= waves
    assert chunks.rows_per_chunk(10**6, 152064, 3584, 2, 100 * 152064 * 2, 132) == 100
    assert chunks.rows_per_chunk(1000, 50, 8, 4, 50 * 4 * 7, 0) == 7
    assert chunks.rows_per_chunk(1000, 50, 8, 4, 1, 0) == 1
    assert chunks.rows_per_chunk(0, 50, 8, 4, 1, 0) == 1
