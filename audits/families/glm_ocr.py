"""GLM-OCR: chunked sections over whole heads, neighbouring channels paired."""

from __future__ import annotations

from typing import Any

from assay.audits.families._glm import ONE_PLACEHOLDER, VISION, glm_v, special_ids, text_config
from assay.audits.families._recipe import TokenId


def config(vocabulary: int, token_id: TokenId) -> Any:
    """Text heads of 64 channels, all of them rotated."""
    from transformers import GlmOcrConfig

    return GlmOcrConfig(
        text_config=text_config(vocabulary, token_id, sections=(6, 10, 16), partial_rotary_factor=1.0),
        vision_config=VISION,
        **special_ids(token_id),
    )


RECIPE = glm_v("glm_ocr", "GlmOcrForConditionalGeneration", config, family="Glm46V")

FAMILY = RECIPE.family(exclusive=True, notes=ONE_PLACEHOLDER)
