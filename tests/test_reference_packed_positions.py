"""The specification of packing: known answers, its errors, and that whole and parts agree."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from assay.reference import packed_positions as packed
from assay.reference.mrope_positions import positions
from assay.reference.mrope_rules import RULES

QWEN = RULES["qwen2_5_vl"]
IGNORED = -100


def sample(count: int, **more: Any) -> packed.Sample:
    return packed.Sample(input_ids=torch.arange(1, count + 1), **more)


def with_image(before: int, rows: int, columns: int) -> packed.Sample:
    types = torch.tensor([0] * before + [1] * (rows * columns) + [0])
    return packed.Sample(
        input_ids=torch.arange(len(types)) + 5,
        token_types=types,
        image_grids=torch.tensor([[1, 2 * rows, 2 * columns]]),
        further={"weights": torch.arange(len(types)) / 7},
    )


def test_a_plan_by_hand() -> None:
    made = packed.plan([3, 8, 5, 0, 2, 9], 10)
    assert [[p.sample for p in pack] for pack in made.packs] == [[5], [1, 4], [2, 0]]
    assert made.left_out == (3,)
    assert packed.plan([], 4) == packed.Plan(())


@given(st.integers(1, 20), st.lists(st.integers(0, 60), max_size=20), st.sampled_from(["split", "truncate", "drop"]))
@settings(deadline=None)
def test_a_plan_loses_nothing_and_fits(capacity: int, lengths: list[int], overlong: str) -> None:
    made = packed.plan(lengths, capacity, overlong=overlong)
    assert all(sum(p.tokens for p in pack) <= capacity for pack in made.packs)
    seen = Counter((p.sample, t) for pack in made.packs for p in pack for t in range(p.start, p.stop))
    kept = {"split": lambda n: n, "truncate": lambda n: min(n, capacity), "drop": lambda n: n if n <= capacity else 0}
    assert seen == Counter((i, t) for i, n in enumerate(lengths) for t in range(kept[overlong](n)))
    fullest = [sum(p.tokens for p in pack) for pack in made.packs]
    assert all(a + b > capacity for i, a in enumerate(fullest) for b in fullest[i + 1 :])


@pytest.mark.parametrize(
    ("lengths", "capacity", "more", "match"),
    [
        ([3, 12], 10, {}, r"lengths\[1\]: 12 tokens do not fit into a pack of 10"),
        ([3, -1], 10, {}, r"lengths\[1\]: expected a whole number, 0 or more, got -1"),
        ([2.0], 10, {}, r"lengths\[0\]: expected a whole number"),
        ([3], 0, {}, "capacity: expected a whole number above 0, got 0"),
        ([3], 10, {"overlong": "skip"}, "overlong: expected one of error, split, truncate, drop, got 'skip'"),
    ],
)
def test_a_plan_says_what_is_wrong(lengths: list[Any], capacity: int, more: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        packed.plan(lengths, capacity, **more)


def test_a_row_by_hand() -> None:
    labels = torch.tensor([IGNORED, IGNORED, 3, 4])
    made = packed.pack([sample(3), sample(1), sample(4, labels=labels)], multiple=5, pad_id=9)
    assert made.input_ids.tolist() == [1, 2, 3, 1, 1, 2, 3, 4, 9, 9]
    assert made.labels.tolist() == [IGNORED, 2, 3, IGNORED, IGNORED, IGNORED, 3, 4, IGNORED, IGNORED]
    assert made.position_ids.tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 0, 1]
    assert made.segments.tolist() == [1, 1, 1, 2, 3, 3, 3, 3, 0, 0]
    assert made.cu_seqlens.tolist() == [0, 3, 4, 8, 10]
    assert made.cu_seqlens.dtype == torch.int32
    assert made.max_length == 4


def test_axes_are_those_of_each_sample_alone() -> None:
    two = [with_image(3, 2, 3), with_image(1, 4, 2)]
    made = packed.pack(two, rule=QWEN)
    alone = [positions(QWEN, s.token_types[None], image_grids=s.image_grids)[0][:, 0] for s in two]  # type: ignore[index]  # with_image gives token types
    assert made.axis_ids is not None
    assert torch.equal(made.axis_ids, torch.cat(alone, dim=1))
    assert made.text_and_axes.shape == (4, 1, len(made.input_ids))
    assert made.text_and_axes[0, 0].tolist() == [*range(10), *range(10)]
    assert made.image_grids is not None
    assert made.image_grids.tolist() == [[1, 4, 6], [1, 8, 4]]
    assert torch.equal(made.further["weights"], torch.cat([s.further["weights"] for s in two]))


@pytest.mark.parametrize(
    ("samples", "more", "match"),
    [
        ([], {}, "samples: expected at least one"),
        ([sample(2), sample(0)], {}, r"samples\[1\].input_ids: expected the shape \[S\] with S above 0"),
        ([sample(2, labels=torch.zeros(3, dtype=torch.int64))], {}, r"samples\[0\].labels: expected the shape \[2\]"),
        ([sample(2)], {"rule": QWEN}, r"samples\[0\].token_types: a rule of several axes needs them"),
        ([with_image(1, 2, 2), sample(2)], {}, r"samples\[1\].further: expected \['weights'\], got \[\]"),
        ([sample(2)], {"multiple": 0}, "multiple: expected a whole number above 0"),
    ],
)
def test_a_row_says_what_is_wrong(samples: list[packed.Sample], more: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        packed.pack(samples, **more)


def test_a_grid_that_does_not_fit_names_its_sample() -> None:
    wrong = with_image(2, 2, 2)
    wrong = packed.Sample(
        input_ids=wrong.input_ids, token_types=wrong.token_types, image_grids=torch.tensor([[1, 4, 6]])
    )
    right = packed.Sample(input_ids=wrong.input_ids, token_types=torch.zeros_like(wrong.input_ids))
    with pytest.raises(ValueError, match=r"samples\[1\]\."):
        packed.pack([right, wrong], rule=QWEN)


def test_boundaries_by_hand() -> None:
    ids = torch.tensor([[0, 1, 2, 0, 0, 1]])
    segments = packed.segments_of_positions(ids)
    assert segments.tolist() == [[1, 1, 1, 2, 3, 3]]
    assert torch.equal(packed.segments_of_positions(torch.stack([ids, ids * 0, ids, ids])), segments)
    with pytest.raises(ValueError, match="position_ids: expected the shape"):
        packed.segments_of_positions(ids.expand(3, 1, -1))
    ends, longest = packed.cumulative_lengths(torch.tensor([[1, 1, 2], [2, 2, 0]]))
    assert (ends.tolist(), longest) == ([0, 2, 3, 5, 6], 2)
    assert packed.cumulative_lengths(torch.zeros(1, 0, dtype=torch.int64))[0].tolist() == [0]


def test_masks_by_hand() -> None:
    segments = torch.tensor([[1, 1, 2, 0]])
    seen = packed.attention_boundaries(segments)
    assert seen.shape == (1, 1, 4, 4)
    assert seen[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    added = packed.attention_boundaries(segments, torch.bfloat16)
    assert torch.equal(added == 0, seen)
    assert added.min() == torch.finfo(torch.bfloat16).min
    with pytest.raises(TypeError, match="dtype: expected None or a floating dtype, got torch.int64"):
        packed.attention_boundaries(segments, torch.int64)


@given(st.integers(1, 4), st.sampled_from(packed.LAYOUTS), st.integers(0, 3), st.integers(0, 2))
@settings(deadline=None)
def test_pieces_are_the_whole(world: int, layout: str, parts: int, dim: int) -> None:
    shape = [2, 3, 4]
    shape[dim] = 2 * world * parts
    x = torch.arange(torch.Size(shape).numel()).view(shape)
    pieces = packed.shard(x, world, dim=dim, layout=layout)
    assert len(pieces) == world
    assert torch.equal(packed.unshard(pieces, dim=dim, layout=layout), x)


def _batch() -> dict[str, Tensor]:
    ids = torch.arange(16).view(2, 8)
    return {"input_ids": ids, "labels": ids + 100, "position_ids": ids.expand(3, 2, 8)}


def test_batches_are_shifted_before_they_are_cut() -> None:
    first, second = packed.shard_batch(_batch(), 2, layout="zigzag")
    assert first["input_ids"].tolist() == [[0, 1, 6, 7], [8, 9, 14, 15]]
    assert first["shift_labels"].tolist() == [[101, 102, 107, IGNORED], [109, 110, 115, IGNORED]]
    assert second["position_ids"].shape == (3, 2, 4)
    assert "labels" not in first


def test_pieces_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="tokens: expected a multiple of 4 for 2 ranks, zigzag, got 6"):
        packed.shard(torch.zeros(6), 2, layout="zigzag")
    with pytest.raises(ValueError, match="layout: expected one of contiguous, zigzag, got 'ring'"):
        packed.shard(torch.zeros(6), 2, layout="ring")
    with pytest.raises(ValueError, match="batch: expected labels or shift_labels, got both"):
        packed.shard_batch({"labels": torch.zeros(1, 4), "shift_labels": torch.zeros(1, 4)}, 2)
    with pytest.raises(ValueError, match="batch: expected one number of tokens"):
        packed.shard_batch({**_batch(), "weights": torch.zeros(2, 7)}, 2)
    with pytest.raises(ValueError, match="pieces: expected at least one"):
        packed.unshard([])


def test_nothing_is_written_to() -> None:
    two = [with_image(3, 2, 3), with_image(1, 4, 2)]
    before = [s.input_ids.clone() for s in two]
    packed.pack(two, rule=QWEN).labels.fill_(0)
    assert all(torch.equal(s.input_ids, ids) for s, ids in zip(two, before, strict=True))
