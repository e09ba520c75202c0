"""Qwen3-VL with a mixture of experts in the text model; positions and sections are those of Qwen3-VL."""

from __future__ import annotations

from typing import Any

from assay.audits.families._qwen import EXPERTS, VISION, VISION_3, qwen3_vl, special_ids, text_config
from assay.audits.families._recipe import TokenId


def config(vocabulary: int, token_id: TokenId) -> Any:
    """Four experts of which two are used per token, in both text layers."""
    from transformers import Qwen3VLMoeConfig

    return Qwen3VLMoeConfig(
        text_config=text_config(
            vocabulary, token_id, theta=5e6, sections=(7, 5, 4), mrope_interleaved=True, head_dim=32, **EXPERTS
        ),
        vision_config={**VISION, **VISION_3, "deepstack_visual_indexes": [0, 1]},
        **special_ids(token_id),
    )


RECIPE = qwen3_vl("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration", config)

FAMILY = RECIPE.family()
