"""Cross-entropy from hidden states and the weight of the language-model head: the specification.

It is `cross_entropy(hidden @ head.T + bias, labels, ...)`, but the head is applied to the scored tokens only: hidden
states of the others are never read, and neither time nor memory goes to them. How an implementation cuts the rows into
chunks, and that it keeps no logits, must not show in any result.
"""

from torch import Tensor

from assay.reference.arguments import accumulation_dtype, floating, of_dtype, shaped
from assay.reference.loss_reduction import Loss, Normaliser, Reduction, reduce_losses
from assay.reference.masked_cross_entropy import check_options, scored_tokens, token_losses

__all__ = ["linear_cross_entropy"]


def linear_cross_entropy(
    hidden: Tensor,
    head: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    shift: bool = False,
    ignore_index: int = -100,
    weight: Tensor | None = None,
    softcap: float | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: Reduction = "mean",
    normaliser: Normaliser = None,
) -> Loss:
    """Cross-entropy of hidden states [..., H] under a head [V, H] against labels [...].

    Args:
        hidden: [..., H], a floating dtype. For bf16 and fp16 the logits are float32 and not rounded in between.
        head: [V, H], in the dtype of `hidden`.
        labels: int64 [...], each in 0..V-1 or `ignore_index`.
        bias: [V], in the dtype of `hidden`.
        shift, ignore_index, weight, softcap, label_smoothing, z_loss, reduction, normaliser: as for `cross_entropy`.

    Returns:
        As `cross_entropy`. Gradients flow to `hidden`, `head` and `bias`, each rounded once to its dtype; without a
        scored token all of them are exactly 0.

    Raises:
        TypeError, ValueError: as `cross_entropy`; a head or bias of another dtype, shape or device.
    """
    _check_head(hidden, head, bias)
    check_options(softcap, label_smoothing, z_loss)
    scored = scored_tokens(
        hidden,
        labels,
        weight,
        vocabulary=len(head),
        shift=shift,
        ignore_index=ignore_index,
        reduction=reduction,
        normaliser=normaliser,
    )
    read, dtype = scored.places, accumulation_dtype(hidden)
    logits = hidden[read].to(dtype) @ head.to(dtype).T
    losses = token_losses(
        logits if bias is None else logits + bias.to(dtype),
        scored.labels[read],
        softcap=softcap,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
    )
    return Loss(reduce_losses(losses, read, scored.weight, reduction=reduction, normaliser=normaliser), scored.count)


def _check_head(hidden: Tensor, head: Tensor, bias: Tensor | None) -> None:
    floating("hidden", hidden)
    if not hidden.ndim:
        raise ValueError("hidden: expected the shape [..., channels], got a 0-d tensor")
    of_dtype("head", head, hidden.dtype)
    if head.ndim != 2 or not len(head):
        raise ValueError(f"head: expected the shape [vocabulary, {hidden.shape[-1]}], got {list(head.shape)}")
    shaped("head", head, (len(head), hidden.shape[-1]), hidden)
    if bias is not None:
        shaped("bias", of_dtype("bias", bias, hidden.dtype), (len(head),), hidden)
