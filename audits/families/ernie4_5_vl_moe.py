"""ERNIE-4.5-VL: height and width alternate in the first channels, time takes the last; neighbours are paired."""

from __future__ import annotations

from typing import Any

from assay.audits.families._qwen import text_config
from assay.audits.families._recipe import Recipe, TokenId
from assay.audits.families._tokenizer import END_OF_TEXT
from assay.audits.families.sites import Sites

TOKENS = {
    "image": "<|IMAGE_PLACEHOLDER|>",
    "image_start": "<|IMAGE_START|>",
    "image_end": "<|IMAGE_END|>",
    "video": "<|VIDEO_PLACEHOLDER|>",
    "video_start": "<|VIDEO_START|>",
    "video_end": "<|VIDEO_END|>",
}


def config(vocabulary: int, token_id: TokenId) -> Any:
    """A dense layer and one with four text experts and four vision experts; two frames are merged into one."""
    from transformers import Ernie4_5_VLMoeConfig

    ids: dict[str, Any] = {f"{name}_token_id": token_id(token) for name, token in TOKENS.items()}
    return Ernie4_5_VLMoeConfig(
        text_config=text_config(
            vocabulary,
            token_id,
            theta=5e5,
            sections=(6, 6, 4),
            moe_intermediate_size=[48, 24],
            moe_k=2,
            moe_num_experts=4,
            moe_num_shared_experts=1,
        ),
        vision_config={
            "depth": 2,
            "num_heads": 2,
            "hidden_size": 64,
            "intermediate_size": 96,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_merge_size": 2,
        },
        **ids,
    )


RECIPE = Recipe(
    name="ernie4_5_vl_moe",
    model="Ernie4_5_VLMoeForConditionalGeneration",
    config=config,
    processor="Ernie4_5_VLMoeProcessor",
    image_processor="Ernie4_5_VLMoeImageProcessor",
    video_processor="Ernie4_5_VLMoeVideoProcessor",
    special=(END_OF_TEXT, "<|im_end|>", *TOKENS.values()),
    attributes=tuple((f"{name}_token", token) for name, token in TOKENS.items()),
    image="<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
    video="<|VIDEO_START|><|VIDEO_PLACEHOLDER|><|VIDEO_END|>",
    patch_size=4,
    temporal_patch_size=2,
    frames_per_step=1,
    image_settings={"temporal_patch_size": 1},
)

FAMILY = RECIPE.family(
    releases=">=5.0.0.dev0",
    sites=Sites(vision_rotary=("model.vision_tower.rotary_pos_emb",)),
    notes="The grid of a video counts frames, of which the model merges two; so temporal steps must be even.",
)
