"""Wrong ways of choosing blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch

from assay.audits.components.block_masks.drawn import Sheet
from assay.audits.components.block_masks.sample import NAME, Inputs, reference
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs
from assay.reference import block_masks

Rectangle = tuple[int, int, int, int]
Pick = Callable[[Inputs, torch.Generator], tuple[int, int]]


def placed(inputs: Inputs, pick: Pick) -> Outputs:
    """Blocks of the size asked for, whose first row and column ``pick`` chooses; the context is what is left."""
    return painted(inputs, lambda g: (*pick(inputs, g), *inputs.block))


def painted(inputs: Inputs, rectangle: Callable[[torch.Generator], Rectangle]) -> Outputs:
    """Rectangles (top, left, rows, columns), cut at the edge as a slice of a mask cuts them."""
    sheet, generator = Sheet(inputs.grid, inputs.block), inputs.generator()
    for _ in range(inputs.draws):
        masks = np.zeros((inputs.targets, *inputs.grid), dtype=bool)
        for mask in masks:
            top, left, rows, columns = rectangle(generator)
            mask[top : top + rows, left : left + columns] = True
        sheet.several((list(masks), ~masks.any(0)))
    return sheet.outputs()


def below(high: int, generator: torch.Generator) -> int:
    """A number from 0 to ``high`` - 1."""
    return int(torch.randint(0, high, (), generator=generator))


def right(inputs: Inputs, generator: torch.Generator) -> tuple[int, int]:
    """A place as the specification chooses it."""
    return block_masks.sample_block(inputs.grid, inputs.block, generator)


@fault(NAME, "larger", link="an H-JEPA training whose sampler failed on small grids, and its first mending")
def range_made_one(inputs: Inputs) -> Outputs:
    """Where the range of places is empty it is made to be one: ``randint(0, max(1, H - h + 1))``.

    Effect: the block begins at 0, runs over the edge and is cut there: smaller than asked for, in silence.
    """
    return placed(
        inputs,
        lambda own, g: (
            below(max(1, own.grid[0] - own.block[0] + 1), g),
            below(max(1, own.grid[1] - own.block[1] + 1), g),
        ),
    )


@fault(NAME, "larger", link="https://github.com/facebookresearch/ijepa/pull/40")
def shrunk_until_it_fits(inputs: Inputs) -> Outputs:
    """Sides that are larger than the grid are shortened until they fit.

    Effect: the scale of the configuration is not that of the run; with the wider crop it is again.
    """
    high, wide = (min(b, n) for b, n in zip(inputs.block, inputs.grid, strict=True))
    own = dataclasses.replace(inputs, block=(high, wide))
    return placed(own, right)


@fault(NAME, "area", "shape", link="https://github.com/facebookresearch/ijepa/pull/40")
def never_as_large_as_the_grid(inputs: Inputs) -> Outputs:
    """A side is shortened while it is not smaller than the grid, which it may well be as large as.

    Effect: with a ratio of 1.0 one row of every block is missing.
    """
    high, wide = (min(b, max(1, n - 1)) for b, n in zip(inputs.block, inputs.grid, strict=True))
    return placed(dataclasses.replace(inputs, block=(high, wide)), right)


@fault(NAME, "ends", "uniform", link="https://github.com/facebookresearch/ijepa/pull/40")
def last_place_left_out(inputs: Inputs) -> Outputs:
    """Places are drawn by ``randint(0, H - h)``, whose upper end is never drawn.

    Effect: the last row and column of patches are never predicted.
    """
    return placed(
        inputs,
        lambda own, g: (
            below(max(1, own.grid[0] - own.block[0]), g) + 0 * right(own, g)[0],
            below(max(1, own.grid[1] - own.block[1]), g),
        ),
    )


@fault(NAME, "raises", "ends", link="https://github.com/facebookresearch/ijepa/pull/40")
def empty_range_for_a_whole_side(inputs: Inputs) -> Outputs:
    """Places are drawn by ``randint(0, H - h)``, which is an error where the block is as large as the grid.

    Effect: a run that asks for whole rows stops at its first batch.
    """
    return placed(inputs, lambda own, g: (below(own.grid[0] - own.block[0], g), below(own.grid[1] - own.block[1], g)))


@fault(NAME, "area", "shape")
def over_the_edge(inputs: Inputs) -> Outputs:
    """A block begins at any patch of the grid and is cut at the edge.

    Effect: blocks are smaller the closer they are to the edge, by half on average where they are large.
    """
    return placed(inputs, lambda own, g: (below(own.grid[0], g) + 0 * right(own, g)[0], below(own.grid[1], g)))


@fault(NAME, "inside", "area")
def numbers_beyond_the_grid(inputs: Inputs) -> Outputs:
    """As numbers of patches, what begins anywhere runs on beyond the last one.

    Effect: the gather fails for some batches, or fetches from the next sample.
    """
    sheet, generator = Sheet(inputs.grid, inputs.block), inputs.generator()
    width = inputs.grid[1]
    for _ in range(inputs.draws):
        right(inputs, generator)
        first = below(inputs.grid[0] * width, generator)
        rows, columns = range(inputs.block[0]), range(inputs.block[1])
        sheet.numbers([first + row * width + column for row in rows for column in columns])
    return sheet.outputs()


@fault(NAME, "uniform")
def moved_into_the_grid(inputs: Inputs) -> Outputs:
    """A place is drawn among all rows and columns, then moved to where the block fits: ``min(randint(0, H), H - h)``.

    Effect: most blocks lie at the lower right edge; the upper left is context nearly always.
    """
    return placed(
        inputs,
        lambda own, g: (
            min(below(own.grid[0], g) + 0 * right(own, g)[0], own.grid[0] - own.block[0]),
            min(below(own.grid[1], g), own.grid[1] - own.block[1]),
        ),
    )


@fault(NAME, "uniform")
def drawn_around_the_middle(inputs: Inputs) -> Outputs:
    """The middle of two draws is taken.

    Effect: the middle of the image is predicted and its corners hardly ever.
    """

    def pick(own: Inputs, generator: torch.Generator) -> tuple[int, int]:
        one, other = right(own, generator), right(own, generator)
        return (one[0] + other[0]) // 2, (one[1] + other[1]) // 2

    return placed(inputs, pick)


@fault(NAME, "uniform")
def one_draw_for_both_axes(inputs: Inputs) -> Outputs:
    """The same fraction is used for the row and the column.

    Effect: blocks lie on the diagonal.
    """

    def pick(own: Inputs, generator: torch.Generator) -> tuple[int, int]:
        right(own, generator)
        fraction = float(torch.rand((), generator=generator))
        return int(fraction * own.places[0]), int(fraction * own.places[1])

    return placed(inputs, pick)


@fault(NAME, "shape")
def rows_and_columns_swapped(inputs: Inputs) -> Outputs:
    """The aspect is read as width over height, so that sides change places where they fit.

    Effect: on a square grid nothing fails, and blocks lie where they should stand.
    """
    rows, columns = inputs.block
    if columns > inputs.grid[0] or rows > inputs.grid[1]:
        return reference(inputs)
    return placed(dataclasses.replace(inputs, block=(columns, rows)), right)


@fault(NAME, "shape")
def counted_by_the_height(inputs: Inputs) -> Outputs:
    """Numbers of patches are made with the height of the grid where its width belongs.

    Effect: right on square grids; on others a block is a slanted stripe.
    """
    sheet, generator = Sheet(inputs.grid, inputs.block), inputs.generator()
    for _ in range(inputs.draws):
        top, left = right(inputs, generator)
        rows, columns = range(top, top + inputs.block[0]), range(left, left + inputs.block[1])
        count = inputs.grid[0] * inputs.grid[1]
        sheet.numbers(sorted({(row * inputs.grid[0] + column) % count for row in rows for column in columns}))
    return sheet.outputs()


@fault(NAME, "area")
def side_cut_not_rounded(inputs: Inputs) -> Outputs:
    """Sides are cut to whole numbers after a root that is a little too small.

    Effect: blocks of 3 rows have 2, for some aspects and not for others.
    """
    rows, columns = (int(side - 1e-9) for side in inputs.block)
    return placed(dataclasses.replace(inputs, block=(max(1, rows), max(1, columns))), right)


@fault(NAME, "once")
def drawn_with_repetition(inputs: Inputs) -> Outputs:
    """To bring all blocks to one length, patches are drawn from the block, some twice.

    Effect: some patches weigh twice, others are left out.
    """
    sheet, generator = Sheet(inputs.grid, inputs.block), inputs.generator()
    for _ in range(inputs.draws):
        top, left = right(inputs, generator)
        rows, columns = range(top, top + inputs.block[0]), range(left, left + inputs.block[1])
        block = [row * inputs.grid[1] + column for row in rows for column in columns]
        sheet.numbers([block[below(len(block), generator)] for _ in block])
    return sheet.outputs()


@fault(NAME, "independent", "uniform")
def one_place_for_all(inputs: Inputs) -> Outputs:
    """The place is drawn once for the batch.

    Effect: all samples of a batch hide the same patches.
    """
    place = right(inputs, inputs.generator())
    return placed(inputs, lambda own, g: (right(own, g), place)[1])


@fault(NAME, "independent")
def neighbour_has_the_same(inputs: Inputs) -> Outputs:
    """Each draw is used for two samples, one after the other.

    Effect: half the variety that the size of the batch promises.
    """
    places: list[tuple[int, int]] = []

    def pick(own: Inputs, generator: torch.Generator) -> tuple[int, int]:
        fresh = right(own, generator)
        places.append(fresh if len(places) // inputs.targets % 2 == 0 else places[-inputs.targets])
        return places[-1]

    return placed(inputs, pick)


@fault(NAME, "seeds", "independent")
def generator_not_used(inputs: Inputs) -> Outputs:
    """The generator is accepted, and another one drawn from, which is made anew with a seed of its own.

    Effect: every epoch and every rank hides the same patches.
    """
    right(inputs, inputs.generator())
    return placed(inputs, lambda own, _: right(own, torch.Generator().manual_seed(0)))


@fault(NAME, "nondeterministic")
def drawn_from_what_all_share(inputs: Inputs) -> Outputs:
    """The generator is accepted, and the global one drawn from.

    Effect: two runs with one seed differ as soon as anything else draws a number.
    """
    right(inputs, inputs.generator())
    return placed(inputs, lambda own, _: right(own, torch.default_generator))


@fault(NAME, "context")
def first_target_taken_out(inputs: Inputs) -> Outputs:
    """The context is what is left by the first target; the others stay in it.

    Effect: three of four targets can be copied from the context.
    """
    found = dict(reference(inputs))
    return {**found, "context": (found["covered"][:, 0] == 0).long()}


@fault(NAME, "mutates")
def seed_counted_up(inputs: Inputs) -> Outputs:
    """The seed is counted up in the memory of whoever handed it over.

    Effect: a second sampler, that shares the tensor, draws something else after each call of the first.
    """
    found = reference(inputs)
    inputs.seed.add_(1)
    return found


@fault(NAME, "leaks")
def generator_of_all_seeded(inputs: Inputs) -> Outputs:
    """The global generator is seeded, to have the same blocks again.

    Effect: every dropout mask of the run is the same.
    """
    torch.manual_seed(int(inputs.seed))
    return reference(inputs)


FAULTS = gathered(globals())
