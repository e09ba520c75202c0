"""What the GLM-V families share: special tokens, wrappers, and the shapes of a tiny model."""

from __future__ import annotations

from typing import Any

from assay.audits.families._recipe import Recipe, TokenId, rope
from assay.audits.families._tokenizer import END_OF_TEXT

SPECIAL = (
    END_OF_TEXT,
    "[gMASK]",
    "<sop>",
    "<|user|>",
    "<|assistant|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
    "<|image|>",
    "<|video|>",
)
IMAGE = "<|begin_of_image|><|image|><|end_of_image|>"
VIDEO = "<|begin_of_video|><|video|><|end_of_video|>"
ONE_PLACEHOLDER = (
    "Images and videos share one placeholder id, so the model refuses a batch that has both (4.57.6 to 5.23.0)."
)
VISION: dict[str, Any] = {
    "depth": 2,
    "num_heads": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "out_hidden_size": 256,
    "image_size": 32,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}


def special_ids(token_id: TokenId) -> dict[str, Any]:
    """The ids that a GLM configuration asks for."""
    return {
        "image_token_id": token_id("<|image|>"),
        "video_token_id": token_id("<|video|>"),
        "image_start_token_id": token_id("<|begin_of_image|>"),
        "image_end_token_id": token_id("<|end_of_image|>"),
        "video_start_token_id": token_id("<|begin_of_video|>"),
        "video_end_token_id": token_id("<|end_of_video|>"),
    }


def text_config(vocabulary: int, token_id: TokenId, *, sections: tuple[int, ...], **more: Any) -> dict[str, Any]:
    """Two layers, four query and two key heads of 64 channels, of which ``partial_rotary_factor`` are rotated."""
    rotary = {"partial_rotary_factor": more.pop("partial_rotary_factor", 0.5)}
    return {
        "vocab_size": vocabulary,
        "hidden_size": 256,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bos_token_id": token_id("[gMASK]"),
        "eos_token_id": token_id(END_OF_TEXT),
        "pad_token_id": token_id(END_OF_TEXT),
        **rope(10_000.0, sections, **rotary),
        **more,
    }


def glm_v(name: str, model: str, config: Any, *, family: str = "Glm4v", **more: Any) -> Recipe:
    """The recipe of a GLM vision-language family; ``family`` begins the names of its processor classes."""
    settings: dict[str, Any] = {"special": SPECIAL, "image": IMAGE, "video": VIDEO, "patch_size": 4, **more}
    return Recipe(
        name=name,
        model=model,
        processor=f"{family}Processor",
        image_processor=f"{family}ImageProcessor",
        video_processor=f"{family}VideoProcessor",
        config=config,
        **settings,
    )
