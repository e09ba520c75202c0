"""Cosmos3-Omni: the parts of Qwen3-VL under a model of its own."""

from __future__ import annotations

from typing import Any

from assay.audits.families._qwen import VISION, VISION_3, qwen3_vl, special_ids, text_config
from assay.audits.families._recipe import TokenId


def config(vocabulary: int, token_id: TokenId) -> Any:
    """Deepstack features from both vision layers into both text layers."""
    from transformers import Cosmos3OmniConfig

    return Cosmos3OmniConfig(
        text_config={
            **text_config(vocabulary, token_id, theta=5e6, sections=(7, 5, 4), mrope_interleaved=True, head_dim=32),
            "model_type": "qwen3_vl_text",
        },
        vision_config={
            **VISION,
            **VISION_3,
            "deepstack_visual_indexes": [0, 1],
            "model_type": "qwen3_vl_vision",
        },
        **special_ids(token_id),
    )


RECIPE = qwen3_vl("cosmos3_omni", "Cosmos3OmniForConditionalGeneration", config)

FAMILY = RECIPE.family(releases=">=5.0.0.dev0")
