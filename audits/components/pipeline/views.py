"""What laws read of a pipeline's answer: the rows of a batch, and where each sample lies in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from assay.audits.laws.trial import Trial
from assay.audits.patch_runs import from_bytes
from assay.audits.terms import Inexpressible, Outputs
from assay.reference.mrope_positions import token_types

IGNORED = -100
KINDS = ("image", "video", "audio")
GRIDS = {"image": "image_grid_thw", "video": "video_grid_thw"}
PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
SECONDS = ("second_per_grid_ts", "video_second_per_grid")
BOUNDARIES = ("cu_seq_lens_q", "cu_seqlens", "cu_seq_lens", "cu_seqlens_q")
UNLIKE = ("attention_mask", "position_ids", "seq_idx", "text_position_ids")
"""What has an entry for each token and depends on what else is in the row."""


@dataclass(frozen=True)
class View:
    """One answer of a pipeline."""

    values: Outputs

    @cached_property
    def record(self) -> Mapping[str, Any]:
        """What is no tensor."""
        found: Mapping[str, Any] = from_bytes(self.values["record"])
        return found

    @property
    def facts(self) -> Mapping[str, Any]:
        """Of ``audits.pipeline_facts``."""
        found: Mapping[str, Any] = self.record["facts"]
        return found

    @property
    def samples(self) -> tuple[int, ...]:
        """Indices into the dataset, in the order in which the collator was given them."""
        return tuple(self.record["samples"])

    def get(self, name: str) -> Tensor | None:
        """A tensor of the batch."""
        return self.values.get(f"batch.{name}")

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """All tensors of the batch."""
        return {name[6:]: value for name, value in self.values.items() if name.startswith("batch.")}

    @cached_property
    def ids(self) -> Tensor:
        """[B,S]; a batch without rows counts as one row."""
        ids = self.values["batch.input_ids"]
        return ids.reshape(-1, ids.shape[-1])

    @cached_property
    def labels(self) -> Tensor:
        """[B,S]. Inexpressible where there are none, or none for each token."""
        labels = self.get("labels")
        if labels is None:
            raise Inexpressible("the batch has no labels")
        if labels.numel() != self.ids.numel():
            raise Inexpressible("the labels are not one for each token: see the law accepted")
        return labels.reshape(self.ids.shape)

    @cached_property
    def real(self) -> Tensor:
        """Which tokens are no padding [B,S]: by the mask, or by the padding token at the ends of rows."""
        mask = self.get("attention_mask")
        if mask is not None and mask.numel() == self.ids.numel():
            return mask.reshape(self.ids.shape) != 0
        return self._inner(self.ids != self.facts["pad"] if self.facts["pad"] is not None else self.ids >= 0)

    def _inner(self, other: Tensor) -> Tensor:
        """From the first to the last token that is no padding token, and one more, which may end the text."""
        other = other | (self.labels >= 0 if self._labelled else torch.zeros_like(other))
        return (other.long().cumsum(-1) > 0) & (other.flip(-1).long().cumsum(-1).flip(-1) > 0)

    @property
    def _labelled(self) -> bool:
        labels = self.get("labels")
        return labels is not None and labels.numel() == self.ids.numel()

    @cached_property
    def types(self) -> Tensor:
        """The modality of each token by the placeholder ids [B,S]: 0 text, 1 image, 2 video, 3 audio."""
        known, markers = self.facts["placeholders"], dict(self.facts["markers"])
        named = {f"{kind}_id": known[kind] for kind in KINDS if kind in known}
        if markers:
            named.pop("video_id", None)
        return token_types(self.ids.long(), **named, **{f"{name}_id": token for name, token in markers.items()})

    def per_token(self) -> Iterator[tuple[str, Tensor]]:
        """What has one entry for each token, as [B,S]."""
        for name, value in self.tensors.items():
            if value.numel() == self.ids.numel() and value.shape[-1] == self.ids.shape[-1] and name not in UNLIKE:
                yield name, value.reshape(self.ids.shape)

    def model(self, name: str) -> Tensor:
        """What the model's run gave. Inexpressible where it gave no such thing."""
        if name not in self.values:
            reasons = {
                "loss": "the model gives no loss: the batch has no labels",
                "positions": "the model has no rotary module whose positions could be watched",
            }
            raise Inexpressible(reasons.get(name, f"the run gave no {name}"))
        return self.values[name]


def view(trial: Trial, **changes: Any) -> View:
    """The answer to the trial's call with these fields changed, asked once for all laws."""
    found: View = trial.once(f"view {sorted(changes.items())!r}", lambda: View(trial.varied(**changes)))
    return found


