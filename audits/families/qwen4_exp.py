"""Qwen4-Exp: the positions and sections of Qwen3.5 over a text model with n-gram embeddings and sparse attention."""

from __future__ import annotations

from typing import Any

from assay.audits.families._qwen import EXPERTS, HYBRID, VISION, VISION_3, qwen3_vl, special_ids, text_config
from assay.audits.families._recipe import TokenId

SPARSE = {
    "shared_expert_intermediate_size": 48,
    "hc_lowrank": 16,
    "ple_layer_ids": [1],
    "ngram_vocab_size_base": 64,
    "make_ngram_vocab_size_divisible_by": 8,
    "split_ngram_parts": 8,
    "heads_per_ngram": 2,
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 32,
    "indexer_budget": 64,
    "indexer_compress_ratio": 4,
}
"""Hyper-connections, n-gram embeddings in the first layer, and attention to the best 16 blocks of 4 tokens."""


def config(vocabulary: int, token_id: TokenId) -> Any:
    """One linear-attention layer, and one that attends to indexed blocks, which configurations call full attention."""
    from transformers import Qwen4ExpConfig

    rotary = {"mrope_interleaved": True, "partial_rotary_factor": 0.25}
    text = text_config(vocabulary, token_id, theta=1e7, sections=(7, 5, 4), **rotary, **HYBRID, **EXPERTS, **SPARSE)
    return Qwen4ExpConfig(
        text_config={**text, "layer_types": ["linear_attention", "full_attention"]},
        vision_config={**VISION, **VISION_3},
        **special_ids(token_id),
    )


RECIPE = qwen3_vl("qwen4_exp", "Qwen4ExpForConditionalGeneration", config)

FAMILY = RECIPE.family(releases=">=5.2")
