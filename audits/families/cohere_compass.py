"""Cohere Compass: interleaved sections, neighbouring channels paired; its own thetas for each type of layer."""

from __future__ import annotations

from typing import Any

from assay.audits.families._qwen import VISION, VISION_3, qwen_vl, text_config
from assay.audits.families._recipe import TokenId
from assay.audits.families._tokenizer import END_OF_TEXT
from assay.audits.families._video_processor import HALF

SPECIAL = (END_OF_TEXT, "<|im_end|>", "<|VISION_START|>", "<|VISION_END|>", "<|IMAGE_PAD|>", "<|VIDEO_PAD|>")


def config(vocabulary: int, token_id: TokenId) -> Any:
    """A sliding-window layer, which is rotated, and a full-attention layer."""
    from transformers import CohereCompassConfig

    text = text_config(vocabulary, token_id, theta=5e4, sections=(7, 5, 4), mrope_interleaved=True)
    text["rope_parameters"] = {"sliding_attention": text["rope_parameters"], "full_attention": None}
    return CohereCompassConfig(
        text_config={**text, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 64},
        vision_config={**VISION, **VISION_3, "deepstack_visual_indexes": [0, 1]},
        image_token_id=token_id("<|IMAGE_PAD|>"),
        video_token_id=token_id("<|VIDEO_PAD|>"),
        vision_start_token_id=token_id("<|VISION_START|>"),
        vision_end_token_id=token_id("<|VISION_END|>"),
    )


RECIPE = qwen_vl(
    "cohere_compass",
    "CohereCompassForConditionalGeneration",
    "CohereCompassProcessor",
    config,
    patch_size=4,
    image_processor="CohereCompassImageProcessor",
    video_processor="CohereCompassVideoProcessor",
    video_scaling=HALF,
    special=SPECIAL,
    image="<|VISION_START|><|IMAGE_PAD|><|VISION_END|>",
    video="<|VISION_START|><|VIDEO_PAD|><|VISION_END|>",
)

FAMILY = RECIPE.family(releases=">=5.21")  # before, height and width had lanes side by side, with rates of their own
