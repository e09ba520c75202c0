"""What the Qwen families share: special tokens, wrappers, and the shapes of a tiny model."""

from __future__ import annotations

from typing import Any

from assay.audits.families._recipe import Recipe, TokenId, rope
from assay.audits.families._tokenizer import END_OF_TEXT
from assay.audits.families._video_processor import HALF

SPECIAL = (
    END_OF_TEXT,
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
VISION: dict[str, Any] = {"depth": 2, "num_heads": 2, "spatial_merge_size": 2, "temporal_patch_size": 2}
VISION_3: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "out_hidden_size": 128,
    "patch_size": 4,
    "num_position_embeddings": 64,
}
"""The vision tower from Qwen3-VL on, with learned positions on an 8 x 8 grid that are interpolated."""

HYBRID: dict[str, Any] = {
    "head_dim": 128,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
"""Text with gated linear attention in its first layer (Qwen3.5 and later)."""

EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}


def special_ids(token_id: TokenId) -> dict[str, Any]:
    """The ids that a Qwen configuration asks for."""
    return {
        "image_token_id": token_id("<|image_pad|>"),
        "video_token_id": token_id("<|video_pad|>"),
        "vision_start_token_id": token_id("<|vision_start|>"),
        "vision_end_token_id": token_id("<|vision_end|>"),
    }


def text_config(
    vocabulary: int, token_id: TokenId, *, theta: float, sections: tuple[int, ...], **more: Any
) -> dict[str, Any]:
    """Two layers, four query and two key heads of 32 channels; ``more`` goes into the configuration as it is."""
    rotary = {name: more.pop(name) for name in ("partial_rotary_factor", "mrope_interleaved") if name in more}
    return {
        "vocab_size": vocabulary,
        "hidden_size": 128,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bos_token_id": token_id(END_OF_TEXT),
        "eos_token_id": token_id("<|im_end|>"),
        "pad_token_id": token_id(END_OF_TEXT),
        **rope(theta, sections, **rotary),
        **more,
    }


def qwen_vl(name: str, model: str, processor: str, config: Any, *, patch_size: int, **more: Any) -> Recipe:
    """The recipe of a Qwen vision-language family."""
    settings: dict[str, Any] = {
        "image_processor": "Qwen2VLImageProcessor",
        "video_processor": "Qwen2VLVideoProcessor",
        "special": SPECIAL,
        "image": IMAGE,
        "video": VIDEO,
        **more,
    }
    return Recipe(name=name, model=model, processor=processor, config=config, patch_size=patch_size, **settings)


def qwen3_vl(name: str, model: str, config: Any, **more: Any) -> Recipe:
    """The recipe of a family with the processors of Qwen3-VL, which write a timestamp before each step of a video."""
    settings = {"patch_size": 4, "video_processor": "Qwen3VLVideoProcessor", "video_scaling": HALF, **more}
    return qwen_vl(name, model, "Qwen3VLProcessor", config, **settings)
