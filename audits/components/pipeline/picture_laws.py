"""The law of the pictures within a sample: which pixels come from which."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from assay.audits.components.pipeline.views import GRIDS, PIXELS, View, alone, view
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Inexpressible
from assay.reference import vision_rope
from assay.reference.vision_rope import VISION_TOWERS


def pictures(trial: Trial) -> Iterator[Evidence]:
    """The negative of one picture of a sample changes the pixels in its place, by reading order, and no others.

    Why: nothing but their order says which picture a question means by the first. Counts, grids and scores agree where
    two of one size are exchanged, or one stands for all. A picture whose negative changes nothing, where that of
    another does, is not looked at.

    Example: images collected through a set of their names.
    """
    found = view(trial)
    changed = {
        (sample, number): rows
        for sample in found.samples
        for number, rows in _negatives(trial, sample, alone(trial, sample))
    }
    if not any(bool(rows.any()) for rows in changed.values()):
        raise Inexpressible("no pixels come from pictures of the samples that can be changed, with a grid for each")
    for (sample, number), rows in changed.items():
        start, stop = _place(alone(trial, sample), number)
        told = f"the negative of picture {number} of sample {sample}"
        if not bool(rows[start:stop].any()):
            message = f"{told} does not change the pixels in its place"
        elif bool(rows[:start].any() or rows[stop:].any()):
            message = f"{told} changes the pixels of others"
        else:
            continue
        seen = torch.nonzero(rows).flatten().tolist()
        measured = f"patches {seen[0]} to {seen[-1]}" if seen else "none"
        yield Evidence(
            where=PIXELS["image"], measured=measured, limit=f"patches {start} to {stop - 1}", message=message,
            index=(sample,),
        )  # fmt: skip
        return


def patches(trial: Trial) -> Iterator[Evidence]:
    """The negative of a quarter of a picture changes a rectangle of patches, in the order in which the tower counts.

    Why: a tower numbers its patches by the grid alone: row by row, or block by block where several become one token.
    Patches that are handed over in another order each get the place of another one. All counts agree, answers are
    fluent, and small print cannot be read. Which rectangle it is, is not asked: images may be cropped and turned.

    Example: patches cut row by row for a tower that counts them in blocks of two by two.
    """
    found = view(trial)
    rule, merge = found.facts["rule"], found.facts["spatial_merge"]
    if rule not in VISION_TOWERS or not merge:
        raise Inexpressible("the order in which the tower counts patches is not known")
    merge, seen = merge if VISION_TOWERS[rule].merged else 1, 0
    for sample in found.samples:
        single = alone(trial, sample)
        for number, rows in _negatives(trial, sample, single, corner=True):
            start, stop = _place(single, number)
            own, grid = rows[start:stop], single.tensors[GRIDS["image"]][number - 1]
            if int(grid[0]) != 1 or not bool(own.any()) or bool(own.all()):
                continue
            seen += 1
            if not _is_rectangular(own, grid, merge):
                yield Evidence(
                    where=PIXELS["image"], measured=_listed(own), limit="a rectangle of patches", index=(sample,),
                    message=f"a quarter of picture {number} of sample {sample} is spread over others",
                )  # fmt: skip
                return
    if not seen:
        raise Inexpressible("no pixels come from pictures of several patches that can be changed in part")


def _is_rectangular(changed: Tensor, grid: Tensor, merge: int) -> bool:
    """Whether the changed patches of an image fill a rectangle, counted as the tower does."""
    places = vision_rope.patch_coordinates(grid[None].cpu(), merge=merge)[:, changed]
    return int((places.amax(1) - places.amin(1) + 1).prod()) == int(changed.sum())


def _listed(changed: Tensor) -> str:
    places = [str(place) for place in torch.nonzero(changed).flatten().tolist()]
    return f"patches {', '.join(places[:12])}{' ...' if len(places) > 12 else ''}" if places else "none"


def _negatives(trial: Trial, sample: int, single: View, *, corner: bool = False) -> Iterator[tuple[int, Tensor]]:
    """By the number of a picture, which patches its negative changes; nothing where another grid comes of it."""
    grids, pixels = single.get(GRIDS["image"]), single.get(PIXELS["image"])
    if grids is None or pixels is None or len(grids) != len(single.record["pictures"][0]):
        return
    if pixels.ndim != 2 or len(pixels) != int(grids.prod(-1).sum()):
        return
    for number in range(1, len(grids) + 1):
        try:
            other = alone(trial, sample, negative=number, corner=corner)
        except Inexpressible:
            continue
        again, values = other.get(GRIDS["image"]), other.get(PIXELS["image"])
        if again is not None and values is not None and torch.equal(again, grids) and values.shape == pixels.shape:
            yield number, (values != pixels).any(-1)


def _place(single: View, number: int) -> tuple[int, int]:
    """The patches of a picture by its number, from 1 on."""
    ends = single.tensors[GRIDS["image"]].long().prod(-1).cumsum(0).tolist()
    return (ends[number - 2] if number > 1 else 0), ends[number - 1]
