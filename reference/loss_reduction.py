"""From the losses of single entries to one value: the reductions, the divisor of a mean, and what no valid entry gives.

Source: `torch.nn.functional.cross_entropy` for the three reductions and the weighted mean. Where nothing is valid it
gives NaN; here that is 0 with zero gradients, as a trainer needs it when one rank or micro-batch has no target.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from assay.reference.arguments import one_of

__all__ = ["REDUCTIONS", "Loss", "Normaliser", "Reduction", "check_reduction", "read_places", "reduce_losses"]

Reduction = Literal["none", "sum", "mean"]
REDUCTIONS = ("none", "sum", "mean")

Normaliser = Tensor | float | None
"""The divisor of a mean; None is the call's own: the sum of the weights of its valid entries."""


class Loss(NamedTuple):
    """What every masked loss returns."""

    value: Tensor
    """0-d; for reduction "none" one loss per entry, exactly 0 where nothing is valid."""
    count: Tensor  # type: ignore[assignment]  # a tuple's own count is not missed
    """int64 0-d: how many entries were valid, whatever their weights."""


def check_reduction(reduction: str, normaliser: Normaliser, like: Tensor) -> None:
    """Refuse an unknown reduction, a normaliser without a mean, and a number that cannot divide.

    A number has to be finite and above 0. A tensor has to be 0-d and on the device of `like`; its value is not looked
    at, which on a GPU would wait for the device.
    """
    one_of("reduction", reduction, REDUCTIONS)
    if normaliser is None:
        return
    if reduction != "mean":
        raise ValueError(f"normaliser: expected None with reduction={reduction!r}, got {normaliser!r}")
    if isinstance(normaliser, Tensor):
        if normaliser.dtype == torch.bool or normaliser.is_complex():
            raise TypeError(f"normaliser: expected an integer or floating dtype, got {normaliser.dtype}")
        if normaliser.ndim:
            raise ValueError(f"normaliser: expected a 0-d tensor, got the shape {list(normaliser.shape)}")
        if normaliser.device != like.device:
            raise ValueError(f"normaliser: expected to be on {like.device}, got {normaliser.device}")
        return
    if isinstance(normaliser, bool) or not isinstance(normaliser, int | float):
        raise TypeError(f"normaliser: expected a tensor or a number, got {type(normaliser).__name__}")
    if not math.isfinite(normaliser) or normaliser <= 0:
        raise ValueError(f"normaliser: expected a finite number above 0, got {normaliser}")


def read_places(valid: Tensor, weight: Tensor | None, reduction: str, normaliser: Normaliser) -> Tensor:
    """Which entries are read at all: the valid ones, or none where their mean would divide by a weight sum of 0.

    `weight` has the shape of `valid`; it is not read elsewhere. What is not read cannot make a gradient NaN, as a
    product with 0 can.
    """
    own_divisor = reduction == "mean" and normaliser is None
    if own_divisor and weight is not None and not weight[valid].sum():
        return torch.zeros_like(valid)
    return valid


def reduce_losses(
    losses: Tensor, places: Tensor, weight: Tensor | None, *, reduction: str, normaliser: Normaliser
) -> Tensor:
    """The value of n losses [n], which stand where `places` is True; `weight` has its shape.

    * none - weight times loss in the shape of `places`, 0 elsewhere.
    * sum - of weight times loss.
    * mean - that sum over the normaliser, or over the sum of the weights. Without any loss it is 0, whatever the
      normaliser is, and connected to the inputs, so that their gradients are zero and not None.
    """
    weights = None if weight is None else weight[places]
    weighted = losses if weights is None else losses * weights
    if reduction == "none":
        return weighted.new_zeros(places.shape).masked_scatter(places, weighted)
    total = weighted.sum()
    if reduction == "sum" or not losses.numel():
        return total
    if normaliser is None:
        return total / (losses.numel() if weights is None else weights.sum())
    return total / (normaliser.to(total.dtype) if isinstance(normaliser, Tensor) else normaliser)
