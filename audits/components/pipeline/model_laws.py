"""The laws of what a model makes of a batch: the positions it used, its scores, its loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from assay.audits.components.pipeline.views import (
    GRIDS,
    IGNORED,
    SECONDS,
    Piece,
    View,
    alone,
    first_difference,
    located,
    packed,
    piece_alone,
    pieces,
    still,
    view,
)
from assay.audits.laws.limits import difference, excess, floor, relative
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Inexpressible
from assay.reference import mrope_positions
from assay.reference.mrope_rules import RULES


def positions(trial: Trial) -> Iterator[Evidence]:
    """The positions that reach the decoder's rotary are, for each sample, those of the family's rule for it alone.

    Why: this is what the model saw, whatever the collator meant. Without a model the batch's own ``position_ids`` are
    looked at. Padding does not count, a packed sample starts anew, and an image has rows and columns. A sample that as
    a whole lies further along is right too: rotary embeddings see differences only.

    Example: packs whose positions are counted in one dimension and repeated over the three axes.
    """
    found = view(trial, positions=True) if view(trial).facts["model"] else view(trial)
    got = _given(found)
    if timeless := list(_durations(found)):
        yield from timeless
        return
    for piece in pieces(trial, found):
        want = _rule(trial, piece, len(got))
        mine = piece.of(got)
        place = _off(mine, want.to(mine.dtype))
        if place is not None:
            message = f"sample {piece.sample}: not the positions of the rule, first at its token {place}"
            measured, limit = (str((ids[:, place] - ids[:, 0]).tolist()) for ids in (mine, want))
            index = (piece.row, piece.start + place)
            told = f"{message} (counted from its first)"
            yield Evidence(where="positions", measured=measured, limit=limit, message=told, index=index)
            return


def _durations(found: View) -> Iterator[Evidence]:
    """Where positions run in seconds, a video without a duration has none; a model then takes one of its own."""
    rule = RULES.get(found.facts["rule"])
    seconds = [name for name in SECONDS if found.get(name) is not None]
    timed = rule is not None and rule.video_time == "seconds" and found.get(GRIDS["video"]) is not None
    if timed and not seconds and found.get("position_ids") is None:
        message = "nothing says how long a step of the videos lasts, and positions run in seconds"
        yield Evidence(where=SECONDS[0], measured="absent", limit="present", message=message)


def _given(found: View) -> Tensor:
    """[A,B,S] as the model used them, or as the batch has them where there is no model."""
    if found.facts["model"]:
        got = found.model("positions")
    elif (ids := found.get("position_ids")) is not None:
        got = ids.reshape(-1, *found.ids.shape)
    else:
        raise Inexpressible("the pipeline has no model, and the batch no position_ids")
    if got.shape[-1] != found.ids.shape[-1]:
        raise Inexpressible("the positions are not one for each token")
    got = got[1:] if got.shape[0] == 4 and found.facts["rule"] != "hunyuan_vl" else got
    return got.expand(-1, len(found.ids), -1)


def _rule(trial: Trial, piece: Piece, axes: int) -> Tensor:
    """The positions [A,n] of a sample by itself. Inexpressible where nobody says what they are.

    A decoder with one axis, of a family without a rule, counts its tokens.
    """
    single, whole = alone(trial, piece.sample), piece_alone(trial, piece.sample)
    kinds = whole.of(single.types)
    name = single.facts["rule"]
    if not bool((kinds > 0).any()) or (not name and axes == 1):
        return torch.arange(len(kinds))[None]
    if not name:
        raise Inexpressible("there is no rule of positions for the images of this family here")
    told = {
        "spatial_merge": single.facts["spatial_merge"],
        "ids_per_second": single.facts["ids_per_second"],
    }
    rule = dataclasses.replace(RULES[name], **{key: value for key, value in told.items() if value is not None})
    try:
        ids, _ = mrope_positions.positions(rule, kinds[None], **_sizes(single))
    except (ValueError, TypeError) as error:
        raise Inexpressible(f"sample {piece.sample} alone has no positions: {error}") from error
    return ids[:, 0]


def _sizes(single: View) -> dict[str, Any]:
    named = {"image_grids": single.get(GRIDS["image"]), "video_grids": single.get(GRIDS["video"])}
    if RULES[single.facts["rule"]].video_time == "seconds" and named["video_grids"] is not None:
        named["seconds_per_grid"] = next((t for name in SECONDS if (t := single.get(name)) is not None), None)
    return {name: value for name, value in named.items() if value is not None}


def _off(got: Tensor, want: Tensor) -> int | None:
    """The first token whose positions are not those wanted, up to one number for the whole sample and all axes."""
    if got.shape[-1] == 0:
        return None
    moved = got - got[:1, :1]
    wanted = want.expand(got.shape[0], -1) if want.shape[0] == 1 else want
    if moved.shape != wanted.shape:
        return 0
    wanted = wanted - wanted[:1, :1]
    return first_difference((moved - wanted).abs().amax(0), torch.zeros(got.shape[-1], dtype=moved.dtype))


def isolated(trial: Trial) -> Iterator[Evidence]:
    """The model gives each token of a sample the same score in a batch or pack as in the sample alone.

    Why: positions and boundaries are right on paper until a backend reads others or none. A score that depends on a
    neighbour is a sample that sees it, that is numbered after it, or that got its image.

    Example: a pack under an attention that ignores ``cu_seq_lens_q``.
    """
    found = view(trial, run=True)
    placed = pieces(trial, found)
    if len(placed) < 2:
        raise Inexpressible("a batch of one sample has no neighbours")
    still(trial)
    for piece in placed:
        single, whole = alone(trial, piece.sample, run=True), piece_alone(trial, piece.sample)
        got, want = (part.of(values.model("scores"))[:-1] for part, values in ((piece, found), (whole, single)))
        said = f"sample {piece.sample} is scored otherwise than alone"
        moved = _moved((found, piece), (single, whole))
        evidence = near("scores", got, want, said, _narrow(trial, piece), moved)
        if evidence:
            yield evidence
            return


def _moved(*placed: tuple[View, Piece]) -> float:
    """By how much a sample's positions differ in two batches: tables of angles are in float32, and lose as much."""
    if any("positions" not in found.values or piece.start == piece.stop for found, piece in placed):
        return 0.0
    here, there = (piece.of(_given(found))[..., 0].double() for found, piece in placed)
    return float((here.max() - there.max()).abs())


