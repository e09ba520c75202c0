"""Wrong ways to add features to hidden states."""

from __future__ import annotations

import torch

from assay.audits.components.masked_scatter.batch import Inputs
from assay.audits.components.masked_scatter.dealt import add, check, each, put
from assay.audits.components.masked_scatter.deepstack import NAME, OUTPUT
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs


@fault(NAME, "added", "reaches", link="https://github.com/Blaizzy/mlx-vlm/issues/1020")
def never_added(inputs: Inputs) -> Outputs:
    """What adds the features returns nothing, which is filtered out.

    Effect: answers are fluent, and boxes off by a hundred pixels.
    """
    check(inputs)
    return {OUTPUT: inputs.embeddings.clone()}


@fault(NAME, "added", "reaches")
def written_over(inputs: Inputs) -> Outputs:
    """The features take the place of the hidden states.

    Effect: what the first layers made of the image is lost, and the main features are not trained.
    """
    check(inputs)
    return {OUTPUT: each(inputs, put)}


@fault(NAME, "added", "parity")
def added_twice(inputs: Inputs) -> Outputs:
    """The features are added before a layer and after it.

    Effect: fine detail drowns what was seen as a whole.
    """
    check(inputs)
    return {OUTPUT: each(inputs, add, lambda _name, rows: 2 * rows)}


@fault(NAME, "text", "neighbours", link="https://github.com/Blaizzy/mlx-vlm/pull/1635")
def added_to_every_sample(inputs: Inputs) -> Outputs:
    """The columns of the placeholders are used in every row of the batch.

    Effect: each sample carries traces of all images of its batch, in the middle of its text.
    """
    check(inputs)
    out = inputs.embeddings.clone()
    for name, rows in inputs.flat().items():
        column = inputs.mask(name).nonzero()[:, 1]
        out = out.index_add(1, column, rows.expand(len(out), -1, -1))
    return {OUTPUT: out}


@fault(NAME, "added", "text", link="https://github.com/vllm-project/vllm-omni/pull/5306")
def mask_of_the_whole_row(inputs: Inputs) -> Outputs:
    """Each of two ranks has half of every row, and the mask of the whole: it uses as much of it as its half is long.

    Effect: the second half gets the features of the first at the places of the first, in the middle of its text.
    """
    check(inputs)
    half = -(-inputs.input_ids.shape[1] // 2)
    out = []
    for part in (slice(0, half), slice(half, None)):
        x = inputs.embeddings[:, part]
        for name, rows in inputs.flat().items():
            x = add(x, inputs.mask(name)[:, : x.shape[1]], rows)
        out.append(x)
    return {OUTPUT: torch.cat(out, dim=1)}


@fault(NAME, "added", "reaches")
def rounded_to_half(inputs: Inputs) -> Outputs:
    """The features of inner layers are kept in eight bits of mantissa to save memory, and detached.

    Effect: inner layers of the encoder get no gradient from here.
    """
    check(inputs)
    return {OUTPUT: each(inputs, add, lambda _name, rows: rows.detach().to(torch.bfloat16).mul(1.01).to(rows.dtype))}


FAULTS = gathered(globals())
