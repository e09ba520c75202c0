"""The laws of blocks at random places. Those of chance speak only of what a right sampler hardly ever does."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from assay.audits.components.block_masks.sample import NAME, Inputs
from assay.audits.laws.chance import ALARM, tail
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Inexpressible, Law, Operation


def inside(trial: Trial) -> Iterator[Evidence]:
    """A block has no patch outside of the grid, and an index names a patch that is there.

    Why: an index beyond the last patch ends in an error deep inside a gather, or fetches from the next sample. A block
    that runs over the right edge goes on at the left one, where nobody expects it.

    Example: a block that begins at 0 whatever its size, where it is larger than the grid.
    """
    stray = trial.outcome.values["stray"]
    if bool(stray.any()):
        index = tuple(int(i) for i in stray.nonzero()[0])
        yield Evidence(
            where="blocks", measured=f"{int(stray[index])} patches outside", limit="none", index=index,
            message=f"a block of {_size(trial.inputs.block)} leaves the grid of {_size(trial.inputs.grid)}",
        )  # fmt: skip


def area(trial: Trial) -> Iterator[Evidence]:
    """A block has as many patches as were asked for.

    Why: how much is hidden decides how hard the task is. What is cut at an edge is a smaller block, of which neither
    the loss nor a log tells.

    Example: sides that are shortened until they fit.
    """
    inputs: Inputs = trial.inputs
    named = (trial.outcome.values["covered"] > 0).flatten(2).sum(-1)
    wrong = named != inputs.area
    if bool(wrong.any()):
        index = tuple(int(i) for i in wrong.nonzero()[0])
        yield Evidence(
            where="blocks", measured=float(named[index]), limit=float(inputs.area), index=index,
            message=f"{int(wrong.sum())} of {wrong.numel()} blocks have another area than asked for",
        )  # fmt: skip


def shape(trial: Trial) -> Iterator[Evidence]:
    """A block is one rectangle, with as many rows and columns as were asked for.

    Why: rows and columns are easily swapped, and nothing fails on a square grid. A block whose indices wrap around the
    edge of the grid is two strips.

    Example: a first patch and numbers from there on that are computed with the height of the grid for its width.
    """
    inputs: Inputs = trial.inputs
    named = trial.outcome.values["covered"] > 0
    spans = [_span(named.any(axis)) for axis in (-1, -2)]
    full = spans[0] * spans[1] == named.flatten(2).sum(-1)
    right = full & (spans[0] == inputs.block[0]) & (spans[1] == inputs.block[1])
    if not bool(right.all()):
        index = tuple(int(i) for i in (~right).nonzero()[0])
        found = _size((int(spans[0][index]), int(spans[1][index])))
        yield Evidence(
            where="blocks", measured=found if full[index] else f"within {found}, with gaps", limit=_size(inputs.block),
            index=index, message=f"{int((~right).sum())} of {right.numel()} blocks are of another shape",
        )  # fmt: skip


def once(trial: Trial) -> Iterator[Evidence]:
    """The indices of a block name each patch once, in rising order.

    Why: a patch that is named twice weighs twice, and what is gathered by indices that do not rise has lost its order:
    positions that are added afterwards belong to other patches.

    Example: indices that are drawn, or shuffled, to cut all blocks of a batch to one length.
    """
    values = trial.outcome.values
    wrong = (values["covered"] > 1).flatten(2).any(-1) | ~values["rising"]
    if bool(wrong.any()):
        index = tuple(int(i) for i in wrong.nonzero()[0])
        twice = int(values["covered"][index].max())
        found = f"a patch named {twice} times" if twice > 1 else "not rising"
        yield Evidence(
            where="blocks", measured=found, limit="once, rising", index=index,
            message=f"the indices of {int(wrong.sum())} of {wrong.numel()} blocks",
        )  # fmt: skip


def larger(trial: Trial) -> Iterator[Evidence]:
    """A block that is larger than the grid is an error, or has the area that was asked for in another shape.

    Why: a range of places that is empty is the one sign that a configuration cannot be fulfilled: a smaller crop, a
    larger scale. Made to be one place, the block is cut at the edge and the run goes on with another task.

    Example: ``randint(0, max(1, H - h + 1))`` for a range that was empty.
    """
    inputs: Inputs = trial.inputs
    (rows, columns), (high, wide) = inputs.block, inputs.grid
    for block in dict.fromkeys([(high + 1, columns), (rows, wide + 1), (high + 1, wide + 1), (2 * high + 1, columns)]):
        outcome = trial.attempt(dataclasses.replace(inputs, block=block, draws=1))
        if outcome.raised:
            continue
        values = outcome.values
        named = (values["covered"] > 0).flatten(2).sum(-1)
        if bool(values["stray"].any()) or bool((named != block[0] * block[1]).any()):
            yield Evidence(
                where="blocks", measured=f"{int(named.min())} patches", limit=f"{block[0] * block[1]}, or an error",
                message=f"a block of {_size(block)} was accepted for a grid of {_size(inputs.grid)}",
            )  # fmt: skip
            return


def ends(trial: Trial) -> Iterator[Evidence]:
    """The first and the last row and column where a block fits are places where it begins.

    Why: what no block ever covers is never predicted, and always seen. A range of whole numbers whose end is left out
    loses the last row and the last column of every image.

    Example: ``randint(0, H - h)``.
    """
    inputs: Inputs = trial.inputs
    asked = False
    for axis, name in enumerate(("row", "column")):
        count = inputs.places[axis]
        if count == 1 or tail(0, inputs.draws, 1 / count) > ALARM:
            continue
        asked = True
        starts = _starts(trial.outcome.values["covered"])[axis]
        for place in (0, count - 1):
            if not bool((starts == place).any()):
                yield Evidence(
                    where="blocks", measured=f"never at {name} {place}", limit=f"{name}s 0 to {count - 1}",
                    message=f"{starts.numel()} blocks of {_size(inputs.block)} on a grid of {_size(inputs.grid)}",
                )  # fmt: skip
    if not asked:
        raise Inexpressible("the block has one place, or there are too few draws to tell")


def uniform(trial: Trial) -> Iterator[Evidence]:
    """Each place where a block fits is as likely as any other.

    Why: patches that are hidden more often are trained on more often. What is drawn too large and then moved into the
    grid lies at its edge most of the time.

    Example: ``min(randint(0, H), H - h)``.
    """
    inputs: Inputs = trial.inputs
    top, left = _starts(trial.outcome.values["covered"])
    rows, columns = inputs.places
    tests = top.shape[1] * (rows + columns + rows * columns)
    for block in range(top.shape[1]):
        both = top[:, block] * columns + left[:, block]
        for what, starts, count in (
            ("row", top[:, block], rows), ("column", left[:, block], columns), ("place", both, rows * columns),
        ):  # fmt: skip
            counts = starts.clamp(0, count - 1).bincount(minlength=count).tolist()
            chances = [tail(hits, inputs.draws, 1 / count) for hits in counts]
            place = chances.index(min(chances))
            if chances[place] * tests < ALARM:
                yield Evidence(
                    where="blocks", measured=float(counts[place]), limit=inputs.draws / count, index=(block,),
                    message=f"{what} {place} of {count} was chosen {counts[place]} times in {inputs.draws} draws",
                )  # fmt: skip
                return


def independent(trial: Trial) -> Iterator[Evidence]:
    """A draw does not depend on the one before it, nor a block on its neighbour.

    Why: one place for all samples of a batch, or for all blocks of a sample, is a smaller batch under the same name:
    the gradient is noisier and nothing says so.

    Example: a generator that is seeded anew for each sample.
    """
    inputs: Inputs = trial.inputs
    top, left = _starts(trial.outcome.values["covered"])
    places = inputs.places[0] * inputs.places[1]
    if places == 1 or inputs.draws < 2:
        raise Inexpressible("the block has one place")
    both = top * inputs.places[1] + left
    pairs = {"of the draw before": both[1:, 0] == both[:-1, 0]}
    if both.shape[1] > 1:
        pairs["of the block before"] = both[:, 1] == both[:, 0]
    for what, same in pairs.items():
        if tail(int(same.sum()), len(same), 1 / places) * len(pairs) < ALARM:
            yield Evidence(
                where="blocks", measured=float(same.sum()), limit=len(same) / places,
                message=f"the place {what} was chosen again {int(same.sum())} times in {len(same)}",
            )  # fmt: skip


def seeds(trial: Trial) -> Iterator[Evidence]:
    """A generator with another seed gives other blocks.

    Why: a sampler that is given a generator and does not draw from it hides the same patches in every epoch and on
    every rank, or draws from what all share, and no run can be repeated.

    Example: places that are computed from the size of the block.
    """
    inputs: Inputs = trial.inputs
    places = inputs.places[0] * inputs.places[1]
    if places ** -float(inputs.draws) > ALARM:
        raise Inexpressible("there are too few places to tell")
    other = trial.run(dataclasses.replace(inputs, seed=inputs.seed + 1))["covered"]
    if torch.equal(trial.outcome.values["covered"], other):
        yield Evidence(
            where="blocks", measured="the same blocks", limit="other blocks",
            message=f"{inputs.draws} draws with two seeds are alike",
        )  # fmt: skip


def context(trial: Trial) -> Iterator[Evidence]:
    """The context has no patch of a target.

    Why: what is to be predicted and can be seen is copied. The loss falls, and nothing is learnt.

    Example: a context from which the first target alone was taken out.
    """
    values = trial.outcome.values
    if "context" not in values:
        raise Inexpressible("the answer has no context")
    seen = (values["context"][:, None] > 0) & (values["covered"] > 0)
    if bool(seen.any()):
        index = tuple(int(i) for i in seen.nonzero()[0])
        yield Evidence(
            where="context", measured=f"{int(seen.sum())} patches", limit="none", index=index,
            message=f"the context has patches of the target {index[1]}",
        )  # fmt: skip


def _starts(covered: Tensor) -> tuple[Tensor, Tensor]:
    """The first row and the first column of each block [N,K]."""
    named = covered > 0
    return named.any(-1).int().argmax(-1), named.any(-2).int().argmax(-1)


def _span(named: Tensor) -> Tensor:
    """From the first to the last that is named along the last axis, both counted; 0 where none is."""
    last = named.shape[-1] - named.flip(-1).int().argmax(-1)
    return torch.where(named.any(-1), last - named.int().argmax(-1), 0)


def _size(sides: tuple[int, int]) -> str:
    return f"{sides[0]} x {sides[1]}"


def _several(_operation: Operation, case: Any) -> str | None:
    return None if case.grid != case.block else "the block has one place"


_law = partial(Law.of, (NAME,))

LAWS = (
    _law(inside), _law(area), _law(shape), _law(once), _law(larger), _law(ends, _several), _law(uniform, _several),
    _law(independent, _several), _law(seeds, _several), _law(context),
)  # fmt: skip
