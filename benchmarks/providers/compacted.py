"""Linear cross-entropies of others with ``x[scored]`` in front, which any user can write in two lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from assay.benchmarks.nouns import Provider
from assay.benchmarks.providers import cce, liger, plain, quack

NAME = "linear_cross_entropy"


def _picked(function: Callable[..., Tensor], hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    scored = labels != -100
    return function(hidden[scored], head, labels[scored])


def torch(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """``plain.linear_cross_entropy`` of scored rows."""
    return _picked(plain.linear_cross_entropy, hidden, head, labels)


def liger_default(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Liger's of scored rows."""
    return _picked(liger.linear_cross_entropy, hidden, head, labels)


def liger_tuned(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Liger's, tuned, of scored rows."""
    return _picked(liger.linear_cross_entropy_tuned, hidden, head, labels)


def cut(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Apple's of scored rows."""
    return _picked(cce.linear_cross_entropy, hidden, head, labels)


def quack_chunks(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """QuACK's of scored rows."""
    return _picked(quack.linear_cross_entropy, hidden, head, labels)


def _provider(base: Provider, function: Callable[..., Tensor]) -> Provider:
    return replace(
        base, name=f"{base.name} + compaction", note="scored rows are picked by hand",
        offers={NAME: replace(base.offers[NAME], function=function)},
    )  # fmt: skip


PROVIDERS = (
    _provider(plain.PROVIDERS[0], torch),
    _provider(liger.PROVIDERS[0], liger_default),
    _provider(liger.PROVIDERS[2], liger_tuned),
    _provider(cce.PROVIDERS[0], cut),
    _provider(quack.PROVIDERS[0], quack_chunks),
)
