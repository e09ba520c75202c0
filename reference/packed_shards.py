"""Cuts the tokens of a batch into one piece for each rank of context parallelism, and puts pieces together again.

Every tensor with an entry for each token is cut by one map from ranks to tokens, whatever its other dimensions.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["LAYOUTS", "aligned", "shard", "shard_batch", "shard_map", "unshard"]

LAYOUTS = ("contiguous", "zigzag")
"""`contiguous`: rank r has the r-th of W equal pieces. `zigzag`: of 2 W equal pieces it has number r and number
2 W - 1 - r, so that under a causal mask all ranks have equally much to do."""


def shard_map(tokens: int, world: int, layout: str = "contiguous") -> Tensor:
    """int64 [world, tokens / world]: the tokens of each rank. ValueError where they cannot be dealt out equally."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout: expected one of {', '.join(LAYOUTS)}, got {layout!r}")
    if world < 1:
        raise ValueError(f"world: expected at least 1 rank, got {world}")
    parts = world if layout == "contiguous" else 2 * world
    if tokens < 0 or tokens % parts:
        raise ValueError(f"tokens: expected a multiple of {parts} for {world} ranks, {layout}, got {tokens}")
    pieces = torch.arange(tokens).view(parts, -1)
    return pieces if layout == "contiguous" else torch.cat([pieces[:world], pieces.flip(0)[:world]], dim=1)


def shard(x: Tensor, world: int, *, dim: int = -1, layout: str = "contiguous") -> tuple[Tensor, ...]:
    """The piece of each rank of `x`, whose dimension `dim` is that of the tokens."""
    return tuple(x.index_select(dim, own.to(x.device)) for own in shard_map(x.shape[dim], world, layout))


def unshard(pieces: Sequence[Tensor], *, dim: int = -1, layout: str = "contiguous") -> Tensor:
    """The whole of which `pieces` are the ranks' parts, in the order of the ranks."""
    if not pieces:
        raise ValueError("pieces: expected at least one")
    joined = torch.cat(list(pieces), dim)
    places = shard_map(joined.shape[dim], len(pieces), layout).flatten().argsort()
    return joined.index_select(dim, places.to(joined.device))


def shard_batch(
    batch: Mapping[str, Tensor], world: int, *, layout: str = "contiguous", ignore_index: int = -100
) -> tuple[dict[str, Tensor], ...]:
    """The batch of each rank.

    Labels are moved to the tokens that predict them before anything is cut, and called `shift_labels`: the target of
    a piece's last token lies in another piece.

    Args:
        batch: tensors whose last dimension is that of the tokens: ids [B, T], labels [B, T], positions [A, B, T], ...
        world: number of ranks.
        layout: one of `LAYOUTS`.
        ignore_index: the target of each row's last token.
    """
    sizes = {name: x.shape[-1] for name, x in batch.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"batch: expected one number of tokens as the last dimension of each tensor, got {sizes}")
    if {"labels", "shift_labels"} <= set(batch):
        raise ValueError("batch: expected labels or shift_labels, got both")
    whole = dict(batch)
    if "labels" in whole:
        labels = whole.pop("labels")
        whole["shift_labels"] = torch.cat([labels[..., 1:], torch.full_like(labels[..., :1], ignore_index)], dim=-1)
    pieces = {name: shard(x, world, layout=layout) for name, x in whole.items()}
    return tuple({name: own[rank] for name, own in pieces.items()} for rank in range(world))


def aligned(x: Tensor, multiple: int, value: float, *, dim: int = -1) -> Tensor:
    """`x` with `value` appended along `dim` until its size is a multiple of `multiple`."""
    if multiple < 1:
        raise ValueError(f"multiple: expected a whole number above 0, got {multiple}")
    shape = list(x.shape)
    shape[dim] = -shape[dim] % multiple
    return torch.cat([x, x.new_full(shape, value)], dim)
