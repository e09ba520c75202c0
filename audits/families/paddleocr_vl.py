"""PaddleOCR-VL: chunked sections; images only."""

from __future__ import annotations

from typing import Any

from assay.audits.families._qwen import text_config
from assay.audits.families._recipe import Recipe, TokenId
from assay.audits.families._tokenizer import END_OF_TEXT
from assay.audits.families.sites import Sites


def config(vocabulary: int, token_id: TokenId) -> Any:
    """Two layers of text over a two-layer vision tower, with learned positions on an 8 x 8 grid."""
    from transformers import PaddleOCRVLConfig

    return PaddleOCRVLConfig(
        text_config=text_config(vocabulary, token_id, theta=5e5, sections=(3, 5, 8), head_dim=32),
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 4,
        },
        image_token_id=token_id("<|IMAGE_PLACEHOLDER|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|IMAGE_START|>"),
        vision_end_token_id=token_id("<|IMAGE_END|>"),
    )


RECIPE = Recipe(
    name="paddleocr_vl",
    model="PaddleOCRVLForConditionalGeneration",
    config=config,
    processor="PaddleOCRVLProcessor",
    image_processor="PaddleOCRVLImageProcessor",
    special=(
        END_OF_TEXT,
        "<|im_end|>",
        "<|IMAGE_PLACEHOLDER|>",
        "<|IMAGE_START|>",
        "<|IMAGE_END|>",
        "<|video_pad|>",
    ),
    attributes=(("image_token", "<|IMAGE_PLACEHOLDER|>"),),
    image="<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
    patch_size=4,
    temporal_patch_size=1,
)

FAMILY = RECIPE.family(
    releases=">=5.0.0.dev0",
    sites=Sites(vision_rotary=("model.visual.vision_model.encoder.rotary_pos_emb",)),
)
