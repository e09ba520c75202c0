"""Regression on the tokens or elements that a mask selects, as JEPA trainers use it: the specification.

For an entry with difference d = prediction - target:

    l1         |d|
    mse        d ** 2
    smooth_l1  d ** 2 / (2 beta) where |d| < beta, else |d| - beta / 2
    power      |d| ** power / power
    cosine     1 - cos(prediction, target), one entry for each token

An entry that the mask leaves out is never read: it may be NaN, and its gradient is exactly 0. The mean divides by the
number of entries, so that of an elementwise kind with one mask entry per token is over D times as many as the mask has.

Sources: I-JEPA (arXiv 2301.08243) for smooth L1 on layer-normed targets gathered through mask indices, V-JEPA 2
(2506.09985) for the power, `torch.nn.functional` for l1, mse, smooth L1 and the cosine.
"""

from typing import Literal

import torch
from torch import Tensor

from assay.reference.arguments import accumulation_dtype, floating, number, of_dtype, one_of, shaped, within
from assay.reference.loss_reduction import Loss, Normaliser, Reduction, check_reduction, read_places, reduce_losses

__all__ = ["KINDS", "Kind", "masked_regression"]

Kind = Literal["l1", "smooth_l1", "mse", "power", "cosine"]
KINDS = ("l1", "smooth_l1", "mse", "power", "cosine")


def masked_regression(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    *,
    kind: Kind,
    beta: float = 1.0,
    power: float = 2.0,
    normalise_target: bool = False,
    eps: float = 1e-5,
    indices: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normaliser: Normaliser = None,
) -> Loss:
    """The loss between prediction [..., D] and target where the mask is True.

    Args:
        prediction: [..., D], a floating dtype. The arithmetic and the value are float64 where prediction or target is,
            else float32; the gradient is rounded once to the dtype of the prediction.
        target: the shape of `prediction`, any floating dtype. With `indices` the full grid [B, T, D].
        mask: bool, True for what counts: [...], one entry per token, or [..., D], one per element.
        kind: one of `KINDS`; "cosine" needs one mask entry per token.
        beta: where smooth L1 turns from square to absolute; above 0. Other kinds refuse another than 1.
        power: exponent above 0 of "power". Other kinds refuse another than 2. Below 1 the slope at d = 0 is infinite;
            the gradient there is 0.
        normalise_target: first bring each target token to mean 0 and variance 1 over D (LayerNorm without scale and
            bias). Needs one mask entry per token, since all of a token's elements take part.
        eps: added to that variance; at least 0. Refused without `normalise_target`, unless 1e-5.
        indices: int64 [B, M]: the prediction [B, M, D] holds chosen tokens, and row (b, m) is compared with
            target[b, indices[b, m]]. Rows are padded to M and the mask says which entries are real; the index of a row
            without a True entry is never read, whatever it is. An index may occur several times.
        weight: floating [...], one per token; multiplies the losses of its entries.
        reduction: "none" gives the losses in the shape of the entries: that of `prediction`, for "cosine" [...].
        normaliser: divisor of the mean, as for `cross_entropy`. None: the sum over entries of their weights, without
            weights their number.

    Returns:
        The value and the number of entries that count. A prediction or target of norm 0 has no direction: its cosine
        is 0, and the gradient too. Where nothing counts the value is 0 and every gradient exactly 0. Gradients
        flow to prediction, target and weight.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, device or range; an index outside the grid where the mask is True.
    """
    _check_options(kind, beta, power, eps, normalise_target=normalise_target)
    _check_tensors(prediction, target, mask, indices, weight)
    if mask.ndim == prediction.ndim and (normalise_target or kind == "cosine"):
        what = "normalise_target" if normalise_target else f"kind={kind!r}"
        raise ValueError(f"mask: expected one entry per token with {what}, got the shape {list(mask.shape)}")
    check_reduction(reduction, normaliser, prediction)
    dtype = accumulation_dtype(prediction, target)
    by_element = kind != "cosine"
    entries = mask[..., None].expand_as(prediction) if by_element and mask.ndim < prediction.ndim else mask
    weight = None if weight is None else weight.to(dtype)
    if weight is not None and by_element:
        weight = weight[..., None].expand_as(prediction)
    read = read_places(entries, weight, reduction, normaliser)
    tokens = read.any(dim=-1) if by_element else read
    chosen = prediction[tokens].to(dtype)
    goal = _targets(target, tokens, indices).to(dtype)
    if normalise_target:
        goal = torch.nn.functional.layer_norm(goal, goal.shape[-1:], eps=eps)
    if by_element:
        here = read[tokens]
        losses = _elementwise(chosen[here] - goal[here], kind, beta, power)
    else:
        losses = 1 - (_direction(chosen) * _direction(goal)).sum(dim=-1)
    return Loss(reduce_losses(losses, read, weight, reduction=reduction, normaliser=normaliser), entries.sum())


