"""Liger's multimodal rotary kernel alone in Qwen2.5-VL, with its other kernels left out.

Run it where ``liger-kernel`` is installed, from the folder that holds this file::

    assay audit patch mrope.rotate --patch liger_rope_only:apply --family qwen2_5_vl

With liger-kernel 0.8.5 expect: with transformers up to 5.16 the kernel lands and is judged; from 5.17 to 5.22 UNKNOWN
(``patch.never-ran``: it assigns to ``apply_multimodal_rotary_pos_emb``, which the model no longer reads); with 5.23
FAIL (``patch.raises``: it imports a class that is gone).

Its RMSNorm and SwiGLU kernels do not run in Triton's interpreter, which is why they are off here.
"""

from __future__ import annotations


def apply() -> None:
    """Before the model is built: rotary only."""
    from liger_kernel.transformers import apply_liger_kernel_to_qwen2_5_vl

    apply_liger_kernel_to_qwen2_5_vl(
        rope=True, cross_entropy=False, fused_linear_cross_entropy=False, rms_norm=False, swiglu=False
    )
