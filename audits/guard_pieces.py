"""Where the samples of a live batch lie, by what the batch itself says: its lengths, numbers, positions or masks."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from assay.audits.components.pipeline.views import BOUNDARIES, Piece, View
from assay.audits.guard_terms import Live

Place = tuple[int, int]
"""A row and a token of it."""


def said(live: Live) -> dict[str, set[Place]]:
    """Where samples start behind others of their row, by the name of each key that says so.

    What says nothing is left out: a mask of ones, positions that go on. In the order in which they are believed.
    """
    known: dict[str, set[Place]] = live.once("said", lambda: _said(live))
    return known


def _said(live: Live) -> dict[str, set[Place]]:
    found, view = {}, live.view
    for name in BOUNDARIES:
        if (lengths := view.get(name)) is not None:
            found[name] = _of_lengths(view, lengths)
    for name in ("seq_idx", "attention_mask"):
        value = view.get(name)
        if value is None or value.numel() != view.ids.numel():
            continue
        if name == "attention_mask" and (value.dtype == torch.bool or not bool((value > 1).any())):
            continue  # of ones and zeros: a hole in it is padding between a prompt and its answer
        found[name] = _changes(value.reshape(view.ids.shape))
    ids = view.get("position_ids")
    if ids is not None and not ids.is_floating_point() and ids.numel() % view.ids.numel() == 0:
        found["position_ids"] = _restarts(ids.reshape(-1, *view.ids.shape), view.real)
    first = {(row, _first(view.real[row])) for row in range(len(view.ids))}
    inner = {name: {place for place in places if bool(view.real[place])} - first for name, places in found.items()}
    return {name: places for name, places in inner.items() if places}


def _first(real: Tensor) -> int:
    return int(real.long().argmax()) if real.numel() else 0


def _of_lengths(view: View, lengths: Tensor) -> set[Place]:
    size = view.ids.shape[-1]
    places = (int(place) for place in lengths.flatten().tolist())
    return {(place // size, place % size) for place in places if 0 <= place < view.ids.numel()}


def _changes(numbers: Tensor) -> set[Place]:
    return {(row, place + 1) for row, place in torch.nonzero(numbers[:, 1:] != numbers[:, :-1]).tolist()}


def _restarts(ids: Tensor, real: Tensor) -> set[Place]:
    """Where positions are back at their beginning on all axes; of four rows the first is the text's."""
    first = ids[0] if len(ids) in {1, 4} else ids.amax(0)
    back = (first == 0) & real
    back[:, 1:] &= real[:, :-1]  # behind padding nothing starts anew
    return {(row, place) for row, place in torch.nonzero(back).tolist() if place}


def pieces(live: Live) -> list[Piece]:
    """Each sample of the batch, row after row. Padding at the end of a row that counts as a sample is none."""
    known: list[Piece] = live.once("pieces", lambda: _pieces(live))
    return known


def _pieces(live: Live) -> list[Piece]:
    view = live.view
    starts = next(iter(said(live).values()), set())
    found: list[Piece] = []
    for row in range(len(view.ids)):
        real = torch.nonzero(view.real[row]).flatten().tolist()
        if not real:
            continue
        edges = [real[0], *sorted(place for at, place in starts if at == row), real[-1] + 1]
        for start, stop in pairwise(edges):
            if not _filling(view, row, start, stop, real[0]):
                found.append(Piece(len(found), len(found), row, start, stop))
    return found


def _filling(view: View, row: int, start: int, stop: int, first: int) -> bool:
    """Whether a stretch behind others is one token over and over, without labels: what fills a row up."""
    if start == first or stop - start < 2:
        return start >= stop
    same = len(set(view.ids[row, start:stop].tolist())) == 1
    labels = view.get("labels")
    bare = labels is None or labels.numel() != view.ids.numel()
    return same and (bare or not bool((view.labels[row, start:stop] >= 0).any()))


def packed(found: list[Piece]) -> bool:
    """Whether a row holds several samples."""
    rows = [piece.row for piece in found]
    return len(set(rows)) < len(rows)
