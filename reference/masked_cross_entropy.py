"""Cross-entropy of a language model, with everything that trainers do to it: the specification.

For a scored token with logits x over V entries and label y, in this order:

    x = softcap * tanh(x / softcap)                 with softcap
    nll = logsumexp(x) - x[y]
    loss = (1 - smoothing) * nll + smoothing * mean over the vocabulary of (logsumexp(x) - x)
    loss = loss + z_loss * logsumexp(x) ** 2
    loss = weight * loss

and then the reduction. A token whose label is `ignore_index` is never read: its logits may be NaN, and their gradient
is exactly 0.

Sources: `torch.nn.functional.cross_entropy` for smoothing, Gemma 2 (arXiv 2408.00118) for the soft-cap, PaLM
(2204.02311) for the z-loss, `transformers.loss.loss_utils.ForCausalLMLoss` for the shift.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from assay.reference.arguments import accumulation_dtype, floating, number, of_dtype, shaped, within
from assay.reference.loss_normaliser import shift_labels, shift_left
from assay.reference.loss_reduction import Loss, Normaliser, Reduction, check_reduction, read_places, reduce_losses

__all__ = ["Scored", "check_options", "cross_entropy", "scored_tokens", "token_losses"]


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    shift: bool = False,
    ignore_index: int = -100,
    weight: Tensor | None = None,
    softcap: float | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: Reduction = "mean",
    normaliser: Normaliser = None,
) -> Loss:
    """Cross-entropy of logits [..., V] against labels [...].

    Args:
        logits: [..., V], a floating dtype. The arithmetic and the value are float64 for float64, else float32; the
            gradient is rounded once to the dtype of the logits.
        labels: int64 [...], each in 0..V-1 or `ignore_index`.
        shift: the labels are as a causal LM gets them, [..., S] beside its input ids: position s is scored against
            label s + 1. The last position has no label, and the first label no position, so it is not looked at.
            False: labels[s] is what position s is scored against.
        ignore_index: labels that are not scored; any int, also one in 0..V-1, which then is no label.
        weight: floating [...], one for each token of `labels`, and shifted along with them. Not class weights.
        softcap: bound c > 0 of the logits; None is no bound.
        label_smoothing: share in [0, 1) of the uniform distribution in the target.
        z_loss: coefficient >= 0 of the squared logsumexp.
        reduction: "none" gives the losses in the shape of `labels`, with `shift` at the position that is scored (the
            last of each row is 0); "sum"; "mean" divides the sum by the normaliser.
        normaliser: divisor of the mean, a number or a 0-d tensor, from `reference/loss_normaliser.py`. None: the sum
            of the weights of the scored tokens, without weights their count.

    Returns:
        The value and the number of scored tokens. Where there is none, or the weights that None divides by add up to
        0, the value is 0 and every gradient is exactly 0.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, device or range, a label outside the vocabulary, a normaliser
            without "mean", or one that is a number and not finite and above 0.
    """
    floating("logits", logits)
    if not logits.ndim or not logits.shape[-1]:
        raise ValueError(f"logits: expected the shape [..., vocabulary], got {list(logits.shape)}")
    check_options(softcap, label_smoothing, z_loss)
    scored = scored_tokens(
        logits,
        labels,
        weight,
        vocabulary=logits.shape[-1],
        shift=shift,
        ignore_index=ignore_index,
        reduction=reduction,
        normaliser=normaliser,
    )
    read = scored.places
    losses = token_losses(
        logits[read].to(accumulation_dtype(logits)),
        scored.labels[read],
        softcap=softcap,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
    )
    return Loss(reduce_losses(losses, read, scored.weight, reduction=reduction, normaliser=normaliser), scored.count)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Which tokens are scored, and against what."""

    places: Tensor
    """bool [...]: where a loss is computed; nothing else is read."""
    labels: Tensor
    """int64 [...], each at the token that is scored against it."""
    weight: Tensor | None
    """[...] at the same places, in the dtype of the arithmetic."""
    count: Tensor
    """int64 0-d: how many tokens have a label."""


def scored_tokens(
    inputs: Tensor,
    labels: Tensor,
    weight: Tensor | None,
    *,
    vocabulary: int,
    shift: bool,
    ignore_index: int,
    reduction: str,
    normaliser: Normaliser,
) -> Scored:
    """What `inputs` [..., channels], logits or hidden states, are scored against; all of it is checked here."""
    _check_targets(inputs, labels, weight, shift=shift, ignore_index=ignore_index)
    check_reduction(reduction, normaliser, inputs)
    _check_labels(labels, vocabulary, shift=shift, ignore_index=ignore_index)
    if shift:
        labels, weight = shift_labels(labels, ignore_index), None if weight is None else shift_left(weight, 0.0)
    valid = labels != ignore_index
    weight = None if weight is None else weight.to(accumulation_dtype(inputs))
    places = read_places(valid, weight, reduction, normaliser)
    return Scored(places=places, labels=labels, weight=weight, count=valid.sum())


def token_losses(
    logits: Tensor, labels: Tensor, *, softcap: float | None, label_smoothing: float, z_loss: float
) -> Tensor:
    """The loss of each of n scored tokens, from logits [n, V] and labels [n]; nothing is checked."""
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    surprise = -torch.log_softmax(logits, dim=-1)
    losses = surprise.gather(-1, labels[:, None])[:, 0]
    if label_smoothing:  # a logit of -inf is fine without it
        losses = (1 - label_smoothing) * losses + label_smoothing * surprise.mean(dim=-1)
    if z_loss:
        losses = losses + z_loss * torch.logsumexp(logits, dim=-1) ** 2
    return losses


def _check_targets(scored: Tensor, labels: Tensor, weight: Tensor | None, *, shift: bool, ignore_index: int) -> None:
    """Dtypes, shapes and devices of what `scored` [..., channels] is scored against."""
    of_dtype("labels", labels, torch.int64)
    shaped("labels", labels, scored.shape[:-1], scored)
    if shift and not labels.ndim:
        raise ValueError("labels: expected the shape [..., tokens] with shift=True, got a 0-d tensor")
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index: expected an int, got {type(ignore_index).__name__}")
    if weight is not None:
        shaped("weight", floating("weight", weight), labels.shape, scored)


def _check_labels(labels: Tensor, vocabulary: int, *, shift: bool, ignore_index: int) -> None:
    """ValueError naming the first label that is scored and not in the vocabulary."""
    read = labels != ignore_index
    if shift:
        read[..., :1] = False
    within("labels", labels, read, vocabulary, f" or ignore_index={ignore_index}")


def check_options(softcap: float | None, label_smoothing: float, z_loss: float) -> None:
    """Ranges of the options that change the loss of a token."""
    if softcap is not None:
        number("softcap", softcap, "a finite number above 0, or None", low=0.0, open_low=True)
    number("label_smoothing", label_smoothing, "a number in [0, 1)", low=0.0, high=1.0, open_low=False)
    number("z_loss", z_loss, "a finite number of at least 0", low=0.0, open_low=False)
