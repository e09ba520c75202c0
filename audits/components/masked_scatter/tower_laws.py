"""The laws of what a family's vision tower makes its features of."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from assay.audits.components.masked_scatter.tower import NAME, Case
from assay.audits.families.tower_run import TowerCall
from assay.audits.laws.limits import difference, excess, floor, relative, row_reach
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Inexpressible, Law, Operation, Outputs

LIKE = 1e-3
"""Of the way from one row of a table of positions to the next: what rounding may move a patch by."""


def cells(trial: Trial) -> Iterator[Evidence]:
    """Feature i is made of the patches of cell i of the pictures in reading order: of all of them, and of no other.

    Why: processor, tower and merger each have an order of patches, block by block or line by line, and windows have a
    third. Where two of them do not agree every count is right, the loss falls, and no text is where it was read.

    Example: features that come out of windowed layers and are not put back into the order of the picture.
    """
    out = trial.outcome.values
    if not int(out["silenced"]) or all(bool((reach != 0).all()) for _, reach in _reaches(out)):
        raise Inexpressible("its attention cannot be turned off: each feature may be made of all patches")
    count = int(out["cell"].max()) + 1
    want = torch.arange(count)[:, None] == out["cell"][None]
    for name, reach in _reaches(out):
        got = reach != 0
        got = got[got.any(-1)]  # a feature of no patch is a learned one: the end of a line
        if got.shape != want.shape:
            yield Evidence(
                where=name, measured=float(len(got)), limit=float(count),
                message="so many features depend on pixels, of so many cells",
            )  # fmt: skip
        elif bool((got != want).any()):
            wrong = (got != want).any(-1)
            first = int(wrong.int().argmax())
            yield Evidence(
                where=name, measured=float(wrong.sum()), limit=0.0, index=(first,),
                message=f"so many features are not made of their own cell; the first of patches {_few(got[first])}, "
                f"which should be {_few(want[first])}",
            )  # fmt: skip


def sight(trial: Trial) -> Iterator[Evidence]:
    """A feature depends on patches of other cells of its picture too, and every value of every patch is read.

    Why: features that are right one by one are not yet those of a tower. One whose attention gives nothing, or which
    reads one channel of three, has features of every size at every place, and an accuracy that is only lower.

    Example: lengths that end a picture after each of its cells.
    """
    out = trial.outcome.values
    if bool((lost := out["unread"] > 0).any()):
        yield Evidence(
            where="pixels", measured=float(out["unread"].sum()), limit=0.0, index=(int(lost.int().argmax()),),
            message="so many values of the patches are read by no feature",
        )  # fmt: skip
    cell, medium = out["cell"], out["place"][:, 0]
    owner = torch.stack([medium[cell == number][0] for number in range(int(cell.max()) + 1)])
    seen = out["sight"][(out["sight"] != 0).any(-1)]
    if len(seen) != len(owner):
        return  # see the law cells
    others = (owner[:, None] == medium[None]) & (torch.arange(len(owner))[:, None] != cell[None])
    blind = others.any(-1) & ~((seen != 0) & others).any(-1)
    if bool(blind.any()):
        yield Evidence(
            where="features", measured=float(blind.sum()), limit=0.0, index=(int(blind.int().argmax()),),
            message="so many features depend on no other cell of their picture",
        )  # fmt: skip


def positions(trial: Trial) -> Iterator[Evidence]:
    """A patch has the learned position of its own row and column, of a table that is stretched over each picture.

    Why: patches come in blocks and tables in lines. A patch with the position of another is seen in the wrong place,
    and the tower, which was trained with the right ones, reads lines that are not there.

    Example: interpolated positions in reading order, added to patches that come block by block.
    """
    out = trial.outcome.values
    if "weight" not in out:
        raise Inexpressible("its tower has no table of positions")
    owns = (out["enters"] != 0).double()
    if bool((owns.sum(-1) != 1).any()):
        raise Inexpressible("what enters its first layer is not one patch in each row")
    place, side = out["place"][owns.argmax(-1)], int(out["side"])
    table = torch.arange(out["weight"].shape[-1])
    for name, axis, steps in (("row", 1, table // side), ("column", 2, table % side)):
        at = (out["weight"] * steps).sum(-1)
        yield from _ascending(name, at, place, axis, side)


def _ascending(name: str, at: Tensor, place: Tensor, axis: int, side: int) -> Iterator[Evidence]:
    """Within a medium patches of one row are at one place of the table, and those of the next row further down.

    A picture of more rows than the table has may have several at its border.
    """
    for medium in sorted({*place[:, 0].tolist()}):
        own = place[:, 0] == medium
        lines = [at[own & (place[:, axis] == line)] for line in sorted({*place[own][:, axis].tolist()})]
        spread = max(float(line.max() - line.min()) for line in lines)
        if spread > LIKE:
            yield Evidence(
                where=name, measured=spread, limit=LIKE, index=(medium,),
                message=f"patches of one {name} of medium {medium} are so many {name}s of the table apart",
            )  # fmt: skip
            return
        ends = torch.stack([line.mean() for line in lines])
        if len(ends) > side:
            inner = ends[1:-1]
            ends = torch.cat((ends[:1], inner[(inner > LIKE) & (inner < side - 1 - LIKE)], ends[-1:]))
        if len(ends) > 1 and float(ends.diff().min()) < LIKE:
            yield Evidence(
                where=name, measured=float(ends.diff().min()), limit=LIKE, index=(medium,),
                message=f"the next {name} of medium {medium} is not further on in the table",
            )  # fmt: skip
            return


def alone(trial: Trial) -> Iterator[Evidence]:
    """The features of a picture are those that it has by itself, whatever else is in the batch.

    Why: pictures of a batch lie in one row of patches, and lengths tell attention where each begins. What they look at
    besides is chance, and at inference there is nothing besides.

    Example: lengths of windows given to the layers that should see a whole picture, or none at all.
    """
    call: TowerCall = trial.inputs
    parts = [
        trial.varied(samples=(sample,), keys=(key,), traced=False)
        for sample, key in zip(call.samples, call.keys, strict=True)
    ]
    for name in _made(trial.outcome.values):
        yield from _same(trial, name, torch.cat([part[name] for part in parts]), "by itself it differs from the batch")


def order(trial: Trial) -> Iterator[Evidence]:
    """Samples in another order have their features in that order.

    Why: what a tower sorts, by size for speed, it has to put back.

    Example: pictures grouped by shape, with features in the order of the groups.
    """
    call: TowerCall = trial.inputs
    lengths = [
        len(trial.varied(samples=(sample,), keys=(key,), traced=False)["features"])
        for sample, key in zip(call.samples, call.keys, strict=True)
    ]
    turned = trial.varied(samples=call.samples[::-1], keys=call.keys[::-1], traced=False)
    for name in _made(trial.outcome.values):
        if len(turned[name]) == sum(lengths):
            back = torch.cat(torch.split(turned[name], lengths[::-1])[::-1])
            yield from _same(trial, name, back, "the order of samples matters")


def training(trial: Trial) -> Iterator[Evidence]:
    """In training mode, without dropout, features are the same.

    Why: a branch on ``self.training`` runs in no test that puts the model into evaluation mode.

    Example: patches that are dropped in training as an augmentation that nobody turned on.
    """
    after = trial.varied(training=True, traced=False)
    for name in _made(trial.outcome.values):
        yield from _same(trial, name, after[name], "differs in training mode")


def _reaches(out: Outputs) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in out.items() if name.partition(":")[0] == "reach"]


def _made(out: Outputs) -> list[str]:
    return [name for name in out if name == "features" or name.startswith("deepstack:")]


def _few(mask: Tensor) -> str:
    places = mask.nonzero()[:, 0].tolist()
    return ", ".join(map(str, places[:6])) + (", ..." if len(places) > 6 else "")


def _same(trial: Trial, name: str, got: Tensor, message: str) -> Iterator[Evidence]:
    """Evidence where features differ by more than float32 costs this tower."""
    want = trial.outcome.values[name]
    if got.shape != want.shape:
        yield Evidence(where=name, measured=f"{list(got.shape)}", limit=f"{list(want.shape)}", message=message)
        return
    reach = row_reach(want).amax()
    error, allowed = relative(difference(got, want), reach), floor([], reach, torch.float32)

    def ordinary() -> list[Tensor]:
        narrow = trial.varied(dtype="float32", traced=False)[name]
        return [relative(difference(narrow, want), reach)]

    found = excess(name, error, allowed, ordinary, message)
    if found:
        yield dataclasses.replace(found, where=name)


def _several(_operation: Operation, case: Case) -> str | None:
    return None if len(case.samples) > 1 else "one sample"


_law = partial(Law.of, (NAME,))

LAWS = (_law(cells), _law(sight), _law(positions), _law(alone, _several), _law(order, _several), _law(training))