def _targets(target: Tensor, tokens: Tensor, indices: Tensor | None) -> Tensor:
    """The target [n, D] of each of the n tokens that are read."""
    if indices is None:
        return target[tokens]
    within("indices", indices, tokens, target.shape[1], " where the mask is True")
    return target[tokens.nonzero()[:, 0], indices[tokens]]


def _elementwise(difference: Tensor, kind: str, beta: float, power: float) -> Tensor:
    size = difference.abs()
    if kind == "l1":
        return size
    if kind == "mse":
        return difference**2
    if kind == "smooth_l1":
        near = size < beta
        return torch.where(near, torch.where(near, difference, 0.0) ** 2 / (2 * beta), size - beta / 2)
    if power >= 1:
        return size**power / power
    nothing = size == 0  # where the slope is infinite
    return torch.where(nothing, 0.0, torch.where(nothing, 1.0, size) ** power / power)


def _direction(x: Tensor) -> Tensor:
    """Each row [D] over its norm; 0 for a row of zeros. Scaled first, so that no square overflows or vanishes."""
    largest = x.detach().abs().amax(dim=-1, keepdim=True)
    nothing = largest == 0
    scaled = x / torch.where(nothing, 1.0, largest)
    norm = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return torch.where(nothing, 0.0, scaled / torch.where(nothing, 1.0, norm))


def _check_options(kind: str, beta: float, power: float, eps: float, *, normalise_target: bool) -> None:
    one_of("kind", kind, KINDS)
    number("beta", beta, "a finite number above 0", low=0.0, open_low=True)
    number("power", power, "a finite number above 0", low=0.0, open_low=True)
    number("eps", eps, "a finite number of at least 0", low=0.0, open_low=False)
    if beta != 1.0 and kind != "smooth_l1":
        raise ValueError(f"beta: expected 1.0 with kind={kind!r}, which has none, got {beta}")
    if power != 2.0 and kind != "power":
        raise ValueError(f"power: expected 2.0 with kind={kind!r}, which has none, got {power}")
    if eps != 1e-5 and not normalise_target:
        raise ValueError(f"eps: expected 1e-5 without normalise_target, which alone has one, got {eps}")


def _check_tensors(
    prediction: Tensor, target: Tensor, mask: Tensor, indices: Tensor | None, weight: Tensor | None
) -> None:
    floating("prediction", prediction)
    floating("target", target)
    if not prediction.ndim or not prediction.shape[-1]:
        raise ValueError(f"prediction: expected the shape [..., channels], got {list(prediction.shape)}")
    if indices is None:
        shaped("target", target, prediction.shape, prediction)
    else:
        _check_grid(prediction, target, indices)
    of_dtype("mask", mask, torch.bool)
    by_token = mask.ndim < prediction.ndim
    shaped("mask", mask, prediction.shape[:-1] if by_token else prediction.shape, prediction)
    if weight is not None:
        shaped("weight", floating("weight", weight), prediction.shape[:-1], prediction)


def _check_grid(prediction: Tensor, target: Tensor, indices: Tensor) -> None:
    if prediction.ndim != 3:
        raise ValueError(f"prediction: expected the shape [B, M, D] with indices, got {list(prediction.shape)}")
    shaped("indices", of_dtype("indices", indices, torch.int64), prediction.shape[:-1], prediction)
    batch, _, channels = prediction.shape
    if target.ndim != 3 or not target.shape[1]:
        raise ValueError(f"target: expected the shape [{batch}, T, {channels}] with indices, got {list(target.shape)}")
    shaped("target", target, (batch, target.shape[1], channels), prediction)
