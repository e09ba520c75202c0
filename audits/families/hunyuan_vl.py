"""HunYuan-VL: four axes (sequence, width, height, image), chunked; every row of an image ends in a newline token."""

from __future__ import annotations

from typing import Any

from assay.audits.families._qwen import text_config
from assay.audits.families._recipe import Recipe, TokenId
from assay.audits.families._tokenizer import END_OF_TEXT
from assay.audits.families.sites import Sites


def config(vocabulary: int, token_id: TokenId) -> Any:
    """Two layers of text over a tower without temporal merging."""
    from transformers import HunYuanVLConfig

    return HunYuanVLConfig(
        text_config=text_config(vocabulary, token_id, theta=1e4, sections=(2, 3, 5, 6), head_dim=32),
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "out_hidden_size": 128,
            "text_hidden_size": 128,
            "patch_size": 4,
            "max_image_size": 64,
        },
        image_token_id=token_id("<image>"),
        im_start_id=token_id("<im_start>"),
        im_end_id=token_id("<im_end>"),
        im_newline_id=token_id("<im_newline>"),
    )


RECIPE = Recipe(
    name="hunyuan_vl",
    model="HunYuanVLForConditionalGeneration",
    config=config,
    processor="HunYuanVLProcessor",
    image_processor="HunYuanVLImageProcessor",
    special=(END_OF_TEXT, "<|im_end|>", "<image>", "<im_start>", "<im_end>", "<im_newline>"),
    attributes=(("image_token", "<image>"), ("image_start_token", "<im_start>"), ("image_end_token", "<im_end>")),
    image="<im_start><image><im_end>",
    patch_size=4,
    temporal_patch_size=1,
)

FAMILY = RECIPE.family(releases=">=5.0.0.dev0", sites=Sites(vision_rotary=(), vision_apply=()))
