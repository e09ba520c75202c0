"""The guard's laws of a live batch: what the model was really given, and the positions that it really used."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from assay.audits.components.pipeline.batch_laws import TYPES, runs
from assay.audits.components.pipeline.views import GRIDS, IGNORED, PIXELS, SECONDS, Piece
from assay.audits.guard_pieces import packed, pieces, said
from assay.audits.guard_terms import Live
from assay.audits.terms import Evidence, Inexpressible
from assay.reference import mrope_positions
from assay.reference.mrope_rules import RULES, PositionRule

ALONE = ("eager", "sdpa")
"""Attentions that see what their mask lets through, and all before a token where they are given none."""
MOSTLY = 0.5
"""Of a sample's labels, what is another token on purpose is less: inputs that are noised."""


def features(live: Live) -> Iterator[Evidence]:
    """The placeholders of each sample are as many as the features of its own images and videos.

    Why: features are put in place of placeholders one after another. One too many or too few in a sample shifts every
    later image of the batch, and a count over the whole batch that happens to agree hides it.

    Example: a sample that was cut in the middle of its image, beside another with one image too many.
    """
    view = live.view
    if not bool((view.types > 0).any()) and all(view.get(name) is None for name in GRIDS.values()):
        raise Inexpressible("the batch has no images, videos or sounds")
    if not (rule := _rule(live)) or rule.kind not in {"blocks", "sequence"}:
        yield from _of_projector(live)
        return
    if problem := _numbered(live, rule, pieces(live))[1]:
        yield Evidence(
            where="input_ids", measured=problem, limit="grids that fit", message="placeholders and features do not fit"
        )
    yield from _pixels(live)


def _of_projector(live: Live) -> Iterator[Evidence]:
    """For families without grids: each picture [C,H,W] became T features, so runs of placeholders are multiples."""
    shape: list[int] = live.record.get("projected") or []
    pixels: list[int] = live.record.get("shapes", {}).get(PIXELS["image"], [])
    if len(shape) != 3 or len(pixels) != 4 or shape[0] != pixels[0]:
        raise Inexpressible("nothing says how many features each image of this family has")
    places, wanted = live.view.types == TYPES["image"], math.prod(shape[:2])
    if int(places.sum()) != wanted:
        message = "placeholders and features do not fit"
        yield Evidence(where="input_ids", measured=int(places.sum()), limit=wanted, message=message)
        return
    for row, start, length in runs(places):
        if length % shape[1]:
            message = f"a run of {length} placeholders holds no whole number of images of {shape[1]} features"
            yield Evidence(
                where="input_ids",
                measured=length,
                limit=f"multiples of {shape[1]}",
                message=message,
                index=(row, start),
            )
            return


def _pixels(live: Live) -> Iterator[Evidence]:
    for kind, name in GRIDS.items():
        grids, shape = live.view.get(name), live.record.get("shapes", {}).get(PIXELS[kind])
        if grids is None or not grids.numel():
            continue
        patches = int(grids.reshape(-1, 3).prod(-1).sum())
        counts = [] if not shape else [shape[0], *([math.prod(shape[:2])] if len(shape) == 3 else [])]
        if patches not in counts:
            measured = f"{counts[-1]} patches" if counts else "absent"
            message = f"{PIXELS[kind]} is not what the grids announce"
            yield Evidence(where=PIXELS[kind], measured=measured, limit=f"{patches} patches", message=message)


def _rule(live: Live) -> PositionRule | None:
    """The family's rule of positions, with what its configuration changes."""
    if (name := live.facts["rule"]) not in RULES:
        return None
    told = {"spatial_merge": live.facts["spatial_merge"], "ids_per_second": live.facts["ids_per_second"]}
    return dataclasses.replace(RULES[name], **{key: value for key, value in told.items() if value is not None})


def _numbered(live: Live, rule: PositionRule, placed: list[Piece]) -> tuple[list[Tensor], str]:
    """The rule's positions [A,n] of each sample, or why there are none."""
    known: tuple[list[Tensor], str] = live.once("numbered", lambda: _counted(live, rule, placed))
    return known


