"""GLM-4.6V: the text model of GLM-4.1V under a processor of its own."""

from __future__ import annotations

from typing import Any

from assay.audits.families._glm import ONE_PLACEHOLDER, VISION, glm_v, special_ids, text_config
from assay.audits.families._recipe import TokenId


def config(vocabulary: int, token_id: TokenId) -> Any:
    """The dense variant, whose text and vision parts are those of GLM-4.1V."""
    from transformers import Glm46VConfig

    return Glm46VConfig(
        text_config={**text_config(vocabulary, token_id, sections=(3, 5, 8)), "model_type": "glm4v_text"},
        vision_config={**VISION, "model_type": "glm4v_vision"},
        **special_ids(token_id),
    )


RECIPE = glm_v("glm46v", "Glm46VForConditionalGeneration", config, family="Glm46V")

FAMILY = RECIPE.family(exclusive=True, notes=ONE_PLACEHOLDER)
