"""Qwen3.5 with a mixture of experts in the text model; positions and sections are those of Qwen3.5."""

from __future__ import annotations

from typing import Any

from assay.audits.families._qwen import EXPERTS, HYBRID, VISION, VISION_3, qwen3_vl, special_ids, text_config
from assay.audits.families._recipe import TokenId


def config(vocabulary: int, token_id: TokenId) -> Any:
    """One linear-attention and one full-attention layer, each with four experts and a shared one."""
    from transformers import Qwen3_5MoeConfig

    rotary = {"mrope_interleaved": True, "partial_rotary_factor": 0.25}
    experts = {**EXPERTS, "shared_expert_intermediate_size": 48}
    return Qwen3_5MoeConfig(
        text_config=text_config(vocabulary, token_id, theta=1e7, sections=(7, 5, 4), **rotary, **HYBRID, **experts),
        vision_config={**VISION, **VISION_3},
        **special_ids(token_id),
    )


RECIPE = qwen3_vl("qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration", config)

FAMILY = RECIPE.family(releases=">=5.2")
