"""The laws of a batch: what must fit together before a model sees it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from assay.audits.components.pipeline.views import (
    BOUNDARIES,
    GRIDS,
    PIXELS,
    Piece,
    View,
    alone,
    drawn,
    located,
    packed,
    pieces,
    view,
)
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Inexpressible
from assay.reference.mrope_positions import IMAGE, VIDEO

CLEARLY = 1.3
"""How much longer one side is of an image whose orientation nobody mistakes, however it is resized to whole patches."""
TYPES = {"image": IMAGE, "video": VIDEO}


def accepted(trial: Trial) -> Iterator[Evidence]:
    """The model takes every key of the batch, and what has one entry for each token has as many as there are tokens.

    Why: truncation, padding and packing have to treat alike everything that belongs to a token. A tensor that was left
    behind is a crash at best; where only its first part is read it is silently about other tokens. A key that forward
    refuses stops the first step; a trainer that drops such keys drops what they meant.

    Example: ids and labels are cut to the longest length, token types are not.
    """
    found = view(trial)
    for name in found.record["refused"]:
        yield Evidence(where=name, measured="refused", limit="taken", message="the model's forward takes no such key")
    size = found.ids.shape[-1]
    for name in ("labels", "mm_token_type_ids", "token_type_ids", "attention_mask", "position_ids"):
        value = found.get(name)
        if value is not None and value.shape[-1] != size:
            yield Evidence(
                where=name, measured=f"shape {tuple(value.shape)}", limit=f"{size} tokens in a row",
                message="it has not one entry for each token",
            )  # fmt: skip


def features(trial: Trial) -> Iterator[Evidence]:
    """Each run of placeholders has the number of features that its own grids announce, and pixels are there for all.

    Why: features are put in place of placeholders one after another. Where a sample has one too many or too few,
    every later image of the batch is shifted, and a global count that happens to agree hides it.

    Example: a sample truncated in the middle of its image; grids that come in another order than their samples.
    """
    found = view(trial)
    present = [kind for kind in GRIDS if bool((found.types == TYPES[kind]).any()) or found.get(GRIDS[kind]) is not None]
    if not present:
        raise Inexpressible("the batch has no images or videos with grids")
    for kind in present:
        yield from _counted(found, kind)
        yield from _pixels(found, kind)


def _counted(found: View, kind: str) -> Iterator[Evidence]:
    """Grids are used up run by run, in the order of the batch."""
    merge = found.facts["spatial_merge"]
    grids = found.get(GRIDS[kind])
    if grids is None:
        places = int((found.types == TYPES[kind]).sum())
        if found.get(PIXELS[kind]) is None:
            yield _off(kind, f"{places} placeholders", "no features", "placeholders without anything to put there")
        elif merge:
            yield _off(
                kind, f"{places} placeholders", "no grids", "the batch says nothing of the sizes of its features"
            )
        else:
            raise Inexpressible("the batch has no grids, which would say how many features an image has")
        return
    if not merge:
        raise Inexpressible("nothing says how many patches become one feature")
    announced = [int(grid.prod()) // merge**2 for grid in grids.reshape(-1, 3)]
    begun = row_before = 0  # features that are left of a video, and where it began: times may part its placeholders
    for row, start, length in runs(found.types == TYPES[kind]):
        fits = not begun or row == row_before
        taken, begun = begun, 0
        while announced and taken < length:
            taken += announced.pop(0)
        if kind == "video" and taken > length:
            taken, begun, row_before = length, taken - length, row
        if taken != length or not fits:
            message = (
                f"placeholders {start} to {start + length - 1} of row {row} and the grids that are next do not fit"
            )
            yield _off(kind, f"{length} placeholders", f"{taken} features", message, (row, start))
            return
    if announced or begun:
        left = sum(announced) + begun
        yield _off(kind, "no placeholders left", f"{left} features", "features without a place for them")


def _off(kind: str, measured: str, limit: str, message: str, index: tuple[int, ...] | None = None) -> Evidence:
    return Evidence(where=kind, measured=measured, limit=limit, message=message, index=index)


def _pixels(found: View, kind: str) -> Iterator[Evidence]:
    """Patches are the entries [N,...] of the pixels, or those of each picture [K,n,C]."""
    grids, pixels = found.get(GRIDS[kind]), found.get(PIXELS[kind])
    if grids is None or not grids.numel():
        return
    patches = int(grids.reshape(-1, 3).prod(-1).sum())
    counts = [] if pixels is None else [len(pixels)]
    if pixels is not None and pixels.ndim == 3:
        counts.append(pixels.shape[:2].numel())
    if patches not in counts:
        measured, limit = f"{counts[-1]} patches" if counts else "absent", f"{patches} patches"
        message = f"{PIXELS[kind]} is not what the grids announce"
        yield Evidence(where=PIXELS[kind], measured=measured, limit=limit, message=message)


def runs(where: Tensor) -> list[tuple[int, int, int]]:
    """(row, start, length) of each run of true entries [B,S], in reading order."""
    found = []
    for row, line in enumerate(where.tolist()):
        start = 0
        for place, value in enumerate([*line, False]):
            if not value:
                if place > start:
                    found.append((row, start, place - start))
                start = place + 1
    return found


def media(trial: Trial) -> Iterator[Evidence]:
    """Grids, pixels and times of a batch are those of its samples one after another, in the order of the samples.

    Why: what says where an image belongs is the order alone. Counts agree where two images of one size are exchanged,
    and each question is then answered by another sample's picture.

    Example: a collator that collects images of samples sorted by length, and texts in the order that it was given.
    """
    found = view(trial)
    placed = pieces(trial, found)
    names = [*GRIDS.values(), *PIXELS.values(), "second_per_grid_ts", "video_second_per_grid"]
    names = [name for name in names if found.get(name) is not None and name not in drawn(trial)]
    if not names or len(placed) < 2:
        raise Inexpressible("the batch has no media of several samples, or they are drawn")
    for name in names:
        parts = [alone(trial, piece.sample).get(name) for piece in placed]
        wanted = torch.cat([part for part in parts if part is not None] or [found.tensors[name][:0]])
        got = found.tensors[name]
        if got.shape != wanted.shape:
            measured, limit = f"shape {tuple(got.shape)}", f"shape {tuple(wanted.shape)}"
            yield Evidence(where=name, measured=measured, limit=limit, message="not what the samples have alone")
        elif (row := _first_other(got, wanted)) is not None:
            message = f"entry {row} is not that of the samples in their order"
            yield Evidence(where=name, measured="another", limit="the sample's own", message=message, index=(row,))


def _first_other(got: Tensor, want: Tensor) -> int | None:
    """The first entry of two tensors [N,...] of which any element differs."""
    wrong = torch.nonzero((got != want).reshape(len(got), -1).any(-1)).flatten()
    return int(wrong[0]) if len(wrong) else None


def types(trial: Trial) -> Iterator[Evidence]:
    """``mm_token_type_ids`` is there where the family needs it, and says of each token what it is.

    Why: from transformers 5.3 on many families find images by these types alone. Without them the forward falls back
    to plain positions: nothing fails, and the model no longer knows where in a picture anything is.

    Example: a collator that copies the keys which were known when it was written.
    """
    found = view(trial)
    given = found.get("mm_token_type_ids")
    visual = bool((found.types > 0).any())
    if given is None:
        if not found.facts["needs_types"] or not visual or found.get("position_ids") is not None:
            raise Inexpressible("the batch has no token types, and its model needs none for it")
        yield Evidence(
            where="mm_token_type_ids", measured="absent", limit="present",
            message="without it the model numbers images as if they were text",
        )  # fmt: skip
        return
    if given.numel() != found.ids.numel():
        raise Inexpressible("the token types are not one for each token: see the law accepted")
    wrong = torch.nonzero((given.reshape(found.ids.shape) != found.types) & found.real)
    for row, place in wrong[:1].tolist():
        got, want = str(int(given.reshape(found.ids.shape)[row, place])), str(int(found.types[row, place]))
        message = f"{len(wrong)} tokens are given as what they are not, the first shown"
        yield Evidence(where="mm_token_type_ids", measured=got, limit=want, message=message, index=(row, place))


def boundaries(trial: Trial) -> Iterator[Evidence]:
    """A pack says where each sample starts, everything that says so agrees, and no sample's first token has a label.

    Why: samples in one row see each other unless the attention is told where they end, by positions that start anew,
    ``cu_seq_lens_q``, ``seq_idx`` or a mask of blocks. A label on a first token trains the end of one sample to
    predict the beginning of an unrelated one.

    Example: rows concatenated with an end-of-text token between them and a mask of ones.
    """
    found = view(trial)
    placed = pieces(trial, found)
    if not packed(placed):
        raise Inexpressible("no row holds several samples")
    yield from _told(found, placed)
    if "batch.labels" in found.values:
        yield from _first_labels(found, placed)


def _first_labels(found: View, placed: list[Piece]) -> Iterator[Evidence]:
    lowest = {piece.row: min(other.start for other in placed if other.row == piece.row) for piece in placed}
    for piece in placed:
        if piece.start > lowest[piece.row] and int(found.labels[piece.row, piece.start]) >= 0:
            message = f"sample {piece.sample} is predicted from the sample before it"
            yield Evidence(
                where="labels", measured="trained", limit="ignored", message=message, index=(piece.row, piece.start)
            )
            return


def _told(found: View, placed: list[Piece]) -> Iterator[Evidence]:
    said = starts(found)
    if not said:
        message = "nothing in the batch says where samples start: each sees those before it"
        yield Evidence(where="boundaries", measured="absent", limit="positions, lengths or a mask", message=message)
    truth = {(piece.row, piece.start) for piece in placed}
    for name, places in said.items():
        within = {place for place in places if bool(found.real[place])}
        inner = {piece for piece in within if _inside(piece, placed)}
        for row, place in sorted((truth - places) | (inner - truth))[:1]:
            missing = (row, place) in truth
            measured, limit = ("no start", "a start") if missing else ("a start", "no start")
            message = f"{name} puts the boundaries of the samples elsewhere"
            yield Evidence(where=name, measured=measured, limit=limit, message=message, index=(row, place))


def _inside(place: tuple[int, int], placed: list[Piece]) -> bool:
    return any(piece.row == place[0] and piece.start < place[1] < piece.stop for piece in placed)


def starts(found: View) -> dict[str, set[tuple[int, int]]]:
    """Where samples start (row, place), by the name of each key that says so. What says nothing is left out."""
    said = {name: _from_lengths(found, value) for name in BOUNDARIES if (value := found.get(name)) is not None}
    for name in ("seq_idx", "attention_mask"):
        value = found.get(name)
        if value is not None and value.numel() == found.ids.numel():
            said[name] = _changes(value.reshape(found.ids.shape))
    ids = found.get("position_ids")
    if ids is not None and ids.shape[-1] == found.ids.shape[-1]:
        said["position_ids"] = _restarts(ids.reshape(-1, *found.ids.shape))
    mask = found.get("attention_mask")
    if mask is not None and mask.ndim == 4:
        said["attention_mask"] = _blocks(mask)
    plain = {(row, int(found.real[row].long().argmax())) for row in range(len(found.ids))}
    return {name: places for name, places in said.items() if places - plain}


def _from_lengths(found: View, lengths: Tensor) -> set[tuple[int, int]]:
    """Cumulated lengths run over all rows."""
    size = found.ids.shape[-1]
    places = [int(place) for place in lengths.flatten().tolist()]
    return {(place // size, place % size) for place in places if place < found.ids.numel()}


def _changes(numbers: Tensor) -> set[tuple[int, int]]:
    before = torch.cat([torch.full_like(numbers[:, :1], -1), numbers[:, :-1]], dim=1)
    return {(row, place) for row, place in torch.nonzero(numbers != before).tolist()}


def _restarts(ids: Tensor) -> set[tuple[int, int]]:
    """Of four rows the first is the text's; of three, a start is where no axis goes on."""
    first = ids[0] if ids.shape[0] in {1, 4} else ids.amax(0)
    before = torch.cat([first[:, :1] - 1, first[:, :-1]], dim=1)
    begins = (first == 0) & (first != before + 1) if ids.shape[0] == 3 else first != before + 1
    begins[:, 0] = True
    return {(row, place) for row, place in torch.nonzero(begins).tolist()}


