"""QuACK: rotation, cross-entropy, and linear cross-entropy in chunks of its own and in one chunk."""

from __future__ import annotations

from torch import Tensor

from assay.benchmarks.nouns import Offer, Provider

LINEAR = ("hidden", "head", "labels")


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """By half tables of one row [S,R/2]; it wants [B,S,H,D]."""
    from quack.rotary import apply_rotary_emb

    lanes = cos.shape[-1] // 2
    tables = cos[0, :, :lanes].contiguous(), sin[0, :, :lanes].contiguous()
    turned = [apply_rotary_emb(x.transpose(1, 2), *tables).transpose(1, 2) for x in (q, k)]
    return turned[0], turned[1]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum over rows, divided by those that are scored: its own mean is over all rows."""
    from quack.cross_entropy import cross_entropy as function

    rows, targets = logits.flatten(0, -2), labels.flatten()
    loss: Tensor = function(rows, targets, reduction="sum") / (targets != -100).sum()
    return loss


def linear_cross_entropy(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """In its chunks of 4,096 rows."""
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    loss: Tensor = chunked_linear_cross_entropy(hidden.flatten(0, -2), head, labels.flatten())
    return loss


def linear_cross_entropy_whole(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """In one chunk."""
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    rows = hidden.flatten(0, -2)
    loss: Tensor = chunked_linear_cross_entropy(rows, head, labels.flatten(), chunk_size=len(rows))
    return loss


def _linear(function: object) -> Offer:
    return Offer(function=function, arguments=LINEAR, form="rows", devices=("cuda",), early=True)  # type: ignore[arg-type]  # it is one of those above


PROVIDERS = (
    Provider(
        name="QuACK", packages=("quack-kernels", "nvidia-cutlass-dsl"),
        offers={
            "rotary": Offer(
                function=rotate, arguments=("q", "k", "cos", "sin"), form="hf-5.17", devices=("cuda",)
            ),
            "cross_entropy": Offer(
                function=cross_entropy, arguments=("logits", "labels"), form="rows", devices=("cuda",)
            ),
            "linear_cross_entropy": _linear(linear_cross_entropy),
        },
    ),
    Provider(
        name="QuACK, one chunk", packages=("quack-kernels", "nvidia-cutlass-dsl"),
        offers={"linear_cross_entropy": _linear(linear_cross_entropy_whole)},
    ),
)  # fmt: skip
