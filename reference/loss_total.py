"""Several named losses and their weights to one total, in which each of them stays a tensor that is trained.

A loss that was turned into a Python number is logged as if it were trained, and adds a constant to the total: nothing
fails. So a number is an error here, and so is a component without a gradient that nobody declared constant.
"""

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from assay.reference.arguments import floating

__all__ = ["Total", "total_loss"]


class Total(NamedTuple):
    """The total and its parts."""

    value: Tensor
    """0-d: the sum of the weighted losses."""
    weighted: Mapping[str, Tensor]
    """Each loss times its weight, 0-d, still in the graph; detach it to log it."""


def total_loss(losses: Mapping[str, Tensor], weights: Mapping[str, float], *, constant: Collection[str] = ()) -> Total:
    """The sum of all losses, each times its weight: d total / d losses[name] is weights[name].

    Args:
        losses: at least one 0-d floating tensor, by name, all on one device.
        weights: a finite number for each of the same names. A component with weight 0 is multiplied all the same: NaN
            stays NaN.
        constant: names of losses that are meant to have no gradient. Where gradients are recorded at all, any other
            loss without one and with a weight other than 0 is an error.

    Raises:
        TypeError, ValueError: other names in `weights` than in `losses`, or in `constant` than in both; a loss that is
            a Python number, not floating, not 0-d, on another device, or detached; a weight that is no finite number.
    """
    _check_names(losses, weights, constant)
    first = next(iter(losses.values()))
    for name, loss in losses.items():
        _check_loss(name, loss, first)
        _check_weight(name, weights[name])
        trained = name not in constant and weights[name] != 0
        if torch.is_grad_enabled() and trained and not loss.requires_grad:
            raise ValueError(
                f"losses: {name!r} has weight {weights[name]} and no gradient: it would be logged and not trained;"
                " keep it attached to the graph, or name it in `constant`"
            )
    weighted = {name: loss * weights[name] for name, loss in losses.items()}
    return Total(torch.stack(list(weighted.values())).sum(), weighted)


def _check_names(losses: Mapping[str, Tensor], weights: Mapping[str, float], constant: Collection[str]) -> None:
    if not losses:
        raise ValueError("losses: expected at least one, got none")
    if missing := sorted(losses.keys() - weights.keys()):
        raise ValueError(f"weights: expected one for each loss, got none for {missing}")
    if surplus := sorted(weights.keys() - losses.keys()):
        raise ValueError(f"weights: expected one for each of {sorted(losses)}, got also {surplus}")
    if isinstance(constant, str):
        raise TypeError(f"constant: expected a collection of names, got the string {constant!r}")
    if unknown := sorted(set(constant) - losses.keys()):
        raise ValueError(f"constant: expected names out of {sorted(losses)}, got {unknown}")


def _check_loss(name: str, loss: object, first: object) -> None:
    tensor = floating(f"losses[{name!r}]", loss)
    if tensor.ndim:
        raise ValueError(f"losses[{name!r}]: expected a 0-d tensor, got the shape {list(tensor.shape)}")
    if isinstance(first, Tensor) and tensor.device != first.device:
        raise ValueError(f"losses[{name!r}]: expected to be on {first.device} like the others, got {tensor.device}")


def _check_weight(name: str, weight: object) -> None:
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise TypeError(f"weights[{name!r}]: expected a number, got {type(weight).__name__}")
    if not math.isfinite(weight):
        raise ValueError(f"weights[{name!r}]: expected a finite number, got {weight}")
