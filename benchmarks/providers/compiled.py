"""torch.compile, over the formulas of ``plain``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from assay.benchmarks.nouns import Provider
from assay.benchmarks.providers import plain

SHAPES = 200
"""For how many shapes one function is compiled, with gradients and without."""


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    from torch._dynamo import config as compiler
    from torch._functorch import config

    config.donated_buffer = False  # else a backward pass can be made only once, and not be timed by itself
    compiler.recompile_limit = SHAPES  # else it runs what is not compiled, in silence, from the ninth shape on
    compiler.fail_on_recompile_limit_hit = True
    found: Callable[..., Any] = torch.compile(function, dynamic=False)
    return found


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """``plain.rotate``, compiled."""
    turned: tuple[Tensor, Tensor] = _compiled(plain.rotate)(q, k, cos, sin)
    return turned


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """``plain.cross_entropy``, compiled."""
    loss: Tensor = _compiled(plain.cross_entropy)(logits, labels)
    return loss


def linear_cross_entropy(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """``plain.linear_cross_entropy``, compiled."""
    loss: Tensor = _compiled(plain.linear_cross_entropy)(hidden, head, labels)
    return loss


def masked_regression(prediction: Tensor, target: Tensor, indices: Tensor, mask: Tensor) -> Tensor:
    """``plain.masked_regression`` with the rows that count picked by a weight, so that no shape depends on data."""
    loss: Tensor = _compiled(_weighed)(prediction, target, indices, mask)
    return loss


def _weighed(prediction: Tensor, target: Tensor, indices: Tensor, mask: Tensor) -> Tensor:
    chosen = target.gather(1, indices[..., None].expand(-1, -1, target.shape[-1]))
    wanted = torch.nn.functional.layer_norm(chosen.float(), chosen.shape[-1:])
    each = torch.nn.functional.smooth_l1_loss(prediction.float(), wanted, reduction="none").mean(-1)
    return torch.where(mask, each, 0).sum() / mask.sum()


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "rotary": rotate, "cross_entropy": cross_entropy, "linear_cross_entropy": linear_cross_entropy,
    "masked_regression": masked_regression,
}  # fmt: skip

PROVIDERS = (
    Provider(
        name="torch.compile", packages=("torch",),
        offers={name: replace(plain.OFFERS[name], function=function, cases=2) for name, function in FUNCTIONS.items()},
    ),
)  # fmt: skip
