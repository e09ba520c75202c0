"""What the models of transformers run: their rotation, and their causal loss, which is computed in float32."""

from __future__ import annotations

from torch import Tensor

from assay.benchmarks.nouns import Offer, Provider


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The rotation of Qwen3.5, which takes tables of a part of the channels too; of Qwen3-VL before there was one."""
    try:
        from transformers.models.qwen3_5.modeling_qwen3_5 import apply_rotary_pos_emb
    except ImportError:
        from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb
    turned: tuple[Tensor, Tensor] = apply_rotary_pos_emb(q, k, cos, sin)
    return turned


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """``ForCausalLMLoss`` with labels that are aligned already."""
    from transformers.loss.loss_utils import ForCausalLMLoss

    loss: Tensor = ForCausalLMLoss(logits, None, logits.shape[-1], shift_labels=labels)
    return loss


def linear_cross_entropy(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """The head as a linear layer, then the loss: what a forward with labels does."""
    return cross_entropy(hidden @ head.t(), labels)


PROVIDERS = (
    Provider(
        name="transformers", packages=("transformers",),
        offers={
            "rotary": Offer(function=rotate, arguments=("q", "k", "cos", "sin"), form="hf-5.17"),
            "cross_entropy": Offer(function=cross_entropy, arguments=("logits", "labels"), form="rows"),
            "linear_cross_entropy": Offer(
                function=linear_cross_entropy, arguments=("hidden", "head", "labels"), form="rows"
            ),
        },
    ),
)  # fmt: skip
