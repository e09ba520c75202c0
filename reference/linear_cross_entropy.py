"""Cross-entropy from hidden states and the weight of the language-model head: the specification.

It is `cross_entropy(hidden @ head.T + bias, labels, ...)`, but the head is applied to the scored tokens only: hidden
states of the others are never read, and neither time nor memory goes to them. How an implementation cuts the rows into
chunks, and that it keeps no logits, must not show in any result.
"""

from torch import Tensor

from assay.reference.loss_arguments import accumulation_dtype, floating, of_dtype, shaped
from assay.reference.loss_reduction import Loss, Normaliser, Reduction, check_reduction, read_places
from assay.reference.masked_cross_entropy import aligned, check_labels, check_options, check_targets, cross_entropy

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
    check_targets(hidden, labels, weight, shift=shift, ignore_index=ignore_index)
    check_options(softcap, label_smoothing, z_loss)
    check_reduction(reduction, normaliser, hidden)
    check_labels(labels, len(head), shift=shift, ignore_index=ignore_index)
    targets, weight = aligned(labels, weight, shift=shift, ignore_index=ignore_index)
    valid = targets != ignore_index
    dtype = accumulation_dtype(hidden)
    weight = None if weight is None else weight.to(dtype)
    read = read_places(valid, weight, reduction, normaliser)
    logits = hidden[read].to(dtype) @ head.to(dtype).T
    value, _ = cross_entropy(
        logits if bias is None else logits + bias.to(dtype),
        targets[read],
        weight=None if weight is None else weight[read],
        softcap=softcap,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        reduction=reduction,
        normaliser=normaliser,
    )
    if reduction == "none":
        value = value.new_zeros(labels.shape).masked_scatter(read, value)
    return Loss(value, valid.sum())


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
