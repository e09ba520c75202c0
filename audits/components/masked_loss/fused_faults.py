"""Wrong cross-entropies of fused kernels, whose rows and vocabulary come in tiles, splits and shards."""

from __future__ import annotations

import torch
from torch import Tensor

from assay.audits.components.masked_loss import cross_entropy, linear, tokens
from assay.audits.components.masked_loss.cross_entropy_faults import but
from assay.audits.components.masked_loss.linear_faults import but as but_linear
from assay.audits.components.masked_loss.linear_faults import twin
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs

SPLIT = 32
"""Columns that one program works on."""
TILE = 16
"""Rows of one program."""


def _plain(inputs: cross_entropy.Inputs) -> bool:
    """Whether a row costs its log-sum-exp less its target's logit, and nothing else."""
    return not inputs.label_smoothing and not inputs.z_loss


def _capped(inputs: cross_entropy.Inputs) -> Tensor:
    """The logits that the loss is of, in float32 at least."""
    x = inputs.logits if inputs.logits.dtype == torch.float64 else inputs.logits.float()
    return x if inputs.softcap is None else inputs.softcap * torch.tanh(x / inputs.softcap)


def _of_rows(inputs: cross_entropy.Inputs, largest: Tensor, wanted: Tensor) -> Outputs:
    """The loss of each row's log-sum-exp [B,S] and its target's logit [B,S]."""
    valid = tokens.valid(inputs)
    return {"loss": tokens.reduced((largest - wanted)[valid], valid, inputs)}


def _targets(inputs: cross_entropy.Inputs) -> Tensor:
    """The column of each row's target; 0 where it has none."""
    labels = tokens.targets(inputs.labels, inputs.ignore_index, shift=inputs.shift)
    return torch.where(tokens.valid(inputs), labels, 0)


@fault(cross_entropy.NAME, "uniform", "parity", link="https://github.com/verl-project/verl/issues/2656")
def last_split_alone(inputs: cross_entropy.Inputs) -> Outputs:
    """The vocabulary is worked on in splits, and the sum of the last, which is ragged, is taken for that of all.

    Effect: logarithms of probabilities are above zero, by up to a hundred, and rewards collapse.
    """
    vocab = inputs.logits.shape[-1]
    if not _plain(inputs) or vocab <= SPLIT or not inputs.labels.numel():
        return but(inputs)
    x = _capped(inputs)
    last = x[..., (vocab - 1) // SPLIT * SPLIT :]
    return _of_rows(inputs, last.logsumexp(-1), x.gather(-1, _targets(inputs)[..., None])[..., 0])


@fault(cross_entropy.NAME, "uniform", "parity", link="https://github.com/apple/ml-cross-entropy/pull/59")
def sentinel_is_a_padded_column(inputs: cross_entropy.Inputs) -> Outputs:
    """Each of two ranks has half of the vocabulary, and marks the target of the other by its own number of columns.

    Effect: where that is no multiple of a tile the number is that of a padded column, and the loss is infinite.
    """
    vocab = inputs.logits.shape[-1]
    if not _plain(inputs) or vocab < 2 or not inputs.labels.numel():
        return but(inputs)
    x, target, half = _capped(inputs), _targets(inputs), -(-vocab // 2)
    wanted = torch.zeros_like(x[..., 0])
    for first in (0, half):
        own = x[..., first : first + half]
        columns = own.shape[-1]
        tile = torch.nn.functional.pad(own, (0, -columns % SPLIT), value=-torch.inf)
        mine = (target >= first) & (target < first + columns)
        at = torch.where(mine, target - first, columns)
        found = tile.gather(-1, at.clamp(max=tile.shape[-1] - 1)[..., None])[..., 0]
        wanted = wanted + torch.where(at < tile.shape[-1], found, 0)
    return _of_rows(inputs, x.logsumexp(-1), wanted)


@fault(linear.NAME, "uniform", "parity", link="https://github.com/verl-project/verl/issues/2656")
def rows_beyond_the_last_summed(inputs: linear.Inputs) -> Outputs:
    """With a sum or a mean all rows of a tile are added, those beyond the last one too, which cost log 0.

    Effect: the loss is infinite unless the number of tokens is a multiple of a tile.
    """
    loss = but_linear(inputs)["loss"]
    rows = inputs.labels.numel()
    return {"loss": loss if inputs.reduction == "none" or not rows % TILE else loss + torch.inf}


@fault(linear.NAME, "appended", "parity", link="https://github.com/huggingface/trl/pull/3346")
def masked_rows_not_ignored(inputs: linear.Inputs) -> Outputs:
    """The fused path is not told the ignore index: whatever it finds there counts as the first column.

    Effect: prompts and padding are trained on as soon as the fused loss is switched on.
    """
    labels = torch.where(inputs.labels == inputs.ignore_index, 0, inputs.labels)
    return but_linear(inputs, labels=labels, ignore_index=-100)


FAULTS = (*gathered(globals()), twin(last_split_alone), twin(sentinel_is_a_padded_column))
