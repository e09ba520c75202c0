"""flash-linear-attention: rotation of queries and keys in two launches, and both cross-entropies."""

from __future__ import annotations

from torch import Tensor

from assay.benchmarks.nouns import Offer, Provider


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """By half tables of one row [S,R/2], in memory of its own; it wants [B,S,H,D]."""
    from fla.modules.rotary import rotary_embedding

    lanes = cos.shape[-1] // 2
    turned = [rotary_embedding(x.transpose(1, 2), cos[0, :, :lanes], sin[0, :, :lanes]).transpose(1, 2) for x in (q, k)]
    return turned[0], turned[1]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The gradient in memory of its own."""
    from fla.modules import FusedCrossEntropyLoss

    loss: Tensor = FusedCrossEntropyLoss()(logits.flatten(0, -2), labels.flatten())
    return loss


def linear_cross_entropy(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """With its own chunks."""
    from fla.modules import FusedLinearCrossEntropyLoss

    loss: Tensor = FusedLinearCrossEntropyLoss()(hidden.flatten(0, -2), labels.flatten(), head)
    return loss


PROVIDERS = (
    Provider(
        name="FLA", packages=("flash-linear-attention", "fla-core"),
        offers={
            "rotary": Offer(
                function=rotate, arguments=("q", "k", "cos", "sin"), form="hf-5.17", devices=("cuda",)
            ),
            "cross_entropy": Offer(
                function=cross_entropy, arguments=("logits", "labels"), form="rows", devices=("cuda",)
            ),
            "linear_cross_entropy": Offer(
                function=linear_cross_entropy, early=True, arguments=("hidden", "head", "labels"), form="rows",
                devices=("cuda",),
            ),
        },
    ),
)  # fmt: skip
