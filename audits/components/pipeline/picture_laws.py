"""The laws of pictures: which pixels come from which, and how bright they are."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from assay.audits.components.pipeline.views import GRIDS, PIXELS, View, alone, drawn, view
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
        if not bool(rows.any()) and alone(trial, sample).record["draws"]:
            continue  # an augmentation may give a picture and its negative the same pixels
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
        if PIXELS["image"] in drawn(trial, samples=(sample,), first=0):
            continue  # a picture that is turned by some degrees has no rectangles
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


COLOURS = {"black": (0, 0, 0), "white": (255, 255, 255), "orange": (255, 128, 0)}
GREYS = 255
"""Steps from black to white: values that differ by less than one of them show the same."""
LOUD = (0.5, 50.0)
"""How far apart black and white may be of pixels that are normalised: released models have it between 1 and 5."""
LOOKED_AT = 4


def pixels(trial: Trial) -> Iterator[Evidence]:
    """A picture of one colour has the values that the pipeline's image processor gives that colour, to a grey level.

    Why: brightness is no matter of counts. Pixels that are scaled twice, not normalised, normalised by the numbers of
    another model or with red and blue exchanged look as well to every check of shapes, and a pretrained tower sees fog
    or other colours. Sizes, patches and the way of resizing do not matter to a picture of one colour.

    Example: an array of numbers between 0 and 1 that is handed to a processor, which divides it by 255 again.
    """
    found = view(trial)
    asked = 0
    for sample in found.samples:
        if asked >= LOOKED_AT or not alone(trial, sample).record["pictures"][0]:
            continue
        try:
            seen = _coloured(trial, sample)
        except Inexpressible:
            continue
        asked += 1
        ends = seen["white"][1] - seen["black"][1]
        step = ends.abs() / GREYS
        yield from _faint(found, ends.abs())
        for name, (got, want) in seen.items():
            off = (got - want).abs() - step
            if bool((off > 0).any()):
                row, place = divmod(int(off.argmax()), off.shape[-1])
                grey = ": it is grey" if name == "orange" and _is_grey((got - seen["black"][1]) / ends) else ""
                message = f"sample {sample}: a picture that is all {name} has other values than its processor gives it"
                message += grey
                measured, limit = f"{float(got[row, place]):.4f}", f"{float(want[place]):.4f}"
                yield Evidence(
                    where=PIXELS["image"], measured=measured, limit=limit, message=message, index=(row, place)
                )
                return
    if not asked:
        raise Inexpressible("no pixels come from pictures of the samples that can be painted, by an image processor")


def _faint(found: View, contrast: Tensor) -> Iterator[Evidence]:
    """A processor that normalises to hardly anything, or to far too much."""
    low, high = LOUD
    far = contrast[(contrast < low) | (contrast > high)]
    if found.facts.get("normalised") and far.numel():
        message = "black and white are as far apart as no normalised pixels are: scaled twice, or never"
        yield Evidence(
            where="image_processor", measured=f"{float(far[0]):.4g}", limit=f"{low} to {high}", message=message
        )


def _is_grey(shares: Tensor) -> bool:
    """Whether values [N,D] lie as far on the way from black to white in each channel."""
    return bool((shares.amax(-1) - shares.amin(-1) <= 2 / GREYS).all())


def _coloured(trial: Trial, sample: int) -> dict[str, tuple[Tensor, Tensor]]:
    """By colour the values [N,D] of what shows nothing else, and those [D] that a processor gives.

    Edges that a collator puts around a picture, in a colour of its own, are left out.
    """
    made = {name: _painted(trial, sample, colour) for name, colour in COLOURS.items()}
    (black, low), (white, high) = made["black"], made["white"]
    if black.shape != white.shape:
        raise Inexpressible("pictures of one size have pixels of several")
    ends = (high - low).abs().clamp(min=torch.finfo(torch.float64).tiny)
    share = (white - black).abs() / ends
    if not bool(share.any()):
        return made  # nothing shows the colour: the values are those of something else
    pure = (share.amax(-1) > 0) & (share.amax(-1) - share.amin(-1) <= EVEN * share.amax(-1))
    rows = pure if bool(pure.any()) else share.any(-1)
    return {name: (got[rows], want) for name, (got, want) in made.items()}


EVEN = 0.2
"""Of the way from black to white, by which channels may differ: numbers of normalisation do, by less than that."""


def _painted(trial: Trial, sample: int, colour: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The values [N,D] of each patch, or of each channel of each picture, and those [D] that a processor gives.

    Inexpressible where an augmentation draws, or the two lie in other forms.
    """
    single = alone(trial, sample, painted=colour)
    got, want = single.get(PIXELS["image"]), single.values.get("paint.pixels")
    if got is None or want is None or PIXELS["image"] in drawn(trial, samples=(sample,), first=0, painted=colour):
        raise Inexpressible("the pixels are drawn, or there are none")
    rows, whole = _rows(got), _rows(want)
    if rows.shape[-1] != whole.shape[-1] or not bool((whole == whole[0]).all()) or not len(rows):
        raise Inexpressible("the pixels of a picture in one colour are not alike")
    return rows, whole[0]


def _rows(values: Tensor) -> Tensor:
    """[N,D]: of patches [...,D] as they are, of pictures [...,C,H,W] the value of each channel that half of it has."""
    wide = values.double()
    if values.ndim < 4:
        return wide.reshape(-1, values.shape[-1])
    pictures = wide.reshape(-1, values.shape[-3], values.shape[-2] * values.shape[-1])
    found = pictures.median(-1).values
    return found[pictures.flatten(1).any(-1)]


SHADED = {"top": (0, 0, 0, 255, 255, 255, 0), "left": (0, 0, 0, 255, 255, 255, 1)}
"""Dark at one side, bright at the other."""


def upright(trial: Trial) -> Iterator[Evidence]:
    """A picture that is dark at the left and the top is so in its pixels, as in those that the image processor makes.

    Why: an answer about the left side is wrong for a picture that was mirrored. Counts, grids, brightness and colours
    are those of the picture; nothing but its contents tells.

    Example: rows of a picture that are read from the bottom, as some formats store them.
    """
    found = view(trial)
    asked = False
    for sample in found.samples:
        for edge, colours in SHADED.items():
            try:
                single = alone(trial, sample, painted=colours)
                turned = PIXELS["image"] in drawn(trial, samples=(sample,), first=0, painted=colours)
            except Inexpressible:
                break
            got, want = single.get(PIXELS["image"]), single.values["paint.pixels"]
            if got is None or turned or got.shape != want.shape:
                break
            asked = True
            here, there = (values.double() - values.double().mean() for values in (got, want))
            alike = float((here * there).sum() / (here.norm() * there.norm()).clamp(min=torch.finfo(here.dtype).tiny))
            if alike < ALIKE:
                message = f"sample {sample}: a picture that is dark at its {edge} lies otherwise in its pixels"
                measured, limit = f"correlation {alike:.2f}", f"at least {ALIKE}"
                yield Evidence(where=PIXELS["image"], measured=measured, limit=limit, message=message, index=(sample,))
                return
        if asked:
            return
    raise Inexpressible("no pixels come from pictures of the samples that can be painted, in the processor's sizes")


ALIKE = 0.5
"""Of pixels that are resized or cut otherwise, nearly 1; of a mirrored picture, -1; of one that is turned, nearly 0."""
