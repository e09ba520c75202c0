"""The rules by which model families number their tokens, as data: one `PositionRule` for each family.

`reference/mrope_positions.py` turns a rule and a batch into position ids. What a model's configuration may change
(`spatial_merge`, `ids_per_second`, `temporal_merge`, `axes`) is a field: `dataclasses.replace(rule, spatial_merge=1)`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

__all__ = ["RULES", "PositionRule"]


@dataclass(frozen=True, kw_only=True)
class PositionRule:
    """How one family numbers text, images, videos and audio.

    Attributes:
        kind: `blocks`: a visual block starts right after everything before it, its tokens get start + (time, row,
            column), and what follows starts at 1 + the maximum over all axes of every position before it.
            `sequence`: every token keeps its index in the sample on every axis, except that image tokens get their
            column, row and image number on the last three axes (HunYuan). `plain`: the index, on one axis; the
            language model has no multimodal positions. `canvas`: MiniCPM-V 4.7's, which needs more than token types.
        axes: rows of the position ids.
        spatial_merge: patches per side that become one token; grid heights and widths are multiples of it.
        video_time: time of frame `i` of a video. `index`: i. `seconds`: `ids_per_second * seconds_per_grid * i`, cut to
            an integer (towards zero) unless `fractional`. `pooled`: i, after every `temporal_merge` frames became one.
            `frames`: every frame is a block of its own, with time 0; timestamps in text stand between them.
        ids_per_second: ids in one second of video (`tokens_per_second`, `position_id_per_seconds`).
        step_first: `seconds` forms ids_per_second * seconds before the frame index comes in; else the index comes
            first. The two differ only by rounding, and only where a product falls next to an integer.
        fractional: times are kept as they are and ids are float64.
        temporal_merge: frames that become one, for `pooled`.
        audio: the language model has audio tokens; each takes one id on all axes.
        shared_markers: with audio inside a video, the two opening markers share one id, and so do the two closing ones.
        chunk_seconds: with audio inside a video, tokens alternate in chunks of this duration; None: ordered by id.
        row_end: every row of image tokens ends with one more token, at the next column (HunYuan).
        boundary: an image's run of tokens may include one opening and one closing token, numbered like text (HunYuan).
        source: where the rule comes from.
    """

    kind: Literal["blocks", "sequence", "plain", "canvas"] = "blocks"
    axes: int = 3
    spatial_merge: int = 2
    video_time: Literal["index", "seconds", "pooled", "frames"] = "index"
    ids_per_second: float = 1.0
    step_first: bool = True
    fractional: bool = False
    temporal_merge: int = 1
    audio: bool = False
    shared_markers: bool = False
    chunk_seconds: float | None = None
    row_end: bool = False
    boundary: bool = False
    source: str = ""


_FRAMES = PositionRule(
    video_time="frames",
    source="Qwen3-VL (arXiv 2511.21631) and GLM-4.1V (2507.01006): timestamps in text, so a frame is like an image",
)
_PLAIN = PositionRule(kind="plain", axes=1, source="its language model uses ordinary 1-D positions")

RULES: Mapping[str, PositionRule] = MappingProxyType(
    {
        "qwen2_vl": PositionRule(source="Qwen2-VL (arXiv 2409.12191), section 2.1"),
        "qwen2_5_vl": PositionRule(
            video_time="seconds",
            ids_per_second=4.0,
            source="Qwen2.5-VL (arXiv 2502.13923): times in absolute seconds; released checkpoints have 2 ids a second,"
            " the default of transformers 5.23.0 is 4",
        ),
        "qwen2_5_omni": PositionRule(
            video_time="seconds",
            ids_per_second=25.0,
            step_first=False,
            audio=True,
            shared_markers=True,
            chunk_seconds=2.0,
            source="Qwen2.5-Omni (arXiv 2503.20215): 40 ms an id, audio and video in chunks of 2 s",
        ),
        "qwen3_omni_moe": PositionRule(
            video_time="seconds",
            ids_per_second=25.0,
            step_first=False,
            fractional=True,
            audio=True,
            source="Qwen3-Omni (arXiv 2509.17765): 80 ms an id, audio and video ordered by id, times not rounded;"
            " released checkpoints have 13 ids a second, the default of transformers 5.23.0 is 25",
        ),
        "paddleocr_vl": PositionRule(
            source="PaddleOCR-VL (arXiv 2510.14528), images only; a video would follow Qwen2-VL"
        ),
        "ernie4_5_vl_moe": PositionRule(
            video_time="pooled",
            temporal_merge=2,
            source="ERNIE 4.5's own processor: frames in pairs, text resumes after the maximum over all axes",
        ),
        "glm_image": PositionRule(
            spatial_merge=1,
            source="GLM-Image: no merging; a generated image is numbered like a given one, its grids in reverse",
        ),
        "hunyuan_vl": PositionRule(
            kind="sequence",
            axes=4,
            row_end=True,
            boundary=True,
            source="HunyuanOCR's XD-RoPE: (sequence, column, row, image number within the sample)",
        ),
        "minicpmv4_7": PositionRule(kind="canvas", spatial_merge=4, source="MiniCPM-V 4.7: crops on one canvas"),
        "qwen3_vl": _FRAMES,
        "qwen3_vl_moe": _FRAMES,
        "qwen3_5": _FRAMES,
        "qwen3_5_moe": _FRAMES,
        "qwen4_exp": _FRAMES,
        "glm4v": _FRAMES,
        "glm4v_moe": _FRAMES,
        "glm46v": _FRAMES,
        "glm_ocr": _FRAMES,
        "cohere_compass": _FRAMES,
        "cosmos3_edge": _FRAMES,
        "cosmos3_omni": _FRAMES,
        "exaone4_5": _PLAIN,
        "lfm3_vl": _PLAIN,
        "video_llama_3": _PLAIN,
    }
)
"""The rule of each model family, by its `model_type`, with the defaults of transformers 5.23.0's configurations."""
