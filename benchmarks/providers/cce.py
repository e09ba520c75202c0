"""Apple's cut cross-entropy: its defaults, and its exact form in releases that have it."""

from __future__ import annotations

from torch import Tensor

from assay.benchmarks.nouns import Offer, Provider

LINEAR = ("hidden", "head", "labels")


def linear_cross_entropy(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """With the filter that leaves out small gradients."""
    from cut_cross_entropy import linear_cross_entropy as function

    loss: Tensor = function(hidden, head, labels)
    return loss


def linear_cross_entropy_exact(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Without a filter, with sums in float32. LookupError in releases without it."""
    from cut_cross_entropy import linear_cross_entropy as function

    try:
        loss: Tensor = function(hidden, head, labels, impl="cce_exact")
    except (KeyError, NotImplementedError) as error:  # how releases refuse a name that they do not know
        raise LookupError("this release has no impl='cce_exact'") from error
    return loss


PROVIDERS = (
    Provider(
        name="CCE", packages=("cut-cross-entropy",),
        offers={
            "linear_cross_entropy": Offer(
                function=linear_cross_entropy, arguments=LINEAR, form="rows", devices=("cuda",), skips=True
            )
        },
        note="leaves out gradients below its threshold",
    ),
    Provider(
        name="CCE, exact", packages=("cut-cross-entropy",),
        offers={
            "linear_cross_entropy": Offer(
                function=linear_cross_entropy_exact, arguments=LINEAR, form="rows", devices=("cuda",), skips=True
            )
        },
    ),
)  # fmt: skip
