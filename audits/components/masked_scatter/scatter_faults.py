"""Wrong ways to put features into embeddings."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from assay.audits.components.masked_scatter.batch import Inputs
from assay.audits.components.masked_scatter.dealt import check, each, put
from assay.audits.components.masked_scatter.scatter import NAME, OUTPUT, reference
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs


@fault(NAME, "surplus", "numbers", link="https://github.com/huggingface/transformers/pull/33608")
def masked_scatter_alone(inputs: Inputs) -> Outputs:
    """``masked_scatter`` with nothing before it: it takes what it needs from the front of the features.

    Effect: too many are dropped in silence; too few are an error without numbers, on a GPU the end of the process.
    """
    x = inputs.embeddings
    for name in ("image", "video", "audio"):
        mask, rows = inputs.mask(name), inputs.flat().get(name, x.new_zeros(0, inputs.width))
        x = x.masked_scatter(mask[..., None].expand_as(x), rows)
    return {OUTPUT: x}


@fault(NAME, "raises")
def samples_of_equal_counts(inputs: Inputs) -> Outputs:
    """Features are reshaped to one block for each sample.

    Effect: the first ragged batch, or the first one without an image, stops the run.
    """
    check(inputs)
    batch = len(inputs.input_ids)
    return {OUTPUT: each(inputs, put, lambda _name, rows: rows.view(batch, -1, inputs.width).flatten(0, 1))}


@fault(NAME, "alike", link="https://github.com/huggingface/transformers/issues/38012")
def compared_channel_by_channel(inputs: Inputs) -> Outputs:
    """Placeholders are where a channel of the embeddings equals that of the placeholder's embedding.

    Effect: any word that shares one number with it gets a piece of an image, and all that follows is moved.
    """
    check(inputs)
    x = inputs.embeddings
    for name, rows in inputs.flat().items():
        like = inputs.embeddings[inputs.mask(name)][0].detach()
        x = x.masked_scatter(inputs.embeddings.detach() == like, rows)
    return {OUTPUT: x}


@fault(NAME, "alike", link="https://github.com/huggingface/transformers/issues/38012")
def found_by_their_embedding(inputs: Inputs) -> Outputs:
    """Placeholders are where the embedding is the placeholder's, in all channels.

    Effect: a token that was initialised as a copy of it is taken for one.
    """
    check(inputs)
    x = inputs.embeddings
    for name, rows in inputs.flat().items():
        like = inputs.embeddings[inputs.mask(name)][0].detach()
        x = put(x, (inputs.embeddings == like).all(-1), rows)
    return {OUTPUT: x}


@fault(NAME, "unread")
def blended(inputs: Inputs) -> Outputs:
    """Embeddings and features are multiplied by a mask of ones and zeros, and added.

    Effect: a row of the vocabulary that was never initialised turns every image into NaN.
    """
    check(inputs)
    mask = inputs.masked()[..., None].to(inputs.embeddings.dtype)
    placed = each(inputs, lambda x, own, rows: put(torch.zeros_like(x) if x is inputs.embeddings else x, own, rows))
    return {OUTPUT: inputs.embeddings * (1 - mask) + placed * mask}


@fault(NAME, "visible")
def by_a_product_with_ones(inputs: Inputs) -> Outputs:
    """Features are dealt out by a matrix product with a matrix of ones and zeros.

    Effect: one overflow in one image makes all images of the batch NaN.
    """
    check(inputs)
    x = inputs.embeddings
    for name, rows in inputs.flat().items():
        mask = inputs.mask(name).flatten()
        ones = torch.zeros(len(mask), len(rows), dtype=x.dtype, device=x.device)
        ones[mask] = torch.eye(len(rows), dtype=x.dtype, device=x.device)
        x = torch.where(mask.view(inputs.input_ids.shape)[..., None], (ones @ rows).view_as(x), x)
    return {OUTPUT: x}


@fault(NAME, "placement", "parity")
def begun_one_place_later(inputs: Inputs) -> Outputs:
    """The first feature is taken for that of a start token, and the list begins with the second.

    Effect: every patch is one to the left of where it was seen; the model learns around it, other weights do not.
    """
    check(inputs)
    return {OUTPUT: each(inputs, put, lambda _name, rows: rows.roll(-1, 0))}


@fault(NAME, "placement")
def hidden_dimension_first(inputs: Inputs) -> Outputs:
    """Features that come as [H, N] are reshaped to [N, H] where they should be transposed.

    Effect: each row is a mixture of channels of many patches.
    """
    check(inputs)
    return {OUTPUT: each(inputs, put, lambda _name, rows: rows.t().reshape(rows.shape))}


@fault(NAME, "placement")
def features_normalised(inputs: Inputs) -> Outputs:
    """Features are divided by the square root of the width, as one family does it, for all.

    Effect: images enter the first layer at a fraction of the size that it was trained for.
    """
    check(inputs)
    return {OUTPUT: each(inputs, put, lambda _name, rows: rows / math.sqrt(1 + inputs.width))}


@fault(NAME, "reaches", "gradients")
def placeholders_trained(inputs: Inputs) -> Outputs:
    """A straight-through trick gives the gradient of each feature to the placeholder's embedding as well.

    Effect: the embedding of one id gets the gradients of all images, and clipping by norm scales down all others.
    """
    out = reference(inputs)[OUTPUT]
    own = torch.where(inputs.masked()[..., None], inputs.embeddings, 0.0)
    return {OUTPUT: out + (own - own.detach())}


@fault(NAME, "reaches", "gradients")
def text_detached(inputs: Inputs) -> Outputs:
    """The embeddings are detached, so that features can be written into them.

    Effect: the embedding layer, or the prompt that is tuned, never learns.
    """
    check(inputs)
    x: Tensor = inputs.embeddings.detach()
    for name, rows in inputs.flat().items():
        x = put(x, inputs.mask(name), rows)
    return {OUTPUT: x}


FAULTS = gathered(globals())
