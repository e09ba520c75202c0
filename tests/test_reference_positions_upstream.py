"""The position rules against the functions of the installed transformers, right and wrong."""

import importlib
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from assay.reference.mrope_positions import RULES, positions, token_types

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


HF_LONG_VIDEOS = {
    # family: frames, and what the rule makes of the last frame's time
    "qwen2_vl": (12, 11),
    "qwen2_5_vl": (12, 44),
    "paddleocr_vl": (12, 11),
    "ernie4_5_vl_moe": (24, 11),
}


@pytest.mark.parametrize("family", sorted(HF_LONG_VIDEOS))
def test_text_after_a_long_video_in_transformers(family: str) -> None:
    """A known defect of transformers 5.3 to 5.23.0, asserted so that its repair shows.

    The video's own ids agree. Text resumes at start + max(rows, columns), among the ids of the video's later frames.
    """
    frames, last_time = HF_LONG_VIDEOS[family]
    tokens = (last_time + 1 if RULES[family].video_time == "pooled" else frames) * 2 * 3
    types = torch.tensor([row((0, 4), (2, tokens), (0, 3))])
    inputs = {"video_grid_thw": torch.tensor([[frames, 4, 6]])}
    mine, delta = ours(family, types, inputs)
    theirs, their_delta = hugging_face(family, types, **inputs)
    assert torch.equal(mine[..., :-3], theirs[..., :-3])
    assert mine[:, 0, -3].tolist() == [1 + 4 + last_time] * 3
    assert theirs[:, 0, -3].tolist() == [4 + 3] * 3, "repaired upstream: compare with ours like the rest"
    length = types.shape[1]
    assert int(delta) == int(mine.max()) + 1 - length
    # Their delta follows the largest id, which is the video's: cached decoding does not even continue their own text.
    assert int(their_delta) + length != int(theirs[0, 0, -1]) + 1


@pytest.mark.parametrize("seconds", [0.35, 0.5, 0.7, 1.0, 2.0 / 3.0])
def test_times_of_qwen2_5_vl_equal_hugging_face(seconds: float) -> None:
    types = torch.tensor([row((0, 4), (2, 40 * 6))])
    gaps = torch.tensor([seconds])
    grids = torch.tensor([[40, 4, 6]])
    mine, _ = positions(RULES["qwen2_5_vl"], types, video_grids=grids, seconds_per_grid=gaps)
    theirs, _ = hugging_face("qwen2_5_vl", types, video_grid_thw=grids, second_per_grid_ts=gaps)
    assert torch.equal(mine, theirs)


def test_adjacent_images_in_transformers() -> None:
    """A known limit of transformers 5.23.0: a run of two images takes one grid, so the lengths do not fit."""
    types = torch.tensor([row((1, 6), (1, 4), (0, 1))])
    with pytest.raises(RuntimeError, match="expanded size"):
        hugging_face("qwen2_vl", types, image_grid_thw=torch.tensor([[1, 4, 6], [1, 4, 4]]))
    ids, _ = positions(RULES["qwen2_vl"], types, image_grids=torch.tensor([[1, 4, 6], [1, 4, 4]]))
    assert ids[0, 0].tolist() == [0] * 6 + [3] * 4 + [5]


