"""Liger-Kernel: its defaults, and its fused linear cross-entropy as its documentation says it can be tuned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from assay.benchmarks.nouns import Offer, Provider, Shape
from assay.benchmarks.providers._alias import alias

KERNEL = ("cuda", "interpreter")
CHUNKS = 64
"""``chunk_mem_const`` of the tuned setting: chunks so many times as large."""


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """By merged tables, as the patches of Qwen3-VL use it; writes over queries and keys."""
    from liger_kernel.transformers.functional import liger_rope

    turned: tuple[Tensor, Tensor] = liger_rope(alias(q), alias(k), cos, sin)
    return turned


def rotate_by_axes(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, sections: Any) -> tuple[Tensor, Tensor]:
    """By tables of each axis, as Qwen2-VL's were made before transformers 5.17; writes over queries and keys."""
    from liger_kernel.transformers.functional import liger_qwen2vl_mrope

    turned: tuple[Tensor, Tensor] = liger_qwen2vl_mrope(alias(q), alias(k), cos, sin, list(sections))
    return turned


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The gradient over the logits."""
    from liger_kernel.transformers.functional import liger_cross_entropy

    loss: Tensor = liger_cross_entropy(alias(logits).flatten(0, -2), labels.flatten())
    return loss


def linear_cross_entropy(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """With its own chunks, sums of the head's gradient in bfloat16."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    loss: Tensor = liger_fused_linear_cross_entropy(hidden.flatten(0, -2), head, labels.flatten())
    return loss


def linear_cross_entropy_tuned(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """With large chunks and sums in float32."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    loss: Tensor = liger_fused_linear_cross_entropy(
        hidden.flatten(0, -2), head, labels.flatten(), accum_dtype=torch.float32, chunk_mem_const=CHUNKS
    )
    return loss


def _chunked(shape: Shape) -> str | None:
    return None if shape.settings["layout"] == "chunked" else "its kernel for several axes has chunked sections only"


LINEAR = ("hidden", "head", "labels")

PROVIDERS = (
    Provider(
        name="Liger", packages=("liger-kernel",),
        offers={
            "rotary": Offer(
                function=rotate, arguments=("q", "k", "cos", "sin"), form="hf-5.17", consumes=("q", "k"),
                devices=KERNEL,
            ),
            "cross_entropy": Offer(
                function=cross_entropy, early=True, arguments=("logits", "labels"), form="rows", consumes=("logits",),
                devices=KERNEL,
            ),
            "linear_cross_entropy": Offer(
                function=linear_cross_entropy, early=True, arguments=LINEAR, form="rows", devices=KERNEL
            ),
        },
        note="overwrites its input",
    ),
    Provider(
        name="Liger, tables of axes", packages=("liger-kernel",),
        offers={
            "rotary": Offer(
                function=rotate_by_axes, arguments=("q", "k", "cos_axes", "sin_axes", "sections"), form="hf-4.57",
                consumes=("q", "k"), devices=KERNEL, refuses=_chunked,
            ),
        },
        note="overwrites its input",
    ),
    Provider(
        name="Liger, tuned", packages=("liger-kernel",),
        offers={
            "linear_cross_entropy": Offer(
                function=linear_cross_entropy_tuned, early=True, arguments=LINEAR, form="rows", devices=KERNEL
            ),
        },
        note=f"accum_dtype=float32, chunk_mem_const={CHUNKS}",
    ),
)  # fmt: skip
