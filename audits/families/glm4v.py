"""GLM-4.1V: chunked sections over half of each head, neighbouring channels paired; a frame is an image in the text."""

from __future__ import annotations

from typing import Any

from assay.audits.families._glm import ONE_PLACEHOLDER, VISION, glm_v, special_ids, text_config
from assay.audits.families._recipe import TokenId


def config(vocabulary: int, token_id: TokenId) -> Any:
    """Text heads of 64 channels, 32 of them rotated."""
    from transformers import Glm4vConfig

    return Glm4vConfig(
        text_config=text_config(vocabulary, token_id, sections=(3, 5, 8)),
        vision_config=VISION,
        **special_ids(token_id),
    )


RECIPE = glm_v("glm4v", "Glm4vForConditionalGeneration", config)

FAMILY = RECIPE.family(exclusive=True, notes=ONE_PLACEHOLDER)
