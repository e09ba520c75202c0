"""The project's fused rotary kernel in every Qwen2.5-VL model of the process.

Run it, from the folder that holds this file::

    assay audit patch mrope.rotate --patch kernel_patch:apply --family qwen2_5_vl

Expect PASS, with the rotary site called in forward and backward. In a training script the same line is the patch::

    assay.patch(model, mrope="kernel").apply()

It needs a GPU, or Triton's interpreter (the audit's own workers start with it where there is no GPU).
"""

from __future__ import annotations

from typing import Any

import assay


def apply() -> None:
    """For all models of the family, until the process ends."""
    assay.patch("qwen2_5_vl", mrope="kernel").apply()


def swapped() -> None:
    """The same with a mistake in it, to see what a finding looks like: the tables of sine and cosine change places."""
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as module

    older = "apply_multimodal_rotary_pos_emb"
    original = getattr(module, older if hasattr(module, older) else "apply_rotary_pos_emb")

    def wrong(q: Any, k: Any, cos: Any, sin: Any, *rest: Any, **named: Any) -> Any:
        return original(q, k, sin, cos, *rest, **named)

    assay.patch("qwen2_5_vl", mrope=wrong).apply()
