"""Wrong masks of packed rows."""

from __future__ import annotations

import torch
from torch import Tensor

from assay.audits.components.packed_positions.mask import ADDED, NAME, read, reference
from assay.audits.components.packed_positions.rows import Inputs
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs

TILE = 64


def seen(inputs: Inputs) -> Tensor:
    """The right mask, bool [B,T,T]: what the faults depart from."""
    numbers = inputs.segments
    own = (numbers[:, :, None] == numbers[:, None, :]) & (numbers != 0)[:, :, None]
    return own.tril() | torch.eye(numbers.shape[1], dtype=torch.bool)


def _added(mask: Tensor, closed: float) -> Tensor:
    return torch.zeros(mask.shape, dtype=ADDED).masked_fill(~mask, closed)


@fault(NAME, "isolated", "parity", link="https://github.com/huggingface/transformers/pull/46634")
def plain_causal(inputs: Inputs) -> Outputs:
    """A mask of ones hides that ids restart: the mask is the causal one.

    Effect: each sample sees all those before it, and the loss falls faster for it.
    """
    real = inputs.segments != 0
    return read((real[:, None, :] & real[:, :, None]).tril(), inputs)


@fault(NAME, "isolated")
def numbers_as_bytes(inputs: Inputs) -> Outputs:
    """Numbers of samples are kept in a byte each.

    Effect: in rows of short samples number 257 is number 1 again, and sees the first.
    """
    bytes_ = inputs.segments.to(torch.uint8)
    own = (bytes_[:, :, None] == bytes_[:, None, :]) & (inputs.segments != 0)[:, :, None]
    return read(own.tril() | torch.eye(bytes_.shape[1], dtype=torch.bool), inputs)


@fault(NAME, "isolated")
def tiles_by_their_first_token(inputs: Inputs) -> Outputs:
    """Whole tiles of 64 tokens are open where the first query and the first key are of one sample.

    Effect: what begins within a tile reads in the sample before it; rows shorter than a tile are right.
    """
    tile = torch.arange(inputs.segments.shape[1]) // TILE
    first = inputs.segments[:, tile * TILE]
    whole = (first[:, :, None] == first[:, None, :]) & (tile[:, None] > tile[None, :])
    real = (inputs.segments != 0)[:, :, None]
    return read((seen(inputs) | whole) & real, inputs)


@fault(NAME, "causal")
def blocks_without_the_cut(inputs: Inputs) -> Outputs:
    """Each sample is a block in which all see all.

    Effect: every token sees what it is to predict.
    """
    numbers = inputs.segments
    return read(numbers[:, :, None] == numbers[:, None, :], inputs)


@fault(NAME, "complete")
def not_itself(inputs: Inputs) -> Outputs:
    """A token sees only what comes before it.

    Effect: the first token of each sample sees nothing, which is NaN or a mean over everything.
    """
    return read(seen(inputs).tril(-1), inputs)


@fault(NAME, "complete", link="https://github.com/huggingface/transformers/pull/44158")
def cut_where_ids_do_not_rise(inputs: Inputs) -> Outputs:
    """A sample ends wherever ids do not rise by one, and one axis of an image's ids is looked at.

    Effect: within an image each token is a sample of its own.
    """
    stands = inputs.position_ids // 3  # an axis that stands still for some tokens, as time does
    steps = (stands[:, 1:] != stands[:, :-1] + 1).long()
    numbers = torch.cat([steps.new_ones(len(steps), 1), steps], dim=1).cumsum(1)
    return read(seen(inputs) & (numbers[:, :, None] == numbers[:, None, :]), inputs)


@fault(NAME, "alone", "isolated")
def first_rows_mask(inputs: Inputs) -> Outputs:
    """The mask is made for the first row and expanded over the batch.

    Effect: all other rows are cut at the first one's boundaries.
    """
    return read(seen(inputs)[:1].expand(len(inputs.segments), -1, -1), inputs)


