"""Batches with placeholders: what ``masked_scatter.scatter`` and ``masked_scatter.deepstack`` are asked about.

Letters: B batch, S tokens, H hidden, N features of a modality, K its media (images, videos, sounds).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import AfterValidator
from torch import Tensor

from assay.audits.fields import Count, Size, one_of
from assay.audits.laws.limits import row_reach
from assay.audits.strategies import st
from assay.audits.terms import Inexpressible, Outputs

MODALITIES = ("image", "video", "audio")
LAYOUTS = ("flat", "stacked", "list")
PAD, WORDS = 0, 64
"""The id of padding, and how many ids of words there are; placeholders come after."""
_SEGMENT = re.compile(r"([tiva])(\d+)")
_KINDS = {"i": "image", "v": "video", "a": "audio"}

Segment = tuple[str, int]
"""``text`` or a modality, and how many tokens of it."""


def segments(row: str) -> tuple[Segment, ...]:
    """A sample as it is written: ``t3 i4 t2 v6`` is three words, an image of four features, two words, a video."""
    found = [_SEGMENT.fullmatch(word) for word in row.split()]
    if None in found:
        message = f"sample {row!r}: expected words such as t3 i4 v6 a2"
        raise ValueError(message)
    return tuple((_KINDS.get(match[1], "text"), int(match[2])) for match in found if match)


def _readable(row: str) -> str:
    segments(row)
    return row


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """``input_ids`` [B,S] int64; ``embeddings`` [B,S,H], hidden states for deepstack; features [N,H] or None.

    ``sizes`` says of each medium which modality it is and how many features it has, in the order of the batch;
    ``layout`` how features are handed over; ``ids`` are the placeholders of image, video and audio.
    """

    input_ids: Tensor
    embeddings: Tensor
    image: Tensor | None
    video: Tensor | None
    audio: Tensor | None
    sizes: tuple[Segment, ...]
    layout: str
    ids: tuple[int, ...]

    def flat(self) -> dict[str, Tensor]:
        """The features [N,H] of each modality that has some."""
        found = {name: getattr(self, name) for name in MODALITIES}
        return {name: rows for name, rows in found.items() if rows is not None}

    def placeholders(self) -> dict[str, int]:
        """The id of each modality."""
        return dict(zip(MODALITIES, self.ids, strict=True))

    def media(self, modality: str) -> list[int]:
        """How many features each medium of a modality has."""
        return [count for name, count in self.sizes if name == modality]

    def handed(self) -> dict[str, Any]:
        """The features of each modality as the layout has them."""
        return {name: _laid_out(rows, self.media(name), self.layout) for name, rows in self.flat().items()}

    def mask(self, modality: str) -> Tensor:
        """[B,S] bool: the placeholders of a modality."""
        return self.input_ids == self.placeholders()[modality]

    def masked(self) -> Tensor:
        """[B,S] bool: the placeholders of all modalities."""
        return torch.isin(self.input_ids, torch.tensor(self.ids, device=self.input_ids.device))

    def joined(self) -> Tensor:
        """The features of all modalities [sum of N,H], in the order of their placeholders in the batch."""
        order = torch.cat([*(self.mask(name).flatten().nonzero() for name in self.flat()), self._no_place()])[:, 0]
        return torch.cat([*self.flat().values(), self.embeddings.new_zeros(0, self.width)])[order.argsort()]

    def _no_place(self) -> Tensor:
        return torch.zeros((0, 1), dtype=torch.int64, device=self.input_ids.device)

    @property
    def width(self) -> int:
        """H."""
        return self.embeddings.shape[-1]

    def fits(self) -> bool:
        """Whether each modality has as many features as placeholders."""
        given = self.flat()
        return all(int(self.mask(name).sum()) == len(given.get(name, ())) for name in MODALITIES)

    def spread(self) -> bool:
        """Whether the features of one medium would lie in two samples, as far as the layout says what a medium has."""
        if self.layout == "flat" or not self.fits():
            return False
        for name in self.flat():
            sample = self.mask(name).nonzero()[:, 0]
            if any(len(set(own.tolist())) > 1 for own in torch.split(sample, self.media(name))):
                return True
        return False


def _laid_out(rows: Tensor, media: list[int], layout: str) -> Any:
    if layout == "flat":
        return rows
    if layout == "stacked":
        return rows.view(len(media), -1, rows.shape[-1]) if media else rows[None][:0]
    return list(torch.split(rows, media))


@dataclass(frozen=True, kw_only=True)
class Case:
    """Parameters of a case. ``rows``: what each sample holds. ``first_id``: of the placeholders, which follow it."""

    seed: Count = 0
    rows: tuple[Annotated[str, AfterValidator(_readable)], ...] = ("t2 i3 t1 i2 t3", "t4", "i5 t2")
    hidden: Size = 6
    layout: Annotated[str, one_of(LAYOUTS)] = "list"
    padding: Annotated[str, one_of(("right", "left"))] = "right"
    first_id: int = WORDS

    def sizes(self) -> tuple[Segment, ...]:
        """Every medium of the batch."""
        return tuple(part for row in self.rows for part in segments(row) if part[0] != "text" and part[1])

    def count(self, modality: str) -> int:
        """How many features a modality has."""
        return sum(count for name, count in self.sizes() if name == modality)


def supports(case: Case) -> str | None:
    """Features are stacked only where all media of a modality have as many."""
    for name in MODALITIES:
        if case.layout == "stacked" and len({count for kind, count in case.sizes() if kind == name}) > 1:
            return "media of different sizes cannot be stacked"
    return None


def build(case: Case, dtype: torch.dtype, device: torch.device) -> Inputs:
    """Words that are drawn, placeholders where ``rows`` says, and features of another size than the embeddings."""
    if -len(MODALITIES) < case.first_id < WORDS:
        message = f"first_id: expected {WORDS} or more, or {-len(MODALITIES)} or less, got {case.first_id}"
        raise ValueError(message)
    draw = torch.Generator().manual_seed(case.seed)
    ids = tuple(case.first_id + place for place in range(len(MODALITIES)))
    rows = [_ids(segments(row), dict(zip(MODALITIES, ids, strict=True)), draw) for row in case.rows]
    input_ids = torch.full((len(rows), max(map(len, rows), default=0)), PAD)
    for own, row in zip(input_ids, rows, strict=True):
        own[len(own) - len(row) if case.padding == "left" else 0 :][: len(row)] = row
    table = torch.randn((WORDS + len(MODALITIES), case.hidden), generator=draw)
    special = (input_ids >= WORDS) | (input_ids < 0)
    embeddings = table[torch.where(special, input_ids - case.first_id + WORDS, input_ids)]
    features = {name: _features(case.count(name), case.hidden, draw) for name in MODALITIES}
    return Inputs(
        input_ids=input_ids.to(device), embeddings=embeddings.to(device, dtype), sizes=case.sizes(), ids=ids,
        layout=case.layout, **{name: None if x is None else x.to(device, dtype) for name, x in features.items()},
    )  # fmt: skip


def _ids(parts: Sequence[Segment], ids: Mapping[str, int], draw: torch.Generator) -> Tensor:
    none = torch.zeros(0, dtype=torch.int64)
    words = [torch.randint(1, WORDS, (count,), generator=draw) for kind, count in parts if kind == "text"]
    text = iter(words)
    return torch.cat([none, *(next(text) if kind == "text" else none.new_full((n,), ids[kind]) for kind, n in parts)])


def _features(count: int, hidden: int, draw: torch.Generator) -> Tensor | None:
    return 3 * torch.randn((count, hidden), generator=draw) + 0.5 if count else None


def reach(inputs: Inputs, upstream: Outputs | None, *, output: str, added: bool) -> Outputs:
    """What rounding is proportional to: the largest of each row of what is copied or added, and of its gradient."""
    own, features = row_reach(inputs.embeddings), _reaches(inputs)
    found = {output: own + features if added else torch.where(inputs.masked()[..., None], features, own)}
    if upstream is not None:
        rows = row_reach(upstream[output])
        found["grad:embeddings"] = rows
        found |= {f"grad:{name}": rows[inputs.mask(name)] for name in inputs.flat()}
    return found


def _reaches(inputs: Inputs) -> Tensor:
    """[B,S,1]: the largest magnitude of the feature at each place."""
    out = torch.zeros((*inputs.input_ids.shape, 1), dtype=torch.float64, device=inputs.input_ids.device)
    for name, rows in inputs.flat().items():
        out[inputs.mask(name)] = row_reach(rows)
    return out


def draws(inputs: Inputs) -> Iterator[Inputs]:
    """Other embeddings and features."""
    features: dict[str, Any] = {name: rows.detach().flip(-1) + 1 for name, rows in inputs.flat().items()}
    yield dataclasses.replace(inputs, embeddings=inputs.embeddings.detach().flip(-1) + 1, **features)


def strategy() -> st.SearchStrategy[Case]:
    """Samples of words and media, short and ragged, empty ones among them."""
    part = st.tuples(st.sampled_from("tttiiva"), st.integers(1, 5)).map(lambda part: f"{part[0]}{part[1]}")
    row = st.lists(part, max_size=5).map(" ".join)
    return st.builds(
        Case, seed=st.integers(0, 2**16), rows=st.lists(row, max_size=4).map(tuple), hidden=st.integers(1, 9),
        layout=st.sampled_from(("flat", "list")), padding=st.sampled_from(("right", "left")),
    )  # fmt: skip


CASES: Mapping[str, Case] = {
    "images": Case(),
    "adjacent": Case(rows=("i2 i3 t1", "t2 i1 i4"), seed=1),
    "mixed": Case(rows=("t1 v3 t1 i2 a1 t2", "i2 v2 t1", "a3 t1 v1 i1"), seed=2),
    "stacked": Case(rows=("t1 i4 t2 i4", "i4 t3", "t9"), layout="stacked", seed=3),
    "flat-left": Case(rows=("t3 i2 t1", "i7", "t1 v2"), layout="flat", padding="left", seed=4),
    "one": Case(rows=("t1 i1",), seed=5),
    "narrow": Case(rows=("t1 i2", "t2 i3 t1"), hidden=1, seed=6),
    "long": Case(rows=("t5 i150 t3", "t2 i7 t90 i31", "v120 t1"), hidden=4, seed=7),
    "nothing-but": Case(rows=("i4", "v4"), layout="flat", seed=8),
    "text": Case(rows=("t5", "t2"), seed=9),
    "empty-sample": Case(rows=("", "t1 i2 t1", ""), padding="left", seed=10),
    "no-sample": Case(rows=(), seed=11),
    "negative-id": Case(rows=("t2 i2 t1", "i1 t3 a2"), first_id=-200, seed=12),
    "vocabulary": Case(rows=("t2 i2 v1 t1", "a1 i1 t2"), first_id=151655, seed=13),  # ids that bfloat16 takes for one
    "thousands": Case(rows=("t1 i2100 t2", "i3 t1"), hidden=1, seed=14),  # places that half precision cannot count
    "wide": Case(rows=("t1 i2 t1", "i1 t2"), hidden=1300, seed=15),
    "crowd": Case(rows=("t1 i2", "i1 t2", "t3", "i3", "v2 t1", "t1 i1", "i2 t1", "", "t1 i2", "i1 v1"), seed=16),
}

Place = Callable[[Tensor, str, Tensor], Tensor]
"""Rows [B,S,H], a modality and its features [N,H] to rows with these features put in, or added."""


def one_by_one(inputs: Inputs, place: Place) -> Tensor:
    """Modality after modality, as trainers write it: what has neither placeholders nor features is passed over.

    Inexpressible where a medium lies in two samples, which features as one matrix do not tell.
    """
    _tellable(inputs)
    x, given = inputs.embeddings, inputs.flat()
    for name in MODALITIES:
        rows = given.get(name)
        if rows is not None or bool(inputs.mask(name).any()):
            x = place(x, name, x.new_zeros(0, inputs.width) if rows is None else rows)
    return x


def at_once(inputs: Inputs) -> Tensor:
    """The features of all modalities [sum of N,H] as they are handed over beside one mask for all.

    Inexpressible where there are as many as placeholders in sum alone: which modality lacks some is not to be seen.
    """
    _tellable(inputs)
    if inputs.fits():
        return inputs.joined()
    rows = torch.cat([*inputs.flat().values(), inputs.embeddings.new_zeros(0, inputs.width)])
    if len(rows) == int(inputs.masked().sum()):
        raise Inexpressible("features of all modalities are handed over as one")
    return rows


def _tellable(inputs: Inputs) -> None:
    if inputs.spread():
        raise Inexpressible("features as one matrix do not tell where a medium ends")


def chosen(inputs: Inputs, samples: Sequence[int]) -> Inputs:
    """The batch of these samples alone, in this order, with their own features."""
    features: dict[str, Any] = {}
    sizes: list[Segment] = []
    for name, rows in inputs.flat().items():
        own = torch.split(rows, inputs.mask(name).sum(1).tolist())
        media = _by_sample(inputs.media(name), [len(part) for part in own])
        found = torch.cat([own[sample] for sample in samples])
        features[name] = found if len(found) else None
        sizes += [(name, count) for sample in samples for count in media[sample]]
    picked = list(samples)
    return dataclasses.replace(
        inputs, input_ids=inputs.input_ids[picked], embeddings=inputs.embeddings[picked], sizes=tuple(sizes), **features
    )


def _by_sample(media: list[int], counts: list[int]) -> list[list[int]]:
    """The sizes of the media of each sample, of which the counts of features are known."""
    left, found = iter(media), []
    for count in counts:
        own: list[int] = []
        while sum(own) < count:
            own.append(next(left))
        found.append(own)
    return found


def columns(inputs: Inputs, start: int, stop: int) -> Inputs:
    """The tokens from ``start`` to ``stop`` of each sample, with the features that belong there, as one list."""
    features: dict[str, Any] = {}
    for name, rows in inputs.flat().items():
        column = inputs.mask(name).nonzero()[:, 1]
        kept = rows[(column >= start) & (column < stop)]
        features[name] = kept if len(kept) else None
    own = slice(start, stop)
    return dataclasses.replace(
        inputs, input_ids=inputs.input_ids[:, own], embeddings=inputs.embeddings[:, own], layout="flat", **features
    )
