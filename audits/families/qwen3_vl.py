"""Qwen3-VL: interleaved sections; a video is one image per temporal step, with a timestamp in the text before each."""

from __future__ import annotations

from typing import Any

from assay.audits.families._qwen import VISION, VISION_3, qwen3_vl, special_ids, text_config
from assay.audits.families._recipe import TokenId


def config(vocabulary: int, token_id: TokenId) -> Any:
    """Deepstack features from both vision layers into both text layers."""
    from transformers import Qwen3VLConfig

    return Qwen3VLConfig(
        text_config=text_config(
            vocabulary, token_id, theta=5e6, sections=(7, 5, 4), mrope_interleaved=True, head_dim=32
        ),
        vision_config={**VISION, **VISION_3, "deepstack_visual_indexes": [0, 1]},
        **special_ids(token_id),
    )


RECIPE = qwen3_vl("qwen3_vl", "Qwen3VLForConditionalGeneration", config)

FAMILY = RECIPE.family()
