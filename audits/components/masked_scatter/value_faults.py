"""Wrong forms of both operations that are right for ordinary numbers, few places, small ids and small batches."""

from __future__ import annotations

import torch
from torch import Tensor

from assay.audits.components.masked_scatter.batch import Inputs
from assay.audits.components.masked_scatter.dealt import Deal, both, check, each, pairs
from assay.audits.terms import Fault

GROUP = 4


@both("blank")
def zeros_taken_for_padding(inputs: Inputs, deal: Deal) -> Tensor:
    """Rows of zeros are dropped as the tower's padding before features are counted.

    Effect: an image with a black corner stops the run, or moves all features behind it.
    """
    own = {name: rows[(rows != 0).any(-1)] for name, rows in inputs.flat().items()}
    for name, rows in own.items():
        if len(rows) != int(inputs.mask(name).sum()):
            message = f"{name}: {int(inputs.mask(name).sum())} placeholders, {len(rows)} features"
            raise ValueError(message)
    check(inputs)
    return each(inputs, deal, lambda name, _rows: own[name])


@both("blank")
def media_known_by_their_beginning(inputs: Inputs, deal: Deal) -> Tensor:
    """An image is kept under its size and its first feature, and looked up when it comes again.

    Effect: two screenshots with the same upper left corner are one, and only the first trains the tower.
    """
    check(inputs)

    def kept(name: str, rows: Tensor) -> Tensor:
        known: dict[tuple[int, float], Tensor] = {}
        parts = torch.split(rows, inputs.media(name)) if sum(inputs.media(name)) == len(rows) else (rows,)
        return torch.cat([known.setdefault((len(own), float(own[0].detach().sum())), own) for own in parts])

    return each(inputs, deal, kept)


@both("magnitude")
def through_float16(inputs: Inputs, deal: Deal) -> Tensor:
    """Features in bfloat16 are kept in float16, which has as many bits.

    Effect: the few large activations that a tower has are infinite from here on.
    """
    check(inputs)
    own = torch.float16 if inputs.embeddings.dtype == torch.bfloat16 else inputs.embeddings.dtype
    return each(inputs, deal, lambda _name, rows: rows.to(own).to(rows.dtype))


@both("loud")
def gradients_made_numbers(inputs: Inputs, deal: Deal) -> Tensor:
    """A hook on the features replaces what is not a number in their gradient.

    Effect: a loss scaler does not see the overflow, and the step is made with what is left.
    """
    check(inputs)

    def hooked(_name: str, rows: Tensor) -> Tensor:
        own = rows.clone()
        if own.requires_grad:
            own.register_hook(torch.nan_to_num)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return own

    return each(inputs, deal, hooked)


@both("raises")
def ids_in_the_embeddings_dtype(inputs: Inputs, deal: Deal) -> Tensor:
    """Ids are compared in the dtype of the embeddings, in which 151655 and 151656 are one number.

    Effect: with images and videos in a batch counts do not fit, or each takes the other's places.
    """
    ids = inputs.input_ids.to(inputs.embeddings.dtype)
    x = inputs.embeddings.clone()
    for name, placeholder in inputs.placeholders().items():
        mask, rows = ids == placeholder, inputs.flat().get(name, x.new_zeros(0, inputs.width))
        if int(mask.sum()) != len(rows):
            message = f"{name}: {int(mask.sum())} placeholders, {len(rows)} features"
            raise ValueError(message)
        x = deal(x, mask, rows)
    return x


@both("parity", "micro")
def counted_in_low_precision(inputs: Inputs, deal: Deal) -> Tensor:
    """The number of placeholders before each place is summed in the dtype of the embeddings.

    Effect: from the 257th place on every second feature is put twice and the others never, in bfloat16 alone.
    """
    check(inputs)

    def found(_name: str, rows: Tensor) -> Tensor:
        return rows[torch.ones(len(rows), dtype=rows.dtype, device=rows.device).cumsum(0).long() - 1]

    return each(inputs, deal, found)


@both("parity", "order")
def counted_within_groups(inputs: Inputs, deal: Deal) -> Tensor:
    """Samples are taken four at a time, and each group but the first begins where the one before it had its length.

    Effect: from the ninth sample on images are those of other samples.
    """
    check(inputs)

    def moved(name: str, rows: Tensor) -> Tensor:
        counts = [int(group.sum()) for group in torch.split(inputs.mask(name), GROUP)]
        starts = [0, *counts[:-1]]
        parts = [rows[a : a + n] for a, n in zip(starts, counts, strict=True)]
        found = torch.cat([*parts, rows[:0]])
        return torch.cat([found, rows[len(found) :]])

    return each(inputs, deal, moved)


@both("parity", "reaches")
def first_block_of_channels(inputs: Inputs, deal: Deal) -> Tensor:
    """A kernel has one block of 1024 channels, and nobody asks how many there are.

    Effect: large models keep the placeholder's embedding in their last channels.
    """
    check(inputs)
    x = each(inputs, deal)
    return torch.cat([x[..., :1024], inputs.embeddings[..., 1024:]], dim=-1)


FAULTS: tuple[Fault, ...] = pairs(globals())
