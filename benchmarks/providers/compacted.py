"""Linear cross-entropies of others with ``x[scored]`` in front, which any user can write in two lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from assay.benchmarks.nouns import Provider, Shape
from assay.benchmarks.providers import cce, compiled, fla, huggingface, liger, plain, quack

NAME = "linear_cross_entropy"


def _picked(function: Callable[..., Tensor], hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    scored = labels != -100
    return function(hidden[scored], head, labels[scored])


def torch(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """``plain.linear_cross_entropy`` of scored rows."""
    return _picked(plain.linear_cross_entropy, hidden, head, labels)


def torch_compiled(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """torch.compile's of scored rows, which are picked outside: their number is known only when it runs."""
    return _picked(compiled.linear_cross_entropy, hidden, head, labels)


def transformers(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """That of transformers' causal loss, of scored rows."""
    return _picked(huggingface.linear_cross_entropy, hidden, head, labels)


def linear_attention(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """FLA's of scored rows."""
    return _picked(fla.linear_cross_entropy, hidden, head, labels)


def liger_default(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Liger's of scored rows."""
    return _picked(liger.linear_cross_entropy, hidden, head, labels)


def liger_tuned(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Liger's, tuned, of scored rows."""
    return _picked(liger.linear_cross_entropy_tuned, hidden, head, labels)


def cut(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Apple's of scored rows."""
    return _picked(cce.linear_cross_entropy, hidden, head, labels)


def cut_exact(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Apple's exact one of scored rows."""
    return _picked(cce.linear_cross_entropy_exact, hidden, head, labels)


def quack_whole(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """QuACK's in one chunk, of scored rows."""
    return _picked(quack.linear_cross_entropy_whole, hidden, head, labels)


def quack_chunks(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """QuACK's of scored rows."""
    return _picked(quack.linear_cross_entropy, hidden, head, labels)


def _provider(base: Provider, function: Callable[..., Tensor]) -> Provider:
    return replace(
        base, name=f"{base.name} + compaction", note="scored rows are picked by hand",
        offers={NAME: replace(base.offers[NAME], function=function, refuses=_unmasked, skips=True)},
    )  # fmt: skip


def _unmasked(shape: Shape) -> str | None:
    return None if shape.masked else "every label is scored: there is nothing to pick"


PROVIDERS = (
    _provider(plain.PROVIDERS[0], torch),
    _provider(compiled.PROVIDERS[0], torch_compiled),
    _provider(huggingface.PROVIDERS[0], transformers),
    _provider(liger.PROVIDERS[0], liger_default),
    _provider(liger.PROVIDERS[2], liger_tuned),
    _provider(cce.PROVIDERS[0], cut),
    _provider(cce.PROVIDERS[1], cut_exact),
    _provider(fla.PROVIDERS[0], linear_attention),
    _provider(quack.PROVIDERS[0], quack_chunks),
    _provider(quack.PROVIDERS[1], quack_whole),
)
