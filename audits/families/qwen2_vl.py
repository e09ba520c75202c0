"""Qwen2-VL: chunked sections; image and video positions (t, h, w) without a time scale."""

from __future__ import annotations

from typing import Any

from assay.audits.families._qwen import VISION, qwen_vl, special_ids, text_config
from assay.audits.families._recipe import TokenId


def config(vocabulary: int, token_id: TokenId) -> Any:
    """Two layers of text (head_dim 32) over a two-layer vision tower (head_dim 32)."""
    from transformers import Qwen2VLConfig

    return Qwen2VLConfig(
        text_config=text_config(vocabulary, token_id, theta=1e6, sections=(3, 5, 8)),
        vision_config={**VISION, "embed_dim": 64, "hidden_size": 128, "mlp_ratio": 2, "patch_size": 4},
        **special_ids(token_id),
    )


RECIPE = qwen_vl("qwen2_vl", "Qwen2VLForConditionalGeneration", "Qwen2VLProcessor", config, patch_size=4)

FAMILY = RECIPE.family()
