"""Cosmos3-Edge: interleaved sections over a vision tower with learned positions."""

from __future__ import annotations

from typing import Any

from assay.audits.families._qwen import qwen_vl, special_ids, text_config
from assay.audits.families._recipe import TokenId
from assay.audits.families._video_processor import HALF
from assay.audits.families.sites import Sites


def config(vocabulary: int, token_id: TokenId) -> Any:
    """Two layers of text over a two-layer vision tower, with learned positions on an 8 x 8 grid."""
    from transformers import Cosmos3EdgeConfig

    return Cosmos3EdgeConfig(
        text_config=text_config(
            vocabulary, token_id, theta=5e6, sections=(7, 5, 4), mrope_interleaved=True, head_dim=32
        ),
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": 4,
            "num_patches": 64,
            "spatial_merge_size": 2,
        },
        projector_hidden_size=96,
        **special_ids(token_id),
    )


RECIPE = qwen_vl(
    "cosmos3_edge",
    "Cosmos3EdgeForConditionalGeneration",
    "Cosmos3EdgeProcessor",
    config,
    patch_size=4,
    image_processor="Cosmos3EdgeImageProcessor",
    video_processor="Cosmos3EdgeVideoProcessor",
    video_scaling=HALF,
    channels_last=True,
    temporal_patch_size=1,
    call=lambda _samples: {"return_metadata": True, "return_mm_token_type_ids": True},
)

FAMILY = RECIPE.family(
    releases=">=5.0.0.dev0",
    sites=Sites(vision_rotary=(), vision_apply=()),
)
