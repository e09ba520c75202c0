"""What the Qwen Omni thinkers share: sound besides images and videos, and one frame rate for a whole batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from assay.audits.families._recipe import Recipe, TokenId
from assay.audits.families.samples import Sample, Video
from assay.audits.families.sites import Sites

MEL_BINS = 16
AUDIO: dict[str, Any] = {
    "num_mel_bins": MEL_BINS,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 96,
    "d_model": 64,
    "output_dim": 128,
}
SITES = Sites(
    text_model=("model.language_model", "model"),
    text_rotary=("model.language_model.rotary_emb", "model.rotary_emb"),
    positions=("model", ""),
    vision_rotary=("model.visual.rotary_pos_emb", "visual.rotary_pos_emb"),
)
"""In 5.x the thinker holds a model that holds the text model; in 4.57 the thinker itself holds the parts."""

ROLES = ("image", "video", "audio", "vision_bos", "vision_eos", "audio_bos", "audio_eos")


def omni(name: str, model: str, processor: str, config: Any, tokens: Sequence[str], default_rate: float) -> Recipe:
    """The recipe of an Omni thinker. ``tokens`` fill :data:`ROLES`; ``default_rate`` is its processor's own."""
    from assay.audits.families._qwen import SPECIAL

    of = dict(zip(ROLES, tokens, strict=True))
    special = (*SPECIAL[:3], *tokens)
    return Recipe(
        name=name,
        model=model,
        config=config,
        processor=processor,
        image_processor="Qwen2VLImageProcessor",
        video_processor="Qwen2VLVideoProcessor",
        special=special,
        image=of["vision_bos"] + of["image"] + of["vision_eos"],
        video=of["vision_bos"] + of["video"] + of["vision_eos"],
        audio=of["audio_bos"] + of["audio"] + of["audio_eos"],
        attributes=tuple((f"{role}_token", token) for role, token in of.items()),
        patch_size=4,
        parts=_ears,
        call=lambda samples: _one_rate(samples, default_rate),
        drop=("mm_token_type_ids",),
    )


def media_ids(token_id: TokenId, tokens: Sequence[str]) -> dict[str, Any]:
    """The ids that a thinker configuration asks for, under the names of its attributes."""
    of = dict(zip(ROLES, tokens, strict=True))
    return {
        "image": token_id(of["image"]),
        "video": token_id(of["video"]),
        "audio": token_id(of["audio"]),
        "vision_start": token_id(of["vision_bos"]),
        "vision_end": token_id(of["vision_eos"]),
        "audio_start": token_id(of["audio_bos"]),
        "audio_end": token_id(of["audio_eos"]),
    }


def _ears(_recipe: Recipe) -> Mapping[str, Any]:
    from transformers import WhisperFeatureExtractor

    untyped: Any = WhisperFeatureExtractor
    return {"feature_extractor": untyped(feature_size=MEL_BINS, chunk_length=8)}


def _one_rate(samples: Sequence[Sample], default_rate: float) -> Mapping[str, Any]:
    """The processors read one ``fps`` per call and ignore the metadata of the videos."""
    rates = {part.frames_per_second for sample in samples for part in sample.segments if isinstance(part, Video)}
    if len(rates) > 1:
        message = f"videos sampled at {sorted(rates)} frames per second: an Omni processor takes one rate per batch"
        raise ValueError(message)
    return {"fps": rates.pop() if rates else default_rate}
