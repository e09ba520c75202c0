"""The specifications of truncation and padding against answers written by hand."""

from __future__ import annotations

import pytest
import torch

from assay.reference.label_batch import collate
from assay.reference.label_truncation import truncate

IGNORE = -100
IDS = torch.arange(10, 20)
LABELS = torch.tensor([IGNORE] * 6 + [16, 17, 18, 19])


def test_ids_and_labels_are_one_slice() -> None:
    right, left = (truncate(IDS, LABELS, 8, side=side) for side in ("right", "left"))
    assert right.input_ids.tolist() == [*range(10, 18)]
    assert right.labels.tolist() == [IGNORE] * 6 + [16, 17]
    assert (right.start, right.stop, right.trained) == (0, 8, 2)
    assert left.input_ids.tolist() == [*range(12, 20)]
    assert left.labels.tolist() == [IGNORE] * 4 + [16, 17, 18, 19]
    assert (left.start, left.stop, left.trained) == (2, 10, 4)


def test_what_fits_is_left_as_it_is() -> None:
    assert truncate(IDS, LABELS, 10, blocks=[(1, 4)]).blocks == (0,)
    assert truncate(IDS, LABELS, 99).input_ids.tolist() == IDS.tolist()


def test_an_image_is_left_whole_or_dropped_whole() -> None:
    blocks = [(0, 3), (6, 9)]
    trained = IDS.clone()
    with pytest.raises(ValueError, match="7 cuts the block of tokens 6 to 9 in two"):
        truncate(IDS, trained, 7, blocks=blocks)
    cut = truncate(IDS, trained, 7, blocks=blocks, divided="drop")
    assert (cut.input_ids.tolist(), cut.blocks) == ([*range(10, 16)], (0,))
    cut = truncate(IDS, trained, 8, side="left", blocks=blocks, divided="drop")
    assert (cut.input_ids.tolist(), cut.blocks) == ([*range(13, 20)], (1,))
    assert truncate(IDS, trained, 6, blocks=blocks).blocks == (0,)
    assert truncate(IDS, trained, 9, blocks=blocks).blocks == (0, 1)


def test_a_sample_without_targets_is_an_error_or_is_counted() -> None:
    with pytest.raises(ValueError, match="of 10 tokens none that is trained on is among the 5 left"):
        truncate(IDS, LABELS, 5)
    assert truncate(IDS, LABELS, 5, untrained="report").trained == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_length": 0}, "max_length: expected at least 1"),
        ({"side": "middle"}, "side: expected 'right' or 'left', got 'middle'"),
        ({"blocks": [(3, 3)]}, r"blocks: \(3, 3\) is empty"),
        ({"blocks": [(3, 6), (5, 7)]}, r"blocks: \(5, 7\)"),
        ({"blocks": [(8, 11)]}, "outside of 10 tokens"),
        ({"divided": "keep"}, "divided: expected one of .*, got .keep"),
        ({"labels": LABELS[1:]}, r"expected two of the shape \[S\], got \[10\] and \[9\]"),
    ],
)
def test_bad_input_of_truncation_is_named(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        truncate(**{"input_ids": IDS, "labels": LABELS, "max_length": 8, **arguments})


LONG = {"input_ids": [7, 8, 9], "labels": [IGNORE, 8, 9], "token_types": [1, 0, 0], "spans": [[0, 2], [1, 3]]}
SHORT = {"input_ids": [9], "labels": [9], "spans": [[0, 1]]}


def test_padding_by_place_and_not_by_id() -> None:
    batch = collate([LONG, SHORT], pad_id=9)
    assert batch.input_ids.tolist() == [[7, 8, 9], [9, 9, 9]]
    assert batch.labels.tolist() == [[IGNORE, 8, 9], [9, IGNORE, IGNORE]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.token_types.tolist() == [[1, 0, 0], [0, 0, 0]]
    assert batch.spans.tolist() == [[0, 0, 2], [0, 1, 3], [1, 0, 1]]
    assert batch.trained.tolist() == [2, 1]


def test_padding_on_the_left_moves_everything() -> None:
    batch = collate([LONG, SHORT], pad_id=0, side="left")
    assert batch.input_ids.tolist() == [[7, 8, 9], [0, 0, 9]]
    assert batch.labels.tolist() == [[IGNORE, 8, 9], [IGNORE, IGNORE, 9]]
    assert batch.spans.tolist() == [[0, 0, 2], [0, 1, 3], [1, 2, 3]]


@pytest.mark.parametrize("side", ["right", "left"])
def test_an_optional_key_that_is_missing_is_its_empty_default(side) -> None:
    bare = {name: LONG[name] for name in ("input_ids", "labels")}
    full = {**bare, "attention_mask": [1, 1, 1], "token_types": [0, 0, 0], "spans": []}
    ours, theirs = (collate([SHORT, example], pad_id=0, side=side) for example in (bare, full))
    for name in ("input_ids", "labels", "attention_mask", "token_types", "spans"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "examples: expected at least one"),
        ([{"input_ids": [1]}], r"examples\[0\]: lacks \['labels'\]"),
        ([SHORT, {**SHORT, "pixels": [1]}], r"examples\[1\]: .*unknown keys \['pixels'\]"),
        ([{**SHORT, "labels": [9, 9]}], r"labels has the shape \[2\], input_ids \[1\]"),
        ([{**SHORT, "labels": [8]}], "a label is neither its token's id nor -100"),
        ([{**SHORT, "spans": [[0, 2]]}], r"spans \[\[0, 2\]\] are not all within 1 tokens"),
    ],
)
def test_bad_input_of_padding_is_named(examples, message) -> None:
    with pytest.raises(ValueError, match=message):
        collate(examples, pad_id=0)


def test_numbers_that_are_not_whole_are_refused() -> None:
    with pytest.raises(TypeError, match=r"examples\[0\]: attention_mask: expected whole numbers, got torch.float32"):
        collate([{**SHORT, "attention_mask": [0.7]}], pad_id=0)
    with pytest.raises(TypeError, match="input_ids: expected torch.int64, got torch.float32"):
        truncate(IDS.float(), LABELS, 5)
    for option in ("divided", "untrained"):
        with pytest.raises(ValueError, match=f"{option}: expected one of "):
            truncate(IDS, LABELS, 9, **{option: "never"})


def test_a_bad_side_is_named() -> None:
    with pytest.raises(ValueError, match="side: expected 'right' or 'left', got 'top'"):
        collate([SHORT], pad_id=0, side="top")
