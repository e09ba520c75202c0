"""torch as it is: the formulas written out, in the dtype that comes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from assay.benchmarks.nouns import Offer, Provider


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over labels that are not -100, from logits [...,V] and labels [...]."""
    return functional.cross_entropy(logits.flatten(0, -2), labels.flatten())


def linear_cross_entropy(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """The same from hidden states [...,H] and the head's weight [V,H]: all logits are made."""
    return cross_entropy(hidden @ head.t(), labels)


def masked_regression(prediction: Tensor, target: Tensor, indices: Tensor, mask: Tensor) -> Tensor:
    """Smooth L1 over the elements of rows [B,M,D] that count, to layer-normed rows of target [B,T,D] at indices."""
    chosen = target.gather(1, indices[..., None].expand(-1, -1, target.shape[-1]))
    wanted = functional.layer_norm(chosen, chosen.shape[-1:])
    return functional.smooth_l1_loss(prediction[mask], wanted[mask])


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys [B,H,S,D] by merged tables [B,S,R] in which each lane stands twice."""
    return _turned(q, cos[:, None], sin[:, None]), _turned(k, cos[:, None], sin[:, None])


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    rotated = cos.shape[-1]
    turning, rest = x[..., :rotated], x[..., rotated:]
    first, second = turning.chunk(2, dim=-1)
    turned = turning * cos + torch.cat([-second, first], -1) * sin
    return turned if not rest.shape[-1] else torch.cat([turned, rest], -1)


OFFERS = {
    "rotary": Offer(function=rotate, arguments=("q", "k", "cos", "sin"), form="hf-5.17"),
    "cross_entropy": Offer(function=cross_entropy, arguments=("logits", "labels"), form="rows"),
    "linear_cross_entropy": Offer(
        function=linear_cross_entropy, arguments=("hidden", "head", "labels"), form="rows"
    ),
    "masked_regression": Offer(
        function=masked_regression, arguments=("prediction", "target", "indices", "mask"), form="gathered-normalised"
    ),
}  # fmt: skip

PROVIDERS = (Provider(name="torch", packages=("torch",), offers=OFFERS),)
