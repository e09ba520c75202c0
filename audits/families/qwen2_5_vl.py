"""Qwen2.5-VL: chunked sections; the temporal position of a video runs in time (``tokens_per_second``)."""

from __future__ import annotations

from typing import Any

from assay.audits.families._qwen import VISION, qwen_vl, special_ids, text_config
from assay.audits.families._recipe import TokenId


def config(vocabulary: int, token_id: TokenId) -> Any:
    """A vision tower with one windowed and one full-attention layer; windows of 2 x 2 merged patches."""
    from transformers import Qwen2_5_VLConfig

    return Qwen2_5_VLConfig(
        text_config=text_config(vocabulary, token_id, theta=1e6, sections=(3, 5, 8)),
        vision_config={
            **VISION,
            "hidden_size": 64,
            "intermediate_size": 96,
            "out_hidden_size": 128,
            "patch_size": 4,
            "window_size": 16,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
        },
        **special_ids(token_id),
    )


RECIPE = qwen_vl("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLProcessor", config, patch_size=4)

FAMILY = RECIPE.family()
