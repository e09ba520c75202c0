"""The position rules: known answers written from the rules by hand, and arguments that are refused."""

from typing import Any

import pytest
import torch

from assay.reference.mrope_positions import RULES, cached_positions, positions, token_types


def row(*parts: tuple[int, int]) -> list[int]:
    """Token types from (type, count) pairs."""
    return [kind for kind, count in parts for _ in range(count)]


def test_text_and_a_wide_image_by_hand() -> None:
    ids, delta = positions(
        RULES["qwen2_vl"], torch.tensor([row((0, 2), (1, 6), (0, 2))]), image_grids=torch.tensor([[1, 4, 6]])
    )
    assert ids[:, 0].tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
    ]
    assert delta.tolist() == [[-3]]


def test_text_after_a_long_video_resumes_after_its_last_frame() -> None:
    types = torch.tensor([row((0, 1), (2, 10), (0, 2))])
    ids, delta = positions(RULES["qwen2_vl"], types, video_grids=torch.tensor([[5, 2, 4]]))
    assert ids[:, 0].tolist() == [
        [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7],
        [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 6, 7],
        [0, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 6, 7],
    ]
    assert delta.tolist() == [[-5]]


def test_seconds_are_cut_and_not_rounded() -> None:
    types = torch.tensor([row((0, 3), (2, 8), (0, 1))])
    ids, _ = positions(RULES["qwen2_5_vl"], types, video_grids=torch.tensor([[4, 2, 4]]), seconds_per_grid=[0.9])
    assert ids[0, 0].tolist() == [0, 1, 2, 3, 3, 6, 6, 10, 10, 13, 13, 14]  # 0, 3.6, 7.2 and 10.8 after 3


def test_frames_of_a_video_are_separate_blocks_between_timestamps() -> None:
    types = torch.tensor([row((0, 2), (2, 2), (0, 1), (2, 2), (0, 1))])
    ids, delta = positions(RULES["qwen3_vl"], types, video_grids=torch.tensor([[2, 2, 4]]))
    assert ids[:, 0].tolist() == [[0, 1, 2, 2, 4, 5, 5, 7], [0, 1, 2, 2, 4, 5, 5, 7], [0, 1, 2, 3, 4, 5, 6, 7]]
    assert delta.tolist() == [[0]]


def test_pooled_frames() -> None:
    types = torch.tensor([row((2, 4), (0, 1))])
    ids, _ = positions(RULES["ernie4_5_vl_moe"], types, video_grids=torch.tensor([[8, 2, 2]]))
    assert ids[0, 0].tolist() == [0, 1, 2, 3, 4]
    ids, _ = positions(RULES["ernie4_5_vl_moe"], torch.tensor([row((2, 1))]), video_grids=torch.tensor([[1, 2, 2]]))
    assert ids.flatten().tolist() == [0, 0, 0]


def test_hunyuan_keeps_sequence_indices_for_text_and_row_ends() -> None:
    types = torch.tensor([row((0, 2), (1, 8), (0, 1), (1, 6), (0, 1))])
    ids, delta = positions(RULES["hunyuan_vl"], types, image_grids=torch.tensor([[1, 4, 4], [1, 4, 2]]))
    assert ids[:, 0].tolist() == [
        list(range(18)),
        [0, 1, 2, 0, 1, 2, 0, 1, 2, 9, 10, 11, 0, 1, 0, 1, 16, 17],
        [0, 1, 2, 0, 0, 0, 1, 1, 1, 9, 10, 11, 0, 0, 1, 1, 16, 17],
        [0, 1, 2, 0, 0, 0, 0, 0, 0, 9, 10, 11, 1, 1, 1, 1, 16, 17],
    ]
    assert delta.tolist() == [[0]]


def test_adjacent_images_take_grids_until_the_run_is_covered() -> None:
    types = torch.tensor([row((1, 2), (1, 3), (0, 1))])
    ids, _ = positions(RULES["qwen2_vl"], types, image_grids=torch.tensor([[1, 2, 4], [1, 6, 2]]))
    assert ids[:, 0].tolist() == [[0, 0, 2, 2, 2, 5], [0, 0, 2, 3, 4, 5], [0, 1, 2, 2, 2, 5]]


@pytest.mark.parametrize(
    ("grids", "message"),
    [
        ([[1, 4, 4]], "sample 0: image tokens 1 to 6: expected grids for 6 tokens, got 4"),
        ([[1, 4, 4], [1, 4, 4]], "image_grids\\[1\\] has 4"),
        ([[1, 4, 6], [1, 2, 2]], "image_grids\\[1\\]: no image tokens are left"),
        ([[1, 4, 5]], "multiples of 2"),
        ([[0, 4, 4]], "positive sizes"),
        (None, "nothing is left"),
    ],
)
def test_grids_and_tokens_must_match_both_ways(grids: list[list[int]] | None, message: str) -> None:
    types = torch.tensor([row((0, 1), (1, 6))])
    with pytest.raises(ValueError, match=message):
        positions(RULES["qwen2_vl"], types, image_grids=None if grids is None else torch.tensor(grids))