def _narrow(trial: Trial, piece: Piece) -> Callable[[], list[Tensor]]:
    """What float32 does to the scores of a sample alone: the scale of what rounding may do."""

    def errors() -> list[Tensor]:
        wide = alone(trial, piece.sample, run=True).model("scores")
        narrow = alone(trial, piece.sample, run=True, dtype="float32").model("scores")
        return [relative(difference(narrow, wide), _largest(wide))]

    return errors


def near(
    where: str,
    got: Tensor,
    want: Tensor,
    message: str,
    ordinary: Callable[[], list[Tensor]] = list,
    moved: float = 0.0,
    reach: Tensor | None = None,
) -> Evidence | None:
    """Evidence where two results of the model are further apart than rounding explains.

    Models compute partly in float32, whatever their dtype; ``moved`` is by how much positions differ.
    """
    if not got.numel() and not want.numel():
        return None
    reach = _largest(want) if reach is None else reach.clamp(min=torch.finfo(torch.float64).tiny)
    allowed = floor([], reach, torch.float32) * (1 + moved)
    return excess(where, relative(difference(got, want), reach), allowed, ordinary, message)


def _largest(values: Tensor) -> Tensor:
    return values.double().abs().amax().clamp(min=1.0) if values.numel() else torch.ones(())


def side(trial: Trial) -> Iterator[Evidence]:
    """Padding on the left and padding on the right give each sample the same labels and the same scores.

    Why: generation pads on the left, training on the right, and each is often written for one. Positions that count
    padding, a mask that is not handed on, or labels that are cut from the wrong end show on the other side.

    Example: labels of the prompt's length masked from the first column on, padding included.
    """
    still(trial)
    left, right = (_sided(trial, name) for name in ("left", "right"))
    if torch.equal(left.ids, right.ids):
        raise Inexpressible("the batch has no padding, or its collator does not heed the tokenizer's padding_side")
    yield from _alike(trial, left, right, "another when padded on the left than when padded on the right")


def _sided(trial: Trial, name: str) -> View:
    with_model = bool(view(trial).facts["model"])
    return view(trial, side=name, run=with_model)


def order(trial: Trial) -> Iterator[Evidence]:
    """The samples in reverse order give each sample the same labels and scores.

    Why: what is sorted, cached or zipped while a batch is put together is right for the order it was tried with.

    Example: sizes of images looked up by the row of the first sample that has any.
    """
    found = view(trial)
    if len(found.samples) < 2:
        raise Inexpressible("a batch of one sample has one order")
    still(trial)
    with_model = bool(found.facts["model"])
    backwards = view(trial, samples=found.samples[::-1], first=0, run=with_model)
    forwards = view(trial, run=with_model)
    yield from _alike(trial, backwards, forwards, "another in the batch of the reverse order")