@dataclass(frozen=True)
class Piece:
    """Where sample number ``number`` of a batch lies: tokens ``start`` to ``stop`` (not included) of a row."""

    number: int
    sample: int
    row: int
    start: int
    stop: int

    def of(self, rows: Tensor) -> Tensor:
        """Its entries of a tensor [...,B,S]."""
        return rows[..., self.row, self.start : self.stop]


DRAWS = 16
"""Under so many seeds a batch is made where its collator draws: what is changed by one in three is then seen."""


def draws(found: View) -> range:
    """The seeds under which a batch is compared with itself: one where no global generator was drawn from."""
    return range(1, DRAWS if found.record["draws"] else 2)


def drawn(trial: Trial, **changes: Any) -> frozenset[str]:
    """What of the batch is another under another seed: a collator that augments draws otherwise in other company."""
    here = view(trial, **changes)
    found: set[str] = set()
    for draw in draws(here):
        there = view(trial, **changes, draw=draw)
        found |= {
            name
            for name in {*here.tensors, *there.tensors}
            if (one := here.get(name)) is None or (other := there.get(name)) is None or not _equal(one, other)
        }
    return frozenset(found)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def still(trial: Trial) -> None:
    """Inexpressible where the collator draws: a sample is another then in each batch."""
    if names := drawn(trial):
        raise Inexpressible(f"the collator draws {', '.join(sorted(names))}: a sample is another in another batch")


def alone(trial: Trial, sample: int, **changes: Any) -> View:
    """The batch of one sample."""
    return view(trial, samples=(sample,), first=0, **changes)


def piece_alone(trial: Trial, sample: int, **changes: Any) -> Piece:
    """Where a sample lies in the batch of itself."""
    return _whole(alone(trial, sample, **changes).real, 0, sample, 0)


def _whole(real: Tensor, row: int, sample: int, number: int) -> Piece:
    places = torch.nonzero(real[row]).flatten().tolist()
    return Piece(number, sample, row, places[0], places[-1] + 1) if places else Piece(number, sample, row, 0, 0)


def pieces(trial: Trial, found: View, **changes: Any) -> list[Piece]:
    """Where each sample of a batch lies, by its ids alone, in the order of the batch.

    Inexpressible where one cannot be found: the law ``placement`` says so.
    """
    placed, lost = located(trial, found, **changes)
    if lost:
        raise Inexpressible("the samples of the batch are not those of single batches: see the law placement")
    return placed


def located(trial: Trial, found: View, **changes: Any) -> tuple[list[Piece], list[int]]:
    """The pieces of a batch, and the indices of the samples that are not in it as they are alone."""
    wanted = {number: _ids_alone(trial, sample, **changes) for number, sample in enumerate(found.samples)}
    placed = _in_rows(found, wanted)
    lost = sorted(set(wanted) - {piece.number for piece in placed})
    return placed, [found.samples[number] for number in lost]


def _ids_alone(trial: Trial, sample: int, **changes: Any) -> list[int]:
    single, piece = alone(trial, sample, **changes), piece_alone(trial, sample, **changes)
    ids: list[int] = piece.of(single.ids).tolist()
    return ids


def _in_rows(found: View, wanted: Mapping[int, list[int]]) -> list[Piece]:
    """Each row is read from its first real token on, sample after sample; its own sample is tried first."""
    left, placed = dict(wanted), []
    for row in range(len(found.ids)):
        whole = _whole(found.real, row, 0, 0)
        ids, place = found.ids[row].tolist(), whole.start
        order = sorted(left, key=lambda number: (number != row, number))
        between = {found.facts["pad"], *found.facts["special"]}
        for number, start in _chain(ids[: whole.stop], place, left, order, between):
            stop = start + len(left.pop(number))
            placed.append(Piece(number, found.samples[number], row, start, stop))
    return placed


def _chain(
    ids: list[int], start: int, left: Mapping[int, list[int]], order: Sequence[int], between: AbstractSet[int | None]
) -> list[tuple[int, int]]:
    """The samples that follow each other from ``start`` on, the longest where several fit.

    Padding and control tokens that stand ``between`` samples are passed over.
    """
    found: list[tuple[int, int]] = []
    used: set[int] = set()
    while start < len(ids):
        fitting = [n for n in order if n not in used and left[n] and ids[start : start + len(left[n])] == left[n]]
        if fitting:
            number = max(fitting, key=lambda n: (len(left[n]), -order.index(n)))
            found.append((number, start))
            used.add(number)
            start += len(left[number])
        elif ids[start] in between:
            start += 1
        else:
            break
    return found


def packed(placed: Sequence[Piece]) -> bool:
    """Whether a row holds several samples."""
    rows = [piece.row for piece in placed]
    return len(set(rows)) < len(rows)


def first_difference(left: Tensor, right: Tensor) -> int | None:
    """The first place at which two vectors differ; None where they do not."""
    wrong = torch.nonzero(left != right).flatten()
    return int(wrong[0]) if len(wrong) else None