def hunyuan(types: torch.Tensor, grids: torch.Tensor, axes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    owner = importlib.import_module("transformers.models.hunyuan_vl.modeling_hunyuan_vl").HunYuanVLModel
    text = SimpleNamespace(rope_parameters={"mrope_section": [4] * axes})
    model = SimpleNamespace(
        config=SimpleNamespace(text_config=text, vision_config=SimpleNamespace(spatial_merge_size=2))
    )
    model.get_vision_position_ids = owner.get_vision_position_ids.__get__(model)
    return owner.get_rope_index(model, torch.zeros_like(types), types, image_grid_thw=grids)


@pytest.mark.parametrize("axes", [3, 4])
@pytest.mark.parametrize("margin", [0, 2])
def test_hunyuan_equals_hugging_face_for_one_sample(axes: int, margin: int) -> None:
    grids = torch.tensor([[1, 4, 6], [1, 6, 2]])
    types = torch.tensor([row((0, 2), (1, 8 + margin), (0, 3), (1, 6 + margin), (0, 2))])
    mine, delta = positions(replace(RULES["hunyuan_vl"], axes=axes), types, image_grids=grids)
    theirs, their_delta = hunyuan(types, grids, axes)
    assert torch.equal(mine, theirs)
    assert torch.equal(delta, their_delta)


def test_hunyuan_counts_images_across_the_batch_in_transformers() -> None:
    """A known defect of transformers 5.23.0, asserted so that its repair shows: images are not counted by sample."""
    grids = torch.tensor([[1, 4, 6], [1, 4, 6]])
    types = torch.tensor([row((0, 2), (1, 8), (0, 1))] * 2)
    mine, _ = positions(RULES["hunyuan_vl"], types, image_grids=grids)
    theirs, _ = hunyuan(types, grids)
    assert torch.equal(mine[:, 0], theirs[:, 0])
    assert torch.equal(mine[:, 0], mine[:, 1])
    assert theirs[3, :, 2].tolist() == [0, 1], "repaired upstream: both samples should have 0"


def test_hunyuan_delta_after_an_image_at_the_end_in_transformers() -> None:
    """A known defect of transformers 5.23.0 with three axes: text keeps sequence indices, so the delta has to be 0."""
    grids, types = torch.tensor([[1, 4, 6]]), torch.tensor([row((0, 2), (1, 8))])
    _, delta = positions(replace(RULES["hunyuan_vl"], axes=3), types, image_grids=grids)
    _, their_delta = hunyuan(types, grids, axes=3)
    assert delta.item() == 0
    assert their_delta.item() == 4 - 10, "repaired upstream: should be 0"


def test_glm_image_equals_hugging_face() -> None:
    owner = importlib.import_module("transformers.models.glm_image.modeling_glm_image").GlmImageModel
    start, end = 7, 8
    ids = torch.tensor([[0, 0, start, *[1] * 15, end, 0, start, *[1] * 4, end, 0]])
    grids = torch.tensor([[1, 3, 5], [1, 2, 2]])
    model = SimpleNamespace(config=SimpleNamespace(image_start_token_id=start, image_end_token_id=end))
    model.get_vision_position_ids = owner.get_vision_position_ids.__get__(model)
    theirs, _ = owner.get_rope_index(model, ids, image_grid_thw=grids, images_per_sample=torch.tensor([2]))
    mine, delta = positions(RULES["glm_image"], token_types(ids, image_id=1), image_grids=grids)
    assert torch.equal(mine, theirs)
    assert int(delta) == int(mine.max()) + 1 - ids.shape[1]


def test_images_that_glm_image_generates_are_numbered_like_given_ones() -> None:
    owner = importlib.import_module("transformers.models.glm_image.modeling_glm_image").GlmImageModel
    start, end = 7, 8
    prompt = [0, 0, start, *[1] * 15, end, 0, start]
    given, wanted, preview = [1, 3, 5], [1, 4, 6], [1, 2, 3]
    model = SimpleNamespace(config=SimpleNamespace(image_start_token_id=start, image_end_token_id=end))
    model.get_vision_position_ids = owner.get_vision_position_ids.__get__(model)
    grids = torch.tensor([given, wanted, preview])
    owner.get_rope_index(model, torch.tensor([prompt]), image_grid_thw=grids, images_per_sample=torch.tensor([3]))
    theirs = model._cached_decode_position_ids[0]

    whole = torch.tensor([[*prompt, *[1] * (2 * 3 + 4 * 6), end]])
    mine, _ = positions(
        RULES["glm_image"], token_types(whole, image_id=1), image_grids=torch.tensor([given, preview, wanted])
    )
    assert torch.equal(mine[:, 0, len(prompt) :], theirs)
