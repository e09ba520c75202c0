"""Wrong packing plans."""

from __future__ import annotations

from collections.abc import Callable

import torch

from assay.audits.components.packed_positions.plan import NAME, Inputs, pieces
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs

BUFFER = 1000


def next_fit(
    inputs: Inputs, *, fits: Callable[[int, int], bool] | None = None, sizes: list[int] | None = None
) -> Outputs:
    """Samples in their order, a new pack whenever one does not fit: right, if ``fits`` and ``sizes`` are not given."""
    fits = fits or (lambda used, size: used + size <= inputs.capacity)
    packs: list[list[tuple[int, int, int]]] = [[]]
    used = 0
    for sample, start, stop in _pieces(inputs, sizes):
        if not fits(used, stop - start) and packs[-1]:
            packs.append([])
            used = 0
        used += stop - start
        packs[-1].append((sample, start, stop))
    return pieces(packs)


def _pieces(inputs: Inputs, sizes: list[int] | None = None) -> list[tuple[int, int, int]]:
    """What is to be packed, as the policy has it, in the order of the samples. ValueError where there is none."""
    found = []
    for sample, size in enumerate(inputs.sizes() if sizes is None else sizes):
        if size > inputs.capacity and inputs.overlong == "error":
            raise ValueError(f"sample {sample} has {size} tokens, a pack {inputs.capacity}")
        kept = size if size <= inputs.capacity or inputs.overlong == "split" else inputs.capacity
        kept = 0 if size > inputs.capacity and inputs.overlong == "drop" else kept
        starts = range(0, kept, inputs.capacity)
        found += [(sample, start, min(start + inputs.capacity, kept)) for start in starts]
    return found


@fault(NAME, "once")
def last_pack_lost(inputs: Inputs) -> Outputs:
    """Packs are handed on when they are full; the last one never is.

    Effect: the last samples of each shard are never trained on.
    """
    packed = next_fit(inputs)["pieces"]
    return {"pieces": packed[packed[:, 0] < packed[:, 0].max()] if len(packed) else packed}


@fault(NAME, "once")
def rest_of_a_buffer_lost(inputs: Inputs) -> Outputs:
    """A thousand samples are packed at a time, and the pack that is not full then is overwritten by the next thousand.

    Effect: a few samples of every thousand are never trained on; small tests have one buffer.
    """
    packed = next_fit(inputs)["pieces"]
    if len(inputs.lengths) <= BUFFER:
        return {"pieces": packed}
    own = packed[packed[:, 1] == BUFFER - 1, 0]
    return {"pieces": packed[packed[:, 0] != own[0]] if len(own) else packed}


@fault(NAME, "fits")
def room_without_the_newcomer(inputs: Inputs) -> Outputs:
    """A sample is added as long as the pack has any room left.

    Effect: packs are longer than what memory was reckoned for, or cut later in the middle of a sample.
    """
    return next_fit(inputs, fits=lambda used, _size: used < inputs.capacity)


@fault(NAME, "fills")
def one_sample_a_pack(inputs: Inputs) -> Outputs:
    """The test for room is the wrong way round: a sample fits where it does not.

    Effect: nothing is packed, and most of each row is padding.
    """
    return next_fit(inputs, fits=lambda used, size: used + size > 2 * inputs.capacity)


@fault(NAME, "whole")
def one_stream_cut_into_rows(inputs: Inputs) -> Outputs:
    """Samples are written one after the other and the stream is cut at every row's end.

    Effect: samples begin in one row and end in the next, without their question or with half an image.
    """
    capacity = inputs.capacity
    packs: dict[int, list[tuple[int, int, int]]] = {}
    offset = 0
    for sample, first, last in _pieces(inputs):
        start = first
        while start < last:
            stop = min(last, start + capacity - offset % capacity)
            packs.setdefault(offset // capacity, []).append((sample, start, stop))
            offset += stop - start
            start = stop
    return pieces(packs.values())


@fault(NAME, "overlong")
def overlong_dropped(inputs: Inputs) -> Outputs:
    """What does not fit into a pack is skipped, whatever was asked for.

    Effect: the samples with the most images are not in the training set, and nothing says so.
    """
    return next_fit(inputs, sizes=[size if size <= inputs.capacity else 0 for size in inputs.sizes()])


@fault(NAME, "once", "later")
def equal_lengths_are_one_sample(inputs: Inputs) -> Outputs:
    """Samples are looked up by their length, in a table with one entry for each.

    Effect: of all samples of a length the first is trained on again and again, the others never.
    """
    sizes, packed = inputs.sizes(), next_fit(inputs)["pieces"]
    by_size = {size: sample for sample, size in reversed(list(enumerate(sizes)))}
    packed[:, 1] = torch.tensor([by_size[sizes[sample]] for sample in packed[:, 1].tolist()], dtype=torch.int64)
    return {"pieces": packed}


@fault(NAME, "later")
def needs_sorted_lengths(inputs: Inputs) -> Outputs:
    """The longest sample is taken to be the first: all beyond its length are skipped.

    Effect: with samples that were sorted all is well; shuffled, the long ones are lost.
    """
    sizes = inputs.sizes()
    return next_fit(inputs, sizes=[size if size <= max(sizes[:1]) else 0 for size in sizes])


FAULTS = gathered(globals())
