"""The guard's laws by themselves, on batches made by hand: what is right is not accused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from assay.audits import guard_batch_laws as laws
from assay.audits.guard_pieces import pieces
from assay.audits.guard_terms import Live
from assay.audits.terms import Inexpressible

FACTS: dict[str, Any] = {
    "placeholders": {}, "markers": {}, "pad": 0, "special": (), "ends": {"2": "</s>"}, "rule": "", "family": "llama",
    "spatial_merge": None, "ids_per_second": None, "shifts": True, "writes": True, "stops": [],
}  # fmt: skip


def live(facts: dict[str, Any] | None = None, tensors: dict[str, Tensor] | None = None, **record: Any) -> Live:
    return Live(tensors or {}, {"facts": {**FACTS, **(facts or {})}, "split": False, "labelled": True, **record})


def batch(ids: Any, **more: Any) -> dict[str, Tensor]:
    held = {"input_ids": ids, **more}
    return {f"batch.{name}": torch.as_tensor(value) for name, value in held.items()}


HOLE = batch(
    [[5, 6, 0, 0, 7, 8, 2]], attention_mask=[[1, 1, 0, 0, 1, 1, 1]], labels=[[-100, -100, -100, -100, 7, 8, 2]]
)


def test_padding_between_a_prompt_and_its_answer_is_no_boundary() -> None:
    seen = live(tensors=HOLE)
    assert len(pieces(seen)) == 1
    with pytest.raises(Inexpressible):
        list(laws.boundaries(seen))
    assert not list(laws.targets(seen))


@pytest.mark.parametrize("used", [[[[0, 1, 1, 1, 2, 3, 4]]], [[[0, 1, 2, 3, 4, 5, 6]]]])
def test_both_ways_to_count_over_a_hole(used: Any) -> None:
    assert not list(laws.positions(live(tensors=HOLE | {"used.positions": torch.tensor(used)})))


def test_a_mask_that_numbers_its_samples_is_a_boundary() -> None:
    assert len(pieces(live(tensors=batch([[5, 6, 7, 8]], attention_mask=[[1, 1, 2, 2]])))) == 2


SHORT = [5, 6, 2, 0]


@pytest.mark.parametrize(("first", "found"), [([5, 6, 7, 8], 0), ([5, 6, 8, 2], 1), ([5, 6, 2, 9], 1)])
def test_a_sample_that_was_cut_before_its_answer(first: list[int], found: int) -> None:
    """Two samples, the longest of which has no label; where it ends as a turn ends, it was not cut."""
    labels = [[-100] * 4, [-100, 6, 2, -100]]
    tensors = batch([first, SHORT], attention_mask=[[1] * 4, [1, 1, 1, 0]], labels=labels)
    assert len(list(laws.targets(live(tensors=tensors)))) == found
    told = live({"ends": {}, "stops": [2]}, tensors)
    assert len(list(laws.targets(told))) == found


def test_a_sample_that_is_shorter_than_others_was_not_cut() -> None:
    tensors = batch([[5, 6, 7, 8], [5, 6, 9, 0]], attention_mask=[[1] * 4, [1, 1, 1, 0]],
                    labels=[[-100, 6, 7, 8], [-100] * 4])  # fmt: skip
    assert len(list(laws.targets(live(tensors=tensors)))) == 1


IDS = [[5, 6, 7, 8, 9, 2]]
AHEAD = [[6, 7, 8, 9, 2, -1]]


def test_labels_ahead_are_found_where_the_model_makes_the_loss_and_only_there() -> None:
    assert list(laws.targets(live(tensors=batch(IDS, labels=AHEAD))))
    for own in (live(tensors=batch(IDS, labels=AHEAD), labelled=False),
                live({"writes": False}, batch(IDS, labels=AHEAD))):  # fmt: skip
        with pytest.raises(Inexpressible, match="shifted before"):
            list(laws.targets(own))


def test_first_tokens_of_a_pack_whose_labels_are_ahead() -> None:
    ahead = [[6, 7, -100, 9, 2, -100]]
    tensors = batch(IDS, labels=ahead, position_ids=[[0, 1, 2, 0, 1, 2]])
    assert not list(laws.boundaries(live(tensors=tensors, labelled=False)))
    assert list(laws.boundaries(live(tensors=tensors)))


def test_padding_that_a_loss_of_ones_own_ignores() -> None:
    tensors = batch([[5, 6, 2, 0, 0]], attention_mask=[[1, 1, 1, 0, 0]], labels=[[5, 6, 2, 0, 0]])
    assert not list(laws.targets(live(tensors=tensors, labelled=False)))
    assert list(laws.targets(live(tensors=tensors)))


def test_positions_of_a_batch_that_was_split_over_devices() -> None:
    tensors = batch([[5, 6, 7], [8, 9, 2]]) | {"used.positions": torch.tensor([[[0, 1, 2]]])}
    with pytest.raises(Inexpressible, match="split"):
        list(laws.positions(live(tensors=tensors, split=True)))
    assert not list(laws.positions(live(tensors=tensors)))


PACK = batch([[5, 6, 7, 8]], position_ids=[[0, 1, 0, 1]])


@pytest.mark.parametrize(("mask", "found"), [("none", 1), ("by another name", 0)])
def test_an_attention_whose_mask_has_another_name(mask: str, found: int) -> None:
    assert len(list(laws.boundaries(live(tensors=PACK, attention={"by": "sdpa", "mask": mask})))) == found


def test_parts_of_samples_are_not_judged() -> None:
    """A process of several that share each sample: its part may be all prompt, and positions jump."""
    tensors = batch([[5, 6, 7, 8, 9, 2]], labels=[[-100] * 6]) | {
        "used.positions": torch.tensor([[[0, 1, 2, 9, 10, 11]]])
    }
    for law in (laws.features, laws.positions, laws.targets, laws.boundaries):
        with pytest.raises(Inexpressible, match="spread over several processes"):
            list(law(live(tensors=tensors, sharded=True)))
