"""Qwen3-Omni, its thinker: interleaved sections, experts, deepstack; images, videos and sound on one time axis."""

from __future__ import annotations

from typing import Any

from assay.audits.families._omni import AUDIO, SITES, media_ids, omni
from assay.audits.families._qwen import EXPERTS, VISION, VISION_3, text_config
from assay.audits.families._recipe import TokenId
from assay.audits.families._release import within

TOKENS = (
    "<|image_pad|>",
    "<|video_pad|>",
    "<|audio_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|audio_start|>",
    "<|audio_end|>",
)


def config(vocabulary: int, token_id: TokenId) -> Any:
    """Text, vision and audio of two layers each."""
    from transformers import Qwen3OmniMoeThinkerConfig

    ids = media_ids(token_id, TOKENS)
    made = Qwen3OmniMoeThinkerConfig(
        text_config=text_config(
            vocabulary, token_id, theta=1e6, sections=(7, 5, 4), mrope_interleaved=True, head_dim=32, **EXPERTS
        ),
        vision_config={**VISION, **VISION_3, "deepstack_visual_indexes": [0, 1]},
        audio_config={**AUDIO, "n_window": 50, "n_window_infer": 200, "downsample_hidden_size": 16},
        image_token_id=ids["image"],
        video_token_id=ids["video"],
        audio_token_id=ids["audio"],
        audio_start_token_id=ids["audio_start"],
    )
    # get_rope_index reads these three, which only checkpoints set.
    made.vision_start_token_id, made.vision_end_token_id = ids["vision_start"], ids["vision_end"]
    made.audio_end_token_id = ids["audio_end"]
    return made


RECIPE = omni(
    "qwen3_omni_moe", "Qwen3OmniMoeThinkerForConditionalGeneration", "Qwen3OmniMoeProcessor", config, TOKENS, 1.0
)

FAMILY = RECIPE.family(
    model_type="qwen3_omni_moe_thinker",
    sites=SITES,
    exclusive=within("<5.0.0.dev0"),
    notes="In 4.57.6 a batch with images and videos crashes where their deepstack features are joined.",
)
