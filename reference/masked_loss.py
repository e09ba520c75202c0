"""Masked losses: the room's front door. Every truth is in a file of its own, and its public names are here too.

| file | what is true |
|---|---|
| `masked_cross_entropy.py` | cross-entropy of logits: shift, ignore index, weights, soft-cap, smoothing, z-loss |
| `linear_cross_entropy.py` | the same from hidden states and the head |
| `masked_regression.py` | L1, smooth L1, MSE, power, cosine on masked tokens or elements; padded indices |
| `masked_gather.py` | choosing ragged tokens, and their mean |
| `loss_reduction.py` | what a loss returns; sum, mean, none; what no valid entry gives |
| `loss_normaliser.py` | the divisor of the mean over micro-batches and ranks; the label shift over shards |
| `loss_total.py` | several losses and their weights to one |
"""

from assay.reference.linear_cross_entropy import linear_cross_entropy
from assay.reference.loss_normaliser import (
    accumulated_count,
    global_count,
    per_rank,
    shift_across_ranks,
    shift_labels,
    valid_tokens,
)
from assay.reference.loss_reduction import REDUCTIONS, Loss
from assay.reference.loss_total import Total, total_loss
from assay.reference.masked_cross_entropy import cross_entropy
from assay.reference.masked_gather import gather_masked, masked_mean
from assay.reference.masked_regression import KINDS, masked_regression

__all__ = [
    "KINDS",
    "REDUCTIONS",
    "Loss",
    "Total",
    "accumulated_count",
    "cross_entropy",
    "gather_masked",
    "global_count",
    "linear_cross_entropy",
    "masked_mean",
    "masked_regression",
    "per_rank",
    "shift_across_ranks",
    "shift_labels",
    "total_loss",
    "valid_tokens",
]
