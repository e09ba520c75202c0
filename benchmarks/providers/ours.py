"""The kernels of this project."""

from __future__ import annotations

from torch import Tensor

from assay.audits.terms import Inexpressible
from assay.benchmarks.nouns import Offer, Provider
from assay.benchmarks.providers._alias import alias
from assay.kernels import choices, mrope
from assay.kernels import linear_cross_entropy as linear
from assay.kernels import masked_cross_entropy as logits_loss
from assay.kernels import masked_regression as regression


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """By merged tables of full width [B,S,R]; the first copy of each lane is read."""
    return mrope.rotate(q, k, cos, sin, rotary_dim=cos.shape[-1])


def rotate_inplace(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The same, over the queries and keys themselves."""
    return mrope.rotate(alias(q), alias(k), cos, sin, rotary_dim=cos.shape[-1], inplace=True)


def rotate_from_positions(
    q: Tensor, k: Tensor, positions: Tensor, inv_freq: Tensor, axes: Tensor | None = None, pairing: str = "half",
    attention_scaling: float = 1.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """From positions [3,B,S]: no tables are made."""
    return mrope.rotate_from_positions(
        q, k, positions, inv_freq, axes=axes, pairing=pairing, attention_scaling=attention_scaling
    )


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The gradient in memory of its own, made in backward."""
    return logits_loss.cross_entropy(logits, labels).value


def cross_entropy_inplace(logits: Tensor, labels: Tensor) -> Tensor:
    """The gradient over the logits, in one pass with the loss."""
    return logits_loss.cross_entropy(alias(logits), labels, inplace=True).value


def cross_entropy_one_read(logits: Tensor, labels: Tensor) -> Tensor:
    """The same, by teams of programs that read each row once."""
    with choices.forced("cross_entropy.fused", {"form": choices.ONE_READ}):
        return logits_loss.cross_entropy(alias(logits), labels, inplace=True).value


def linear_cross_entropy(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """As it comes: the host counts the scored rows."""
    return linear.linear_cross_entropy(hidden, head, labels).value


def masked_regression(prediction: Tensor, target: Tensor, indices: Tensor, mask: Tensor) -> Tensor:
    """Gather, LayerNorm, loss; the gradient in backward."""
    return regression.masked_regression(
        prediction, target, mask, kind="smooth_l1", normalise_target=True, indices=indices
    ).value  # fmt: skip


def masked_regression_inplace(prediction: Tensor, target: Tensor, indices: Tensor, mask: Tensor) -> Tensor:
    """All in one pass, the gradient over the prediction, whose memory must be its own."""
    if prediction.untyped_storage().data_ptr() == target.untyped_storage().data_ptr():
        raise Inexpressible("prediction and target share memory, of which one is overwritten")
    return regression.masked_regression(
        alias(prediction), target, mask, kind="smooth_l1", normalise_target=True, indices=indices, inplace=True
    ).value  # fmt: skip


KERNEL = ("cuda", "interpreter")
REGRESSION = ("prediction", "target", "indices", "mask")
TABLES = ("q", "k", "cos", "sin")

PROVIDERS = (
    Provider(
        name="assay", packages=("vlm-assay",),
        offers={
            "rotary": Offer(function=rotate, arguments=TABLES, form="hf-5.17", devices=KERNEL),
            "cross_entropy": Offer(function=cross_entropy, arguments=("logits", "labels"), form="rows", devices=KERNEL),
            "linear_cross_entropy": Offer(
                function=linear_cross_entropy, early=True, arguments=("hidden", "head", "labels"), form="rows"
            ),
            "masked_regression": Offer(
                function=masked_regression, arguments=REGRESSION, form="gathered-normalised", devices=KERNEL
            ),
        },
    ),
    Provider(
        name="assay, in place", packages=("vlm-assay",),
        offers={
            "rotary": Offer(
                function=rotate_inplace, arguments=TABLES, form="hf-5.17", consumes=("q", "k"), devices=KERNEL
            ),
            "cross_entropy": Offer(
                function=cross_entropy_inplace, early=True, arguments=("logits", "labels"), form="rows",
                consumes=("logits",), devices=KERNEL,
            ),
            "masked_regression": Offer(
                function=masked_regression_inplace, early=True, arguments=REGRESSION, form="gathered-normalised",
                consumes=("prediction",), devices=KERNEL,
            ),
        },
        note="overwrites its input",
    ),
    Provider(
        name="assay, in place, one read", packages=("vlm-assay",),
        offers={
            "cross_entropy": Offer(
                function=cross_entropy_one_read, early=True, arguments=("logits", "labels"), form="rows",
                consumes=("logits",), devices=KERNEL,
            ),
        },
        note="overwrites its input; programs share a row",
    ),
    Provider(
        name="assay, from positions", packages=("vlm-assay",),
        offers={
            "rotary": Offer(
                function=rotate_from_positions, arguments=("q", "k", "positions", "inv_freq", "axes"),
                form="assay-positions", devices=KERNEL,
            ),
        },
        note="makes no tables",
    ),
)  # fmt: skip
