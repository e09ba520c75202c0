"""Qwen3.5: interleaved sections over a quarter of each head; linear attention in most layers, which has no rotary."""

from __future__ import annotations

from typing import Any

from assay.audits.families._qwen import HYBRID, VISION, VISION_3, qwen3_vl, special_ids, text_config
from assay.audits.families._recipe import TokenId


def config(vocabulary: int, token_id: TokenId) -> Any:
    """One linear-attention and one full-attention layer."""
    from transformers import Qwen3_5Config

    return Qwen3_5Config(
        text_config=text_config(
            vocabulary,
            token_id,
            theta=1e7,
            sections=(7, 5, 4),
            mrope_interleaved=True,
            partial_rotary_factor=0.25,
            **HYBRID,
        ),
        vision_config={**VISION, **VISION_3},
        **special_ids(token_id),
    )


RECIPE = qwen3_vl("qwen3_5", "Qwen3_5ForConditionalGeneration", config)

FAMILY = RECIPE.family(releases=">=5.2")
