"""Positions with audio: the Omni families, against their own functions in the installed transformers."""

import importlib
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from assay.reference.mrope_omni_positions import audio_tokens, interleaved_types
from assay.reference.mrope_positions import RULES, positions

OWNERS = {
    "qwen2_5_omni": "Qwen2_5OmniPreTrainedModelForConditionalGeneration",
    "qwen3_omni_moe": "Qwen3OmniMoePreTrainedModelForConditionalGeneration",
}
FAMILIES = sorted(OWNERS)
TEXT, IMAGE, VIDEO, AUDIO, VISION_START, VISION_END, AUDIO_START, AUDIO_END = range(8)


def hugging_face(family: str, ids: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    owner = getattr(importlib.import_module(f"transformers.models.{family}.modeling_{family}"), OWNERS[family])
    config = SimpleNamespace(
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=AUDIO,
        vision_start_token_id=VISION_START,
        audio_start_token_id=AUDIO_START,
        position_id_per_seconds=int(RULES[family].ids_per_second),
        seconds_per_chunk=2,
        audio_config=SimpleNamespace(n_window=50),
    )
    model = SimpleNamespace(config=config, spatial_merge_size=2)
    for name in ("get_llm_pos_ids_for_vision", "get_chunked_index"):
        setattr(model, name, getattr(owner, name).__get__(model))
    return owner.get_rope_index(model, ids, attention_mask=torch.ones_like(ids), **inputs)


def types_of(ids: torch.Tensor) -> torch.Tensor:
    return torch.where(ids <= AUDIO, ids, 0)


def image(tokens: int) -> list[int]:
    return [VISION_START, *[IMAGE] * tokens, VISION_END]


def video(tokens: int) -> list[int]:
    return [VISION_START, *[VIDEO] * tokens, VISION_END]


def audio(tokens: int) -> list[int]:
    return [AUDIO_START, *[AUDIO] * tokens, AUDIO_END]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seconds", [1.0, 0.35, 0.5])
def test_all_modalities_apart_equal_hugging_face(family: str, seconds: float) -> None:
    frames = torch.tensor([37, 240])
    clips = [audio_tokens(family, int(n)) for n in frames]
    images, videos = torch.tensor([[1, 4, 6], [1, 10, 4]]), torch.tensor([[5, 4, 6]])
    row = [0] * 3 + image(6) + audio(clips[0]) + [0] * 2 + video(30) + [0] + audio(clips[1]) + image(10) + [0] * 2
    ids = torch.tensor([row])
    gaps = torch.tensor([seconds])
    theirs, their_delta = hugging_face(
        family, ids, image_grid_thw=images, video_grid_thw=videos, audio_seqlens=frames, second_per_grids=gaps
    )
    mine, delta = positions(
        RULES[family], types_of(ids), image_grids=images, video_grids=videos, seconds_per_grid=gaps, audio_lengths=clips
    )
    assert_same(family, mine, theirs)
    assert_same(family, delta, their_delta)


def assert_same(family: str, mine: torch.Tensor, theirs: torch.Tensor) -> None:
    if RULES[family].fractional:
        # They add up in fp32: each of the three blocks rounds ids of at most 300 once more.
        assert float((mine - theirs).abs().max()) <= 4 * 300 * torch.finfo(torch.float32).eps
    else:
        assert torch.equal(mine, theirs)


def mixed_row(family: str, grid: list[int], seconds: float, clip: int) -> list[int]:
    inner = interleaved_types(RULES[family], torch.tensor([grid]), seconds, clip)
    return [0, 0, VISION_START, AUDIO_START, *inner, AUDIO_END, VISION_END, 0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seconds", [1.0, 0.35])
def test_audio_in_video_equals_hugging_face(family: str, seconds: float) -> None:
    frames = torch.tensor([537])
    clip = audio_tokens(family, 537)
    grid = [6, 4, 6]
    ids = torch.tensor([mixed_row(family, grid, seconds, clip)])
    gaps = torch.tensor([seconds])
    theirs, their_delta = hugging_face(
        family,
        ids,
        video_grid_thw=torch.tensor([grid]),
        audio_seqlens=frames,
        second_per_grids=gaps,
        use_audio_in_video=True,
    )
    mine, delta = positions(
        RULES[family],
        types_of(ids),
        video_grids=torch.tensor([grid]),
        seconds_per_grid=gaps,
        audio_lengths=[clip],
        audio_in_video=True,
    )
    assert_same(family, mine, theirs)
    assert_same(family, delta, their_delta)


@pytest.mark.parametrize("family", FAMILIES)
def test_markers_after_a_wide_video_with_short_audio(family: str) -> None:
    """A known defect of transformers 5.23.0, asserted so that its repair shows.

    They resume after the maximum of the last piece they put down, which is the end of the audio; a frame of 60 columns
    reaches further, so what follows gets ids that the frame already has. Ours resumes after all of it.
    """
    grid, clip = [1, 4, 120], 20
    ids = torch.tensor([mixed_row(family, grid, 1.0, clip)])
    frames = next(n for n in range(3, 500) if audio_tokens(family, n) == clip)
    theirs, _ = hugging_face(
        family,
        ids,
        video_grid_thw=torch.tensor([grid]),
        audio_seqlens=torch.tensor([frames]),
        second_per_grids=torch.tensor([1.0]),
        use_audio_in_video=True,
    )
    mine, _ = positions(
        RULES[family],
        types_of(ids),
        video_grids=torch.tensor([grid]),
        seconds_per_grid=[1.0],
        audio_lengths=[clip],
        audio_in_video=True,
    )
    start = 3 if family == "qwen2_5_omni" else 4  # two markers after two words; they share an id in the older family
    inside = slice(4, ids.shape[1] - 3)
    assert torch.equal(mine[..., inside], theirs[..., inside].to(mine.dtype))
    assert mine[:, 0, -3].tolist() == [start + 60] * 3
    assert theirs[:, 0, -3].tolist() == [start + 20] * 3, "repaired upstream: compare with ours like the rest"


def test_shared_markers_by_hand() -> None:
    types = torch.tensor([[0, 0, 0, 2, 2, 3, 3, 0, 0, 0]])
    arguments: dict[str, Any] = {
        "video_grids": torch.tensor([[1, 2, 4]]),
        "seconds_per_grid": [1.0],
        "audio_lengths": [2],
        "audio_in_video": True,
    }
    ids, delta = positions(RULES["qwen2_5_omni"], types, **arguments)
    assert ids[0, 0].tolist() == [0, 1, 1, 2, 2, 2, 3, 4, 4, 5]
    assert ids[2, 0].tolist() == [0, 1, 1, 2, 3, 2, 3, 4, 4, 5]
    assert delta.tolist() == [[-4]]
    ids, _ = positions(RULES["qwen3_omni_moe"], types, **arguments)
    assert ids[2, 0].tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 6, 7]
    with pytest.raises(ValueError, match="two text markers"):
        positions(RULES["qwen2_5_omni"], types[:, 2:], **arguments)


def test_times_stay_fractional_in_qwen3_omni_only() -> None:
    types = torch.tensor([[2, 2, 2, 0]])
    rule = replace(RULES["qwen3_omni_moe"], ids_per_second=13.0)
    ids, _ = positions(rule, types, video_grids=torch.tensor([[3, 2, 2]]), seconds_per_grid=[0.1])
    assert ids.dtype == torch.float64
    assert ids[0, 0].tolist() == pytest.approx([0, 1.3, 2.6, 3.6], rel=1e-15)
    ids, _ = positions(RULES["qwen2_5_omni"], types, video_grids=torch.tensor([[3, 2, 2]]), seconds_per_grid=[0.1])
    assert ids[0, 0].tolist() == [0, 2, 5, 6]


@pytest.mark.parametrize("family", FAMILIES)
def test_audio_lengths_equal_hugging_face(family: str) -> None:
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    for frames in range(3, 450):
        if family == "qwen2_5_omni":
            theirs = ((frames - 1) // 2 + 1 - 2) // 2 + 1  # inline in their get_rope_index
        else:
            theirs = int(module._get_feat_extract_output_lengths(torch.tensor(frames)))
        assert audio_tokens(family, frames) == theirs


def test_audio_that_does_not_match_is_an_error() -> None:
    types = torch.tensor([[0, 3, 3, 3]])
    for lengths, message in (([2], "expected grids for 3"), ([3, 1], "no audio tokens"), (None, "nothing is left")):
        with pytest.raises(ValueError, match=message):
            positions(RULES["qwen2_5_omni"], types, audio_lengths=lengths)
    with pytest.raises(ValueError, match="this rule knows"):
        positions(RULES["qwen2_vl"], types)
