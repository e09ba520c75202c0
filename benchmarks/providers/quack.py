"""QuACK: rotation, cross-entropy, and linear cross-entropy in chunks of its own and in one chunk."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from assay.audits.terms import Inexpressible
from assay.benchmarks.nouns import Offer, Provider

LINEAR = ("hidden", "head", "labels")
EIGHT = 8
ASKED = tuple(
    f'{{"batch":2,"length":{length},"vocab":{vocab},"width":64,"masked":"{masked}"}}'
    for length, vocab, masked in ((64, 256, "none"), (64, 256, "some"), (50, 136, "ragged"))
)
"""Cases of multiples of eight: those of the audit are odd."""


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


def _eights(hidden: Tensor, head: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and labels, with rows that are not scored behind them up to a multiple of eight, as it demands.

    Widths and vocabularies must be such multiples too; nobody can add to those.
    """
    rows, targets = hidden.flatten(0, -2), labels.flatten()
    if head.shape[0] % EIGHT or head.shape[1] % EIGHT or not len(rows):
        raise Inexpressible("it takes multiples of eight alone, and at least one row")
    more = -len(rows) % EIGHT
    if not more:
        return rows, targets
    return functional.pad(rows, (0, 0, 0, more)), functional.pad(targets, (0, more), value=-100)


def linear_cross_entropy(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """In its chunks of 4,096 rows."""
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    rows, targets = _eights(hidden, head, labels)
    loss: Tensor = chunked_linear_cross_entropy(rows, head, targets)
    return loss


def linear_cross_entropy_whole(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """In one chunk."""
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    rows, targets = _eights(hidden, head, labels)
    loss: Tensor = chunked_linear_cross_entropy(rows, head, targets, chunk_size=len(rows))
    return loss


def _linear(function: object) -> Offer:
    return Offer(function=function, arguments=LINEAR, form="rows", devices=("cuda",), early=True, asked=ASKED)  # type: ignore[arg-type]  # it is one of those above


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