def _counted(live: Live, rule: PositionRule, placed: list[Piece]) -> tuple[list[Tensor], str]:
    types = live.view.types
    longest = max((piece.stop - piece.start for piece in placed), default=0)
    rows, real = (torch.zeros(len(placed), longest, dtype=torch.long) for _ in range(2))
    for piece in placed:
        own = piece.of(types)
        rows[piece.number, : len(own)], real[piece.number, : len(own)] = own, 1
    if bool(rows.eq(mrope_positions.AUDIO).any()):
        raise Inexpressible("the batch has audio, whose features it does not count")
    try:
        ids, _ = mrope_positions.positions(rule, rows, attention_mask=real, **_sizes(live, rule))
    except TypeError as error:
        raise Inexpressible(str(error)) from error
    except ValueError as error:
        return [], str(error)
    return [ids[:, piece.number, : piece.stop - piece.start] for piece in placed], ""


def _sizes(live: Live, rule: PositionRule) -> dict[str, Any]:
    view = live.view
    named = {"image_grids": view.get(GRIDS["image"]), "video_grids": view.get(GRIDS["video"])}
    found: dict[str, Any] = {name: grids.long().reshape(-1, 3) for name, grids in named.items() if grids is not None}
    if rule.video_time == "seconds" and "video_grids" in found:
        seconds = next((t for name in SECONDS if (t := view.get(name)) is not None), None)
        # Without any the model takes a second; the law positions says so.
        found["seconds_per_grid"] = torch.ones(len(found["video_grids"])) if seconds is None else seconds.float()
    return found


def positions(live: Live) -> Iterator[Evidence]:
    """The positions that reach the decoder are, for each sample, those of the family's rule.

    Why: this is what the model saw, whatever the collator meant: text counts on, an image has rows and columns, a
    packed sample starts anew. Ids that lack token types, or that a wrapper counted in one dimension, fail no check, and
    the model no longer knows where in a picture anything is.

    Example: ``position_ids`` counted over the row and repeated over the three axes; a pack numbered through.
    """
    view = live.view
    got = _used(live)
    placed = pieces(live)
    rule, sighted = _rule(live), bool((view.types > 0).any())
    if sighted and rule is None and len(got) > 1:
        raise Inexpressible(f"there is no rule of positions for the images of {live.facts['family'] or 'this model'}")
    yield from _untimed(live, rule)
    if rule is None or not sighted or rule.kind == "plain":
        wanted = [torch.arange(piece.stop - piece.start)[None] for piece in placed]
    elif rule.kind == "canvas":
        raise Inexpressible("the family's positions need more than token types")
    else:
        wanted, problem = _numbered(live, rule, placed)
        if problem:
            raise Inexpressible("placeholders and grids do not fit: see guard.features")
    for piece, want in zip(placed, wanted, strict=True):
        if not bool(piece.of(view.real).all()):
            continue  # padding in between is counted by some, and by others not
        mine = piece.of(got)
        place = _off(mine, want.to(mine.dtype))
        if place is not None:
            measured, limit = (str((ids[:, place] - ids[:, 0]).tolist()) for ids in (mine, want))
            message = f"sample {piece.sample}: not the positions of the rule, first at its token {place}"
            index = (piece.row, piece.start + place)
            by = "" if view.get("position_ids") is not None else "; the model made them itself"
            told = f"{message} (counted from its first){by}"
            yield Evidence(where="positions", measured=measured, limit=limit, message=told, index=index)
            return


def _untimed(live: Live, rule: PositionRule | None) -> Iterator[Evidence]:
    view = live.view
    timed = rule is not None and rule.video_time == "seconds" and view.get(GRIDS["video"]) is not None
    if timed and all(view.get(name) is None for name in SECONDS) and view.get("position_ids") is None:
        message = "nothing says how long a step of the videos lasts, and positions run in seconds"
        yield Evidence(where=SECONDS[0], measured="absent", limit="present", message=message)


def _used(live: Live) -> Tensor:
    """[A,B,S] as the decoder was told them; those of the batch where nobody could look."""
    view, got = live.view, live.tensors.get("used.positions")
    if got is None:
        got = view.get("position_ids")
        if got is None:
            raise Inexpressible(live.record.get("unseen") or "the model has no rotary module that could be watched")
        got = got.reshape(-1, *got.shape[-2:])
    if got.shape[-1] != view.ids.shape[-1] or got.shape[-2] not in {1, len(view.ids)}:
        raise Inexpressible("the positions are not one for each token of the batch")
    if live.record["split"] and got.shape[-2] != len(view.ids):
        raise Inexpressible("the positions are those of a part of the batch, which was split")
    got = got[1:] if len(got) == 4 and live.facts["rule"] != "hunyuan_vl" else got
    return got.expand(-1, len(view.ids), -1)