@fault(NAME, "renumbered")
def numbers_multiplied(inputs: Inputs) -> Outputs:
    """Two tokens belong together where the product of their numbers is a square.

    Effect: right for the first three samples; the fourth sees the first.
    """
    product = inputs.segments[:, :, None] * inputs.segments[:, None, :]
    root = product.double().sqrt().round().long()
    near = (root * root == product) & (product > 0)
    return read(near.tril() | torch.eye(near.shape[-1], dtype=torch.bool), inputs)


@fault(NAME, "isolated", link="https://github.com/OpenRLHF/OpenRLHF/issues/587")
def padding_is_a_sample_before(inputs: Inputs) -> Outputs:
    """With padding in front, the first sample begins where the row begins.

    Effect: the first sample of each row sees the padding, more of it in short rows; padding on the right shows nothing.
    """
    numbers = torch.where(inputs.segments == 0, 1, inputs.segments)
    return read((numbers[:, :, None] == numbers[:, None, :]).tril(), inputs)


@fault(NAME, "added")
def one_minus_the_mask(inputs: Inputs) -> Outputs:
    """Minus one is added where nothing is to be seen.

    Effect: neighbours weigh a third of what they would; samples leak and nothing looks wrong.
    """
    return {**reference(inputs), "added": _added(seen(inputs), -1.0)}


@fault(NAME, "added")
def padding_sees_nothing(inputs: Inputs) -> Outputs:
    """Minus infinity is added wherever nothing is seen, in rows of padding everywhere.

    Effect: padding turns into NaN, and so does every weight that its gradient reaches.
    """
    real = inputs.segments != 0
    return {**reference(inputs), "added": _added(seen(inputs) & real[:, :, None], -torch.inf)}


@fault(NAME, "isolated", link="https://github.com/axolotl-ai-cloud/axolotl/pull/3796")
def isolated_from_the_next_only(inputs: Inputs) -> Outputs:
    """A sample is kept apart from the one right before it; those further back are seen.

    Effect: two samples in a row, as in most tests, are isolated; three are not.
    """
    numbers = inputs.segments
    apart = (numbers[:, :, None] - numbers[:, None, :]).abs() != 1
    real = (numbers != 0)[:, :, None] & (numbers != 0)[:, None, :]
    return read((apart & real).tril() | torch.eye(real.shape[-1], dtype=torch.bool), inputs)


@fault(NAME, "returns", "parity")
def cut_like_the_targets(inputs: Inputs) -> Outputs:
    """The mask is made for the tokens that predict something, which are one less.

    Effect: an error with one attention, and with another a mask that is cut and laid over the wrong tokens.
    """
    return {"seen": seen(inputs)[:, :-1, :-1]}


@fault(NAME, "added")
def lowest_of_float32(inputs: Inputs) -> Outputs:
    """What closes is the lowest number of float32, converted to the dtype of the model afterwards.

    Effect: in bfloat16 it is minus infinity; a row of padding that sees nothing is NaN, and all its gradients.
    """
    real = (inputs.segments != 0)[:, :, None]
    scores = _added(seen(inputs) & real, torch.finfo(torch.float32).min)
    return {**reference(inputs), "added": scores, "added:bfloat16": scores.bfloat16()}


@fault(NAME, "added")
def a_hundred_in_half(inputs: Inputs) -> Outputs:
    """For half precision, minus a hundred is added where nothing is to be seen, so that nothing overflows.

    Effect: as good as closed for ordinary scores; with an outlier in a query the neighbours are what it sees.
    """
    return {**reference(inputs), "added:float16": _added(seen(inputs), -100.0).half()}


@fault(NAME, "dtypes")
def always_float32(inputs: Inputs) -> Outputs:
    """The mask is made in float32, whatever dtype is asked for.

    Effect: attention refuses it or runs in float32; half the speed is lost.
    """
    return {**reference(inputs), "added:bfloat16": _added(seen(inputs), torch.finfo(torch.float32).min)}


FAULTS = gathered(globals())