def test_a_video_may_not_continue_in_the_next_sample() -> None:
    types = torch.tensor([row((0, 1), (2, 1)), row((0, 1), (2, 1))])
    with pytest.raises(ValueError, match="sample 0: expected tokens for all frames"):
        positions(RULES["qwen3_vl"], types, video_grids=torch.tensor([[2, 2, 2]]))


def test_a_mask_of_segment_numbers_is_refused() -> None:
    types = torch.zeros(1, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="0 and 1 only"):
        positions(RULES["qwen2_vl"], types, attention_mask=torch.tensor([[1, 1, 2, 2]]))


def test_plain_families_count_tokens() -> None:
    types = torch.tensor([row((0, 2), (1, 4), (0, 1)), row((0, 7))])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    for family in ("exaone4_5", "lfm3_vl", "video_llama_3"):
        ids, delta = positions(RULES[family], types, attention_mask=mask)
        assert ids.tolist() == [[[0, 0, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6]]]
        assert delta.tolist() == [[0], [0]]


def test_cached_positions_take_a_length_for_each_row() -> None:
    ids = cached_positions(torch.tensor([[-3], [2]]), torch.tensor([10, 4]), 2)
    assert ids.tolist() == [[[7, 8], [6, 7]]] * 3
    with pytest.raises(ValueError, match="past_length"):
        cached_positions(torch.tensor([[-3], [2]]), torch.tensor([10]), 2)


def test_token_types_of_glm_videos() -> None:
    start, end, picture = 5, 6, 9
    ids = torch.tensor([[1, picture, start, picture, 2, picture, end, picture]])
    types = token_types(ids, image_id=picture, video_start_id=start, video_end_id=end)
    assert types.tolist() == [[0, 1, 0, 2, 0, 2, 0, 1]]
    with pytest.raises(ValueError, match="alternate"):
        token_types(torch.tensor([[end, start]]), image_id=picture, video_start_id=start, video_end_id=end)
    with pytest.raises(ValueError, match="different ids"):
        token_types(ids, image_id=picture, video_id=picture)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"token_types": torch.zeros(1, 2)}, TypeError, "token_types"),
        ({"token_types": torch.zeros(2, dtype=torch.int64)}, ValueError, "token_types"),
        ({"token_types": torch.tensor([[0, 4]])}, ValueError, "token_types"),
        ({"attention_mask": torch.ones(1, 2)}, TypeError, "attention_mask"),
        ({"attention_mask": torch.ones(1, 3, dtype=torch.int64)}, ValueError, "attention_mask"),
        ({"image_grids": torch.ones(1, 3)}, TypeError, "image_grids"),
        ({"image_grids": torch.tensor([1, 2, 2])}, ValueError, "image_grids"),
        ({"seconds_per_grid": [1.0]}, ValueError, "seconds_per_grid"),
        ({"audio_lengths": [3]}, ValueError, "audio_lengths"),
        ({"rule": "qwen2_vl"}, TypeError, "rule"),
        ({"rule": RULES["minicpmv4_7"]}, ValueError, "rule"),
        ({"rule": RULES["qwen2_5_vl"], "video_grids": torch.tensor([[1, 2, 2]])}, ValueError, "seconds_per_grid"),
        (
            {"rule": RULES["qwen2_5_vl"], "video_grids": torch.tensor([[1, 2, 2]]), "seconds_per_grid": [-1.0]},
            ValueError,
            "seconds_per_grid",
        ),
        ({"rule": RULES["ernie4_5_vl_moe"], "video_grids": torch.tensor([[3, 2, 2]])}, ValueError, "video_grids"),
        ({"rule": RULES["hunyuan_vl"], "image_grids": torch.tensor([[2, 2, 2]])}, ValueError, "image_grids"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    usual: dict[str, Any] = {"rule": RULES["qwen2_vl"], "token_types": torch.zeros(1, 2, dtype=torch.int64)}
    with pytest.raises(error, match=message):
        positions(**(usual | arguments))


def test_nothing_is_mutated() -> None:
    types, mask = torch.tensor([row((0, 2), (2, 4))]), torch.ones(1, 6, dtype=torch.int64)
    grids = torch.tensor([[4, 2, 2]])
    kept = [tensor.clone() for tensor in (types, mask, grids)]
    positions(RULES["qwen3_vl"], types, attention_mask=mask, video_grids=grids)
    assert all(torch.equal(a, b) for a, b in zip(kept, (types, mask, grids), strict=True))