def _off(got: Tensor, want: Tensor) -> int | None:
    """The first token that is elsewhere, up to one number for the whole sample: rotations see differences only."""
    wanted = want.expand(len(got), -1) if len(want) == 1 else want
    if len(got) == 1 and len(wanted) > 1:
        got = got.expand(len(wanted), -1)
    if got.shape != wanted.shape:
        return 0
    wrong = ((got - got[:1, :1]) - (wanted - wanted[:1, :1])).abs().amax(0).nonzero().flatten()
    return int(wrong[0]) if len(wrong) else None


def targets(live: Live) -> Iterator[Evidence]:
    """Labels are the tokens' own ids; padding and placeholders have none; each sample that is whole has at least one.

    Why: a model that shifts labels itself is one token off where they were shifted before. A trained placeholder
    teaches the model to write images, trained padding to write padding; a sample without labels is read for nothing,
    and a batch of such samples has no loss at all.

    Example: labels copied from the ids, with the padding masked but not the 700 tokens of an image.
    """
    view = live.view
    labels = _labels(live)
    if _by_model(live):  # a loss of one's own may ignore what it likes
        yield from _first(live, (labels >= 0) & _padding(view.real), "padding is trained on")
        yield from _first(live, (labels < 0) & (labels != IGNORED), f"a label that is neither a token nor {IGNORED}")
    yield from _first(live, (labels >= 0) & (view.types > 0) & view.real, "a placeholder is trained on")
    placed = pieces(live)
    behind = packed(placed)
    for piece in placed:
        own, ids = piece.of(labels), piece.of(view.ids)
        own = torch.cat([own.new_full((1,), IGNORED), own[1:]]) if behind and piece.start else own
        trained = own >= 0
        if not bool(trained[1:].any()) and (len(own) > 1 or not behind) and not _cut(live, piece, placed):
            message = f"sample {piece.sample} has no token that is trained on"
            yield Evidence(
                where="labels", measured=0, limit="at least 1", message=message, index=(piece.row, piece.start)
            )
            return
        if _by_model(live) and float((own != ids)[trained].float().mean()) > MOSTLY:
            place = int(torch.nonzero((own != ids) & trained)[0])
            message = f"sample {piece.sample}: most labels are not the tokens' own ids{_shifted(own, ids)}"
            index = (piece.row, piece.start + place)
            yield Evidence(
                where="labels", measured=int(own[place]), limit=int(ids[place]), message=message, index=index
            )
            return


def _padding(real: Tensor) -> Tensor:
    """What lies before and behind a row's text, but for one token: a mask made of ids may hide the end of a text."""
    before, behind = real.long().cumsum(-1) == 0, real.flip(-1).long().cumsum(-1).flip(-1) == 0
    last = torch.cat([behind[:, :1], behind[:, 1:] & ~behind[:, :-1]], dim=1)
    return before | (behind & ~last)


def _shifted(own: Tensor, ids: Tensor) -> str:
    trained = own[..., :-1] >= 0
    ahead = bool(trained.any()) and float((own[..., :-1] == ids[..., 1:])[trained].float().mean()) > MOSTLY
    return ": they were shifted before, and the model shifts them again" if ahead else ""


def _labels(live: Live) -> Tensor:
    labels = live.view.labels
    if not live.facts["shifts"]:
        raise Inexpressible("the family does not train on the tokens that it reads")
    if not _by_model(live) and _shifted(labels, live.view.ids) and not _own(labels, live.view.ids):
        raise Inexpressible("the labels were shifted before, for a loss that is not the model's")
    return labels


def _by_model(live: Live) -> bool:
    """Whether a model of transformers makes the loss, of these labels: its convention is known."""
    return bool(live.record.get("labelled", True) and live.facts.get("writes", True))


def _own(labels: Tensor, ids: Tensor) -> bool:
    trained = labels >= 0
    return bool(trained.any()) and float((labels == ids)[trained].float().mean()) > MOSTLY


def _cut(live: Live, piece: Piece, placed: list[Piece]) -> bool:
    """Whether a sample was cut off at the longest length, as it seems: then its answer may be gone with the rest."""
    ends = {*live.facts.get("stops", ()), *map(int, live.facts["ends"])}
    last = piece.of(live.view.ids)[-2:].tolist()  # behind the end of a turn a template may break the line
    longest = max(one.stop - one.start for one in placed)
    return piece.stop - piece.start == longest and not ends & set(last)