def _alike(trial: Trial, one: View, other: View, message: str) -> Iterator[Evidence]:
    """Labels and scores of each sample in two batches of the same samples."""
    there, lost = located(trial, other)
    here, missing = located(trial, one)
    if lost:
        raise Inexpressible("the samples of the batch are not those of single batches: see the law placement")
    if missing:
        told = f"sample {missing[0]} is {message}: its tokens are not in it"
        yield Evidence(where="input_ids", measured="absent", limit="present", message=told, index=(missing[0],))
        return
    twins = {piece.sample: piece for piece in there}
    in_pack = packed(here) or packed(there)
    for piece in here:
        twin = twins[piece.sample]
        told = f"sample {piece.sample} is {message}"
        yield from _labels_alike(one, other, piece, twin, told, in_pack=in_pack)
        if "scores" in one.values:
            got, want = piece.of(one.model("scores"))[:-1], twin.of(other.model("scores"))[:-1]
            moved = _moved((one, piece), (other, twin))
            evidence = near("scores", got, want, told, _narrow(trial, piece), moved)
            yield from [evidence] if evidence else []


def _labels_alike(
    one: View, other: View, piece: Piece, twin: Piece, message: str, *, in_pack: bool
) -> Iterator[Evidence]:
    if one.get("labels") is None or other.get("labels") is None:
        return
    got, want = piece.of(one.labels), twin.of(other.labels)
    if in_pack and IGNORED in {int(got[0]), int(want[0])}:
        got, want = got[1:], want[1:]
    place = first_difference(got, want)
    if place is not None:
        measured, limit = str(int(got[place])), str(int(want[place]))
        yield Evidence(where="labels", measured=measured, limit=limit, message=message, index=(place,))


def micro(trial: Trial) -> Iterator[Evidence]:
    """Samples one by one, with the trained tokens of all as ``num_items_in_batch``, add up to the batch.

    Why: gradient accumulation promises it. It fails where a pack trains other targets than its samples do, where the
    number of a batch is its own mean, and where samples see each other. Gradients are compared through one product for
    each parameter.

    Example: a pack in which the last token of each sample predicts the first of the next.
    """
    found = view(trial, run=True)
    if len(found.samples) < 2:
        raise Inexpressible("a batch of one sample has no parts")
    still(trial)
    if "added" in found.values:
        raise Inexpressible("the model adds a term to its loss that is of all tokens of a batch together")
    placed = pieces(trial, found)
    asked = {"run": True, "items": _items(trial, found), "gradients": True}
    whole = view(trial, **asked | {"items": found.record["items"] or asked["items"]})
    asked |= {"steps": len(found.samples)}
    parts = [alone(trial, sample, **asked) for sample in found.samples]
    added = torch.stack([part.model("loss") for part in parts]).sum(0)
    message = "micro-batches do not add up to the batch"
    moved = max(_moved((found, p), (alone(trial, p.sample, **asked), piece_alone(trial, p.sample))) for p in placed)
    evidence = near("loss", added, whole.model("loss"), message, moved=moved)
    yield from [evidence] if evidence else _gradients(trial, whole, parts, message, moved)


def _items(trial: Trial, found: View) -> int:
    """The targets of a batch, or what a ``Trainer`` counts in its samples one by one. Inexpressible without any."""
    items = int((found.labels[:, 1:] >= 0).sum())
    if not items:
        raise Inexpressible("the batch has no trained token")
    if found.record["items"] is None:
        return items
    return sum(int(alone(trial, sample).record["items"]) for sample in found.samples)


def _gradients(trial: Trial, whole: View, parts: list[View], message: str, moved: float) -> Iterator[Evidence]:
    if "grads" not in whole.values or not whole.values["grads"].numel():
        return
    added = torch.stack([part.model("grads")[:, 0] for part in parts]).sum(0)
    got, norms = whole.model("grads")[:, 0], whole.model("grads")[:, 1]
    reach = norms.amax().clamp(min=torch.finfo(torch.float64).tiny)

    def narrow() -> list[Tensor]:
        rough = [
            dataclasses.replace(trial.inputs, run=True, gradients=True, dtype=name) for name in ("float32", "float64")
        ]
        low, high = (View(trial.run(call)).model("grads")[:, 0] for call in rough)
        return [relative(difference(low, high), high.abs().amax())]

    allowed = floor([], reach, torch.float32) * (1 + moved)
    evidence = excess("gradients", relative(difference(added, got), reach), allowed, narrow, message)
    if evidence:
        yield evidence
