"""Qwen2.5-Omni, its thinker: chunked sections; images, videos and sound on one time axis of 25 positions per second."""

from __future__ import annotations

from typing import Any

from assay.audits.families._omni import AUDIO, SITES, media_ids, omni
from assay.audits.families._qwen import VISION, text_config
from assay.audits.families._recipe import TokenId

TOKENS = ("<|IMAGE|>", "<|VIDEO|>", "<|AUDIO|>", "<|vision_bos|>", "<|vision_eos|>", "<|audio_bos|>", "<|audio_eos|>")


def config(vocabulary: int, token_id: TokenId) -> Any:
    """Text, vision and audio of two layers each."""
    from transformers import Qwen2_5OmniThinkerConfig

    ids = media_ids(token_id, TOKENS)
    made = Qwen2_5OmniThinkerConfig(
        text_config=text_config(vocabulary, token_id, theta=1e6, sections=(3, 5, 8)),
        vision_config={
            **VISION,
            "hidden_size": 64,
            "intermediate_size": 96,
            "out_hidden_size": 128,
            "patch_size": 4,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
        audio_config={**AUDIO, "n_window": 10},
        image_token_index=ids["image"],
        video_token_index=ids["video"],
        audio_token_index=ids["audio"],
        audio_start_token_id=ids["audio_start"],
        audio_end_token_id=ids["audio_end"],
    )
    # get_rope_index reads these two, which only checkpoints set.
    made.vision_start_token_id, made.vision_end_token_id = ids["vision_start"], ids["vision_end"]
    return made


RECIPE = omni("qwen2_5_omni", "Qwen2_5OmniThinkerForConditionalGeneration", "Qwen2_5OmniProcessor", config, TOKENS, 2.0)

FAMILY = RECIPE.family(model_type="qwen2_5_omni_thinker", sites=SITES)
