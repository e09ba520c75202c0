"""Laws of the position rules on generated batches: padding, what follows a block, samples alone and together."""

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.reference.mrope_positions import RULES, cached_positions, positions

EXAMPLES = settings(deadline=None, derandomize=True, database=None)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """Rows of token types with their image and video grids: visual blocks anywhere, also first, last and adjacent."""
    rows, images, videos = [], [], []
    sides = st.integers(1, 4).map(lambda side: 2 * side)
    for _ in range(draw(st.integers(1, 3))):
        types: list[int] = []
        for _ in range(draw(st.integers(0, 5))):
            kind = draw(st.integers(0, 2))
            if kind == 0:
                types += [0] * draw(st.integers(1, 6))
                continue
            t, h, w = draw(st.integers(1, 9)) if kind == 2 else 1, draw(sides), draw(sides)
            (images if kind == 1 else videos).append([t, h, w])
            types += [kind] * (t * h * w // 4)
        rows.append(types)
    return rows, images, videos


def tensors(scene: tuple[list[list[int]], list[list[int]], list[list[int]]], side: str, extra: int) -> dict[str, Any]:
    """Arguments of `positions` for rows padded on one side to a common length."""
    rows, images, videos = scene
    length = max(map(len, rows)) + extra
    pads = [[0] * (length - len(types)) for types in rows]
    ones = [[1] * len(types) for types in rows]
    if side == "left":
        filled, mask = (
            [p + t for p, t in zip(pads, rows, strict=True)],
            [p + o for p, o in zip(pads, ones, strict=True)],
        )
    else:
        filled, mask = (
            [t + p for p, t in zip(pads, rows, strict=True)],
            [o + p for p, o in zip(pads, ones, strict=True)],
        )
    shape = (len(rows), length)
    return {
        "token_types": torch.tensor(filled, dtype=torch.int64).reshape(shape),
        "attention_mask": torch.tensor(mask, dtype=torch.int64).reshape(shape),
        "image_grids": torch.tensor(images, dtype=torch.int64).reshape(-1, 3),
        "video_grids": torch.tensor(videos, dtype=torch.int64).reshape(-1, 3),
    }


LAW_RULES = ["qwen2_vl", "qwen3_vl"]


@EXAMPLES
@given(scene=conversations(), family=st.sampled_from(LAW_RULES), side=st.sampled_from(["left", "right"]))
def test_padding_changes_nothing_but_itself(scene: Any, family: str, side: str) -> None:
    mine, delta = positions(RULES[family], **(left := tensors(scene, side, 0)))
    more, more_delta = positions(RULES[family], **(padded := tensors(scene, side, 5)), padding_value=-7)
    assert torch.equal(delta, more_delta)
    for sample in range(len(delta)):
        real, more_real = left["attention_mask"][sample].bool(), padded["attention_mask"][sample].bool()
        assert torch.equal(mine[:, sample, real], more[:, sample, more_real])
        assert bool((more[:, sample, ~more_real] == -7).all())


@EXAMPLES
@given(scene=conversations(), family=st.sampled_from(LAW_RULES))
def test_what_follows_starts_after_everything_before(scene: Any, family: str) -> None:
    inputs = tensors(scene, "right", 0)
    ids, delta = positions(RULES[family], **inputs)
    for sample, types in enumerate(scene[0]):
        row_ids = ids[:, sample, : len(types)]
        tops = row_ids.amax(0).cummax(0).values.tolist() if types else []
        for at in range(1, len(types)):
            if types[at] == 0:
                assert row_ids[:, at].tolist() == [tops[at - 1] + 1] * 3
        # Cached decoding goes on where the row ends.
        nxt = cached_positions(delta[[sample]], len(types), 3)
        assert nxt[:, 0].tolist() == [[(tops[-1] if tops else -1) + step for step in (1, 2, 3)]] * 3


@EXAMPLES
@given(scene=conversations(), family=st.sampled_from(LAW_RULES))
def test_a_row_alone_equals_the_row_in_its_batch(scene: Any, family: str) -> None:
    rows, images, videos = scene
    ids, delta = positions(RULES[family], **tensors(scene, "right", 0))
    for sample, types in enumerate(rows):
        used = [grids_of(rows[:sample], kind, grids) for kind, grids in ((1, images), (2, videos))]
        until = [grids_of(rows[: sample + 1], kind, grids) for kind, grids in ((1, images), (2, videos))]
        alone = ([types], images[used[0] : until[0]], videos[used[1] : until[1]])
        mine, mine_delta = positions(RULES[family], **tensors(alone, "right", 0))
        assert torch.equal(mine[:, 0], ids[:, sample, : len(types)])
        assert torch.equal(mine_delta[0], delta[sample])


def grids_of(rows: list[list[int]], kind: int, grids: list[list[int]]) -> int:
    """How many grids the tokens of some rows take."""
    tokens, count = sum(types.count(kind) for types in rows), 0
    while tokens:
        t, h, w = grids[count]
        tokens, count = tokens - t * h * w // 4, count + 1
    return count