def _blocks(mask: Tensor) -> set[tuple[int, int]]:
    """A token starts a sample where it sees nothing before itself. A mask of numbers holds 0 where it lets through."""
    seen = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] == (0 if mask.is_floating_point() else 1)
    earlier = torch.tril(torch.ones(seen.shape[-2:], dtype=torch.bool), diagonal=-1)
    return {(row, place) for row, place in torch.nonzero(~(seen & earlier).any(-1)).tolist()}


def repeat(trial: Trial) -> Iterator[Evidence]:
    """The same samples give the same batch again; the dataset's samples and torch's generator are as they were.

    Why: a collator that edits the samples it is given leaves them edited. From the second epoch on they are edited
    twice, and no run of one step shows it.

    Example: a collator that calls ``sample.pop("images")``, or a system prompt that is put into the messages in place.
    """
    found = view(trial)
    for index in found.record["changed"][:1]:
        message = f"sample {index} of the dataset is another after the batch was made"
        yield Evidence(where="dataset", measured="changed", limit="unchanged", message=message, index=(index,))
    if found.record["reseeded"]:
        message = "the collator seeds torch's global generator: all that is random in training is the same in each step"
        yield Evidence(where="generator", measured="seeded", limit="as it was", message=message)
    again = View(trial.run(trial.inputs))
    for name in sorted({*found.tensors, *again.tensors}):
        first, second = found.get(name), again.get(name)
        if first is None or second is None or first.shape != second.shape or not torch.equal(first, second):
            message = "the second batch of the same samples is another"
            yield Evidence(where=name, measured="another", limit="the same", message=message)


