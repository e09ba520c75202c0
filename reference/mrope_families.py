"""The language model's rotary embedding of each family, as data: layout, sections, pairing.

The vision towers are in `reference/vision_rope.py`, the rules of the positions in `reference/mrope_rules.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["TEXT_ROTARIES", "TextRotary"]


@dataclass(frozen=True, kw_only=True)
class TextRotary:
    """What a family does with queries and keys.

    Attributes:
        layout: a name from `mrope.LAYOUTS`.
        sections: lanes of each section as configured, in the layout's order; twice their sum are rotated.
        pairing: a name from `mrope.PAIRINGS`.
        head_dim: channels of a head in the released checkpoints; more than twice the sum of the sections means that the
            rotation is partial and leaves the rest of the head alone.
        axes: rows of the position ids.
    """

    layout: str
    sections: tuple[int, ...]
    pairing: str = "half"
    head_dim: int = 128
    axes: int = 3


_QWEN2 = TextRotary(layout="chunked", sections=(16, 24, 24))
_QWEN3 = TextRotary(layout="interleaved", sections=(24, 20, 20))
_QWEN3_5 = TextRotary(layout="interleaved", sections=(11, 11, 10), head_dim=256)
_GLM = TextRotary(layout="chunked", sections=(8, 12, 12), pairing="adjacent")

TEXT_ROTARIES: Mapping[str, TextRotary] = MappingProxyType(
    {
        "qwen2_vl": _QWEN2,
        "qwen2_5_vl": _QWEN2,
        "qwen2_5_omni": _QWEN2,
        "paddleocr_vl": _QWEN2,
        "qwen3_vl": _QWEN3,
        "qwen3_vl_moe": _QWEN3,
        "qwen3_omni_moe": _QWEN3,
        "cosmos3_edge": _QWEN3,
        "cosmos3_omni": _QWEN3,
        "cohere_compass": _QWEN3,
        "qwen3_5": _QWEN3_5,
        "qwen3_5_moe": _QWEN3_5,
        "qwen4_exp": _QWEN3_5,
        "minicpmv4_7": _QWEN3_5,
        "glm4v": _GLM,
        "glm46v": _GLM,
        "glm_ocr": _GLM,
        "glm4v_moe": TextRotary(layout="chunked", sections=(8, 12, 12)),
        "glm_image": TextRotary(layout="chunked", sections=(8, 12, 12)),
        "ernie4_5_vl_moe": TextRotary(layout="alternating", sections=(22, 22, 20), pairing="adjacent"),
        "hunyuan_vl": TextRotary(layout="chunked", sections=(16, 16, 16, 16), axes=4),
        "neomme": TextRotary(layout="even_odd", sections=(16, 16), head_dim=64, axes=2),
    }
)
"""By `model_type`. Sections are those of the released configurations, or the defaults of transformers 5.23.0.

Cosmos3-Omni, GLM-4.6V and MiniCPM-V 4.7 borrow the language models of Qwen3-VL, GLM-4V and Qwen3.5. Cohere Compass and
NeoMME configure each kind of layer by itself; NeoMME rotates a quarter of the head in its full-attention layers.
"""
