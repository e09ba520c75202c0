"""The position rules: known answers, laws, and the functions of the installed transformers, right and wrong."""

import importlib
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.reference.mrope_positions import RULES, cached_positions, positions, token_types

EXAMPLES = settings(deadline=None, derandomize=True, database=None)
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