def placement(trial: Trial) -> Iterator[Evidence]:
    """Every sample of a batch is in it once, whole, with the tokens that it has alone, and nothing else is.

    Why: what is dropped or cut while a batch is put together is never trained on, and nothing says so. What a sample
    is must not depend on its company.

    Example: a packer that cuts the row at its length, through the middle of the last sample.
    """
    found = view(trial)
    placed, lost = located(trial, found)
    if lost and "input_ids" in drawn(trial):
        raise Inexpressible("the collator draws input_ids: a sample has other tokens in each batch")
    for sample in lost[:1]:
        message = f"sample {sample} is not in the batch with the tokens that it has alone ({len(lost)} samples are not)"
        yield Evidence(where="input_ids", measured="absent", limit="present", message=message, index=(sample,))
    if not lost:
        yield from _strange(found, placed)


def _strange(found: View, placed: list[Piece]) -> Iterator[Evidence]:
    """Tokens that are neither padding nor control tokens, and belong to no sample."""
    between = torch.tensor([token for token in (found.facts["pad"], *found.facts["special"]) if token is not None])
    free = found.real & ~torch.isin(found.ids, between.to(found.ids.dtype))
    for piece in placed:
        free[piece.row, piece.start : piece.stop] = False
    for row, place in torch.nonzero(free)[:1].tolist():
        message = f"{int(free.sum())} tokens of the batch belong to none of its samples"
        yield Evidence(
            where="input_ids", measured=str(int(found.ids[row, place])), limit="padding", message=message,
            index=(row, place),
        )  # fmt: skip


def orientation(trial: Trial) -> Iterator[Evidence]:
    """The grid of an image that is clearly wide is wide, that of one that is clearly tall is tall.

    Why: height and width are the easiest pair to exchange. Their product is the same, so every count agrees, and the
    rows of the image are read across.

    Example: a size taken from an image library that says width first, written into a grid that says height first.
    """
    found = view(trial)
    seen = 0
    for sample in found.samples:
        single = alone(trial, sample)
        grids, pictures = single.get(GRIDS["image"]), single.record["pictures"][0]
        if grids is None or len(pictures) != len(grids):
            continue
        seen += len(pictures)
        for (wide, tall), (_, rows, columns) in zip(pictures, grids.tolist(), strict=True):
            if max(wide, tall) > CLEARLY * min(wide, tall) and (wide > tall) != (columns > rows) and rows != columns:
                message = f"sample {sample}: an image of {wide} x {tall} pixels (width x height) lies the other way"
                measured, limit = f"{rows} rows, {columns} columns", "as its image"
                yield Evidence(where=GRIDS["image"], measured=measured, limit=limit, message=message, index=(sample,))
                return
    if not seen:
        raise Inexpressible("no sample has images that can be looked at, with a grid for each")
