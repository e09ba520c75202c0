"""The position rules: known answers, laws, and Hugging Face's own functions where they are right and where they are not."""

import importlib
import itertools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from assay.reference.mrope_positions import RULES, PositionRule, cached_positions, positions, token_types

GRID = {0: None, 1: "image", 2: "video"}
BLOCK_FAMILIES = sorted(name for name, rule in RULES.items() if rule.kind == "blocks")
HF_OWNERS = {
    "qwen2_vl": "Qwen2VLModel",
    "qwen2_5_vl": "Qwen2_5_VLModel",
    "qwen3_vl": "Qwen3VLModel",
    "qwen3_vl_moe": "Qwen3VLMoeModel",
    "qwen3_5": "Qwen3_5Model",
    "qwen3_5_moe": "Qwen3_5MoeModel",
    "qwen4_exp": "Qwen4ExpModel",
    "glm4v": "Glm4vModel",
    "glm4v_moe": "Glm4vMoeModel",
    "glm46v": "Glm46VModel",
    "glm_ocr": "GlmOcrModel",
    "cohere_compass": "CohereCompassModel",
    "cosmos3_edge": "Cosmos3EdgeModel",
    "cosmos3_omni": "Cosmos3OmniModel",
    "ernie4_5_vl_moe": "Ernie4_5_VLMoeModel",
    "paddleocr_vl": "PaddleOCRVLModel",
}


def hugging_face(family: str, types: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """`get_rope_index` of the installed transformers, without a model: it reads nothing but a few config values."""
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    owner = getattr(module, HF_OWNERS[family])
    rule = RULES[family]
    vision = SimpleNamespace(
        spatial_merge_size=rule.spatial_merge,
        temporal_merge_size=rule.temporal_merge,
        tokens_per_second=rule.ids_per_second,
    )
    model = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
    model.get_vision_position_ids = owner.get_vision_position_ids.__get__(model)
    return owner.get_rope_index(model, torch.zeros_like(types), types, **inputs)


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


SCENES = {
    "text": ([row((0, 7))], [], []),
    "image": ([row((0, 2), (1, 15), (0, 3))], [[1, 6, 10]], []),
    "image first and last": ([row((1, 6), (0, 1), (1, 6))], [[1, 4, 6], [1, 6, 4]], []),
    "two ragged samples": ([row((0, 4), (1, 6), (0, 5)), row((1, 8), (0, 7))], [[1, 4, 6], [1, 8, 4]], []),
    "one frame of video": ([row((0, 3), (2, 6), (0, 2))], [], [[1, 4, 6]]),
    "image then one-frame video": ([row((1, 4), (0, 1), (2, 6), (0, 2))], [[1, 4, 4]], [[1, 6, 4]]),
}


def scene(name: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    rows, images, videos = SCENES[name]
    grids = {"image_grid_thw": images, "video_grid_thw": videos}
    return torch.tensor(rows), {key: torch.tensor(value) for key, value in grids.items() if value}


def ours(
    family: str, types: torch.Tensor, inputs: dict[str, torch.Tensor], **more: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    videos = inputs.get("video_grid_thw")
    seconds = [1.0] * len(videos) if videos is not None and RULES[family].video_time == "seconds" else None
    return positions(
        RULES[family],
        types,
        image_grids=inputs.get("image_grid_thw"),
        video_grids=videos,
        seconds_per_grid=seconds,
        **more,
    )


@pytest.mark.parametrize("family", sorted(HF_OWNERS))
@pytest.mark.parametrize("name", [name for name in SCENES if "video" not in name])
@pytest.mark.parametrize("side", ["left", "right", None])
def test_text_and_images_equal_hugging_face(family: str, name: str, side: str | None) -> None:
    types, inputs = scene(name)
    mask = torch.ones_like(types)
    if side:
        types, mask = padded(types, 3, side), padded(mask, 3, side)
    mine, delta = ours(family, types, inputs, attention_mask=mask)
    theirs, their_delta = hugging_face(family, types, attention_mask=mask, **inputs)
    assert torch.equal(mine, theirs)
    assert torch.equal(delta, their_delta)


def padded(tensor: torch.Tensor, count: int, side: str) -> torch.Tensor:
    filler = torch.zeros(len(tensor), count, dtype=tensor.dtype)
    return torch.cat([filler, tensor] if side == "left" else [tensor, filler], dim=1)


@pytest.mark.parametrize("family", sorted(name for name in HF_OWNERS if RULES[name].video_time == "frames"))
def test_timestamped_videos_equal_hugging_face(family: str) -> None:
    frames = [(0, 2), (2, 6)] * 9
    types = torch.tensor([row((0, 1), *frames, (0, 3), (1, 4), (0, 1), *[(0, 1), (2, 2)] * 2)])
    inputs = {"image_grid_thw": torch.tensor([[1, 4, 4]]), "video_grid_thw": torch.tensor([[9, 4, 6], [2, 2, 4]])}
    mine, delta = ours(family, types, inputs)
    theirs, their_delta = hugging_face(family, types, **inputs)
    assert torch.equal(mine, theirs)
    assert torch.equal(delta, their_delta)