def _first(live: Live, wrong: Tensor, message: str) -> Iterator[Evidence]:
    places = torch.nonzero(wrong)
    for row, place in places[:1].tolist():
        told = f"{message}, at {len(places)} of {wrong.numel()} places, the first shown"
        label = str(int(live.view.labels[row, place]))
        yield Evidence(where="labels", measured=label, limit=str(IGNORED), message=told, index=(row, place))


def share(live: Live) -> Iterator[Evidence]:
    """The part of a batch's text that is trained on lies within the bounds that were declared.

    Why: a template that changed, or a marker that is no longer found, trains on everything or on next to nothing. Both
    look like training. What is right only you know: a task with short answers trains on 1 %, plain language modelling
    on all.

    Example: ``share=(0.05, 0.6)``, and a release of the processor that writes another head of the answer.
    """
    low, high = live.record["share"]
    if (low, high) == (0.0, 1.0):
        raise Inexpressible("no bounds were declared: share=(low, high)")
    got = trained_share(live)
    if not low <= got <= high:
        message = "the part of the text that is trained on is not within the declared bounds"
        yield Evidence(where="labels", measured=f"{got:.2%}", limit=f"{low:.2%} to {high:.2%}", message=message)


def trained_share(live: Live) -> float:
    """Of all tokens but padding and placeholders, the part with a label. Inexpressible without labels."""
    text = live.view.real & (live.view.types == 0)
    return float(((_labels(live) >= 0) & text).sum()) / max(1, int(text.sum()))


def boundaries(live: Live) -> Iterator[Evidence]:
    """Of packed samples, all that says where they start agrees, the attention heeds it, and no first token is trained.

    Why: samples in one row see each other unless the attention is told where they end. A key that this attention does
    not read tells it nothing, and a pack is then one long conversation of strangers. A label on a first token trains
    the end of one sample to predict the beginning of another.

    Example: ``cu_seq_lens_q`` under an attention that takes a mask.
    """
    placed, keys = pieces(live), said(live)
    if not packed(placed):
        raise Inexpressible("no row is said to hold several samples")
    first = {piece.row: piece.start for piece in reversed(placed)}
    inner = [piece for piece in placed if piece.start != first[piece.row]]
    yield from _disagree(keys, placed)
    yield from _seen(live, inner)
    try:
        labels = _labels(live)
    except Inexpressible:
        return
    for piece in inner:
        if int(labels[piece.row, piece.start]) >= 0:
            message = f"sample {piece.sample} is predicted from the sample before it"
            index = (piece.row, piece.start)
            yield Evidence(where="labels", measured="trained", limit="ignored", message=message, index=index)
            return


def _disagree(keys: dict[str, set[tuple[int, int]]], placed: list[Piece]) -> Iterator[Evidence]:
    """What is believed, and every other key, within the samples: what fills a row up is told as one likes."""
    (name, truth), *others = keys.items()
    for other, places in others:
        for row, place in sorted(truth ^ places):
            if any(piece.row == row and piece.start <= place < piece.stop for piece in placed):
                measured, limit = ("no start", "a start") if (row, place) in truth else ("a start", "no start")
                message = f"{other} puts the boundaries of the samples elsewhere than {name}"
                yield Evidence(where=other, measured=measured, limit=limit, message=message, index=(row, place))
                return


def _seen(live: Live, inner: list[Piece]) -> Iterator[Evidence]:
    told, sees = live.record.get("attention"), live.tensors.get("used.sees")
    rows = {1, len(live.view.ids)}
    if not told or told["by"] not in ALONE or told["mask"] not in {"none", "4d"}:
        return
    if sees is not None and (len(sees) not in rows or (live.record["split"] and len(sees) != len(live.view.ids))):
        return  # that of one part of a batch that was split
    for piece in inner:
        row = 0 if sees is None or len(sees) == 1 else piece.row
        if sees is None or bool(sees[row, piece.start - 1]):
            message = f"the attention ({told['by']}) lets sample {piece.sample} see the sample before it"
            limit, measured = "a mask of blocks", "no mask" if sees is None else "a mask that lets it through"
            index = (piece.row, piece.start)
            yield Evidence(where="attention", measured=measured, limit=limit, message=message, index=index)
            return
