"""The divisor of a mean loss, and the label shift, each with the scope over which it is right.

A mean over what one process happens to hold is wrong as soon as the batch is cut: averaging the means of parts weighs a
token by the company it keeps. Sums of losses add up, and so do counts; so the parts are divided by one count of the
whole. Pass the result as `normaliser` to `cross_entropy`, `linear_cross_entropy` or `masked_regression`.

By scope:

* micro-batch - `valid_tokens(labels, shift=...)`; without weights, what a normaliser of None divides by.
* accumulated - `accumulated_count(labels of all micro-batches of one optimiser step, shift=...)`, the
  `num_items_in_batch` of transformers.
* data-parallel - `global_count(accumulated count)`; `per_rank` of it where gradients are averaged, as DDP does.
* context-parallel - shift the labels before they are cut (`shift_labels`), or the shards with their neighbours
  (`shift_across_ranks`); count each shard with `shift=False`; `global_count` over all shards of all replicas.

S is the number of tokens, W that of ranks.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from assay.reference.arguments import of_dtype

__all__ = [
    "accumulated_count",
    "global_count",
    "per_rank",
    "shift_across_ranks",
    "shift_labels",
    "shift_left",
    "valid_tokens",
]


def valid_tokens(labels: Tensor, *, shift: bool, ignore_index: int = -100) -> Tensor:
    """How many tokens of these labels [..., S] are scored: int64 0-d. Scope: the micro-batch.

    With `shift` the first label of a row is nobody's target, so it does not count. On one shard of a row that is cut
    over ranks `shift=True` loses the first label of every shard: shift first, then cut, then count with False.
    """
    of_dtype("labels", labels, torch.int64)
    return ((shift_labels(labels, ignore_index) if shift else labels) != ignore_index).sum()


def accumulated_count(labels: Sequence[Tensor], *, shift: bool, ignore_index: int = -100) -> Tensor:
    """How many tokens are scored in all micro-batches of one optimiser step: int64 0-d. Scope: this process.

    Every micro-batch's loss is its sum over this one count, and their gradients are added, not averaged.
    """
    if not len(labels):
        raise ValueError("labels: expected those of at least one micro-batch, got none")
    return torch.stack([valid_tokens(each, shift=shift, ignore_index=ignore_index) for each in labels]).sum()


def global_count(count: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The sum of a count over all ranks of the group: int64 0-d, the same on each. Scope: data- or context-parallel.

    A rank that has nothing to count takes part with 0; all ranks have to call. Without an initialised process group
    this process is the only one. The argument is not changed.
    """
    of_dtype("count", count, torch.int64)
    if count.ndim:
        raise ValueError(f"count: expected a 0-d tensor, got the shape {list(count.shape)}")
    total = count.clone()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total, op=dist.ReduceOp.SUM, group=group)
    return total


def per_rank(normaliser: Tensor | float, world_size: int) -> Tensor | float:
    """The divisor for each rank where gradients are averaged over `world_size` ranks: normaliser / W.

    DDP gives (1/W) sum_r d(S_r / divisor), and the gradient of the global mean is sum_r d S_r / N: so the divisor is
    N / W. Where gradients are summed over ranks, it is N itself. The value that a rank then holds is W times its share;
    their average over ranks is the global mean. A tensor comes back as float64, which holds every count.
    """
    if isinstance(world_size, bool) or not isinstance(world_size, int):
        raise TypeError(f"world_size: expected an int, got {type(world_size).__name__}")
    if world_size < 1:
        raise ValueError(f"world_size: expected at least 1, got {world_size}")
    return (normaliser.to(torch.float64) if isinstance(normaliser, Tensor) else normaliser) / world_size


def shift_labels(labels: Tensor, ignore_index: int) -> Tensor:
    """Labels [..., S] moved one to the left, so that place s holds what the model is to say after token s.

    The last place gets `ignore_index`. Scope: whole rows. For context parallelism call it before rows are cut; then
    every shard is scored with `shift=False`.
    """
    return shift_left(of_dtype("labels", labels, torch.int64), ignore_index)


def shift_left(tensor: Tensor, fill: float) -> Tensor:
    """A tensor [..., S] moved one to the left on its last dimension, with `fill` at the end; for per-token weights."""
    if not tensor.ndim:
        raise ValueError("labels: expected at least one dimension to shift along, got a 0-d tensor")
    return torch.cat([tensor[..., 1:], tensor.new_full((*tensor.shape[:-1], min(tensor.shape[-1], 1)), fill)], dim=-1)


def shift_across_ranks(labels: Tensor, group: dist.ProcessGroup | None = None, ignore_index: int = -100) -> Tensor:
    """The shard of `shift_labels(whole row)`, from the shard [..., S_r] of the row that this rank holds.

    Each rank's last place gets the first label of the next rank; the last rank's gets `ignore_index`. The shards have
    to lie in the order of the ranks, each in one piece of at least one token; a layout that gives a rank several pieces
    (as ring attention does to even out the work) has to be shifted before it is cut. Without an initialised process
    group this process holds the whole row. All ranks of the group have to call. Scope: context-parallel.
    """
    shifted = shift_labels(labels, ignore_index)
    if not (dist.is_available() and dist.is_initialized()):
        return shifted
    if not labels.shape[-1]:
        raise ValueError("labels: expected at least one token on each rank, got none")
    firsts = [torch.empty_like(labels[..., 0]) for _ in range(dist.get_world_size(group))]
    dist.all_gather(firsts, labels[..., 0].contiguous(), group=group)
    following = dist.get_rank(group) + 1
    if following < len(firsts):
        shifted[..., -1] = firsts[following]
    return shifted
