"""GLM-4.5V: GLM-4.1V with a mixture of experts, and rotary that pairs the halves of the rotated channels."""

from __future__ import annotations

from typing import Any

from assay.audits.families._glm import ONE_PLACEHOLDER, VISION, glm_v, special_ids, text_config
from assay.audits.families._recipe import TokenId
from assay.audits.families._release import within


def config(vocabulary: int, token_id: TokenId) -> Any:
    """A dense first layer and a second one with four experts of which two are used per token."""
    from transformers import Glm4vMoeConfig

    experts = {
        "moe_intermediate_size": 48,
        "num_experts_per_tok": 2,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
    }
    return Glm4vMoeConfig(
        text_config=text_config(vocabulary, token_id, sections=(3, 5, 8), **experts),
        vision_config=VISION,
        **special_ids(token_id),
    )


RECIPE = glm_v("glm4v_moe", "Glm4vMoeForConditionalGeneration", config)

FAMILY = RECIPE.family(
    exclusive=True,
    float64=within(">=5.0.0.dev0"),
    notes=ONE_PLACEHOLDER + " In 4.57 the experts add up in float32 only.",
)
