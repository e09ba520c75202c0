"""Reads an answer back: which characters of a conversation its tokens hold, and which of them are trained.

All is counted in bytes, since a token may hold a part of a letter. A token that stands for an image holds none.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from assay.audits.components.label_mask import label_forms, sentence_pieces, templates, vocabularies
from assay.audits.components.label_mask.labels import Inputs
from assay.audits.terms import Outputs
from assay.reference import label_mask

PLACEHOLDERS = (templates.IMAGE, templates.VIDEO)
Span = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One token of an answer: its place in the batch, the bytes it holds (None for a placeholder), its label."""

    sample: int
    place: int
    token: int
    span: Span | None
    label: int

    @property
    def trained(self) -> bool:
        """Whether it is trained on."""
        return self.label != label_mask.IGNORE


@dataclass(frozen=True, kw_only=True)
class Expected:
    """A conversation as rendered: its bytes, the spans that are to be trained, and the terminators within them."""

    text: bytes
    spans: tuple[Span, ...]
    stops: tuple[Span, ...]

    def share(self, span: Span, among: Sequence[Span]) -> float:
        """The part of a span that lies in some others, which do not overlap and are in order."""
        start, stop = span
        held = 0
        for first, last in among:
            if first >= stop:
                break
            held += max(0, min(stop, last) - max(start, first))
        return held / max(1, stop - start)

    def divided(self, span: Span) -> bool:
        """Whether the border of what is to be trained falls into a span."""
        return any(span[0] < edge < span[1] for own in self.spans for edge in own)


class Illegible(ValueError):
    """The ids are not the conversation's: the message says from where on."""


def expected(inputs: Inputs, sample: int) -> Expected:
    """What is to be trained on of a conversation, by the specification."""
    own = inputs.of(sample)
    named = tuple(
        (turn.role, turn.text, len(turn.images), turn.late, turn.split, turn.calls) for turn in own.conversations[0]
    )
    return _expected(_Key(inputs=own, key=(named, inputs.template, inputs.train, inputs.parts)))


@dataclass(frozen=True, eq=False)
class _Key:
    """Inputs by what a rendering depends on: images have no hash, and a rendering does not depend on them."""

    inputs: Inputs
    key: tuple[Any, ...]

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.key == other.key


@lru_cache(maxsize=512)
def _expected(key: _Key) -> Expected:
    inputs = key.inputs
    inputs = inputs if inputs.vocabulary == "small" else _with_small(inputs)
    given = label_forms.messages(inputs, 0)
    end = inputs.style.end_of_turn
    text, spans = label_mask.trained_spans(given, inputs.processor(), end_of_turn=end, train=policy(inputs.train))
    stops = () if inputs.train == "all" else tuple((last - len(end), last) for _, last in spans)

    def octets(span: Span) -> Span:
        return len(text[: span[0]].encode()), len(text[: span[1]].encode())

    return Expected(text=text.encode(), spans=tuple(map(octets, spans)), stops=tuple(map(octets, stops)))


def policy(train: str) -> label_mask.Train:
    """What a case trains, as the specification calls it."""
    return "last" if train == "last" else "all" if train == "all" else "assistant"


def _with_small(inputs: Inputs) -> Inputs:
    """A rendering does not depend on the vocabulary."""
    return dataclasses.replace(inputs, vocabulary="small")


def read(inputs: Inputs, outputs: Outputs) -> tuple[tuple[Piece, ...], ...]:
    """The real tokens of each conversation. :class:`Illegible` where they do not spell it."""
    ids, labels, mask = (outputs[name] for name in ("input_ids", "labels", "attention_mask"))
    many = len(inputs.conversations)
    if len(ids) != many or ids.shape != labels.shape or ids.shape != mask.shape:
        shapes = ", ".join(f"{name} {tuple(outputs[name].shape)}" for name in ("input_ids", "labels", "attention_mask"))
        raise Illegible(f"{many} conversations gave {shapes}")
    found = []
    for sample in range(len(ids)):
        places = mask[sample].bool().nonzero().flatten().tolist()
        tokens, own = ids[sample].tolist(), labels[sample].tolist()
        spans = _spelled([tokens[place] for place in places], expected(inputs, sample).text, inputs, sample)
        found.append(tuple(
            Piece(sample=sample, place=place, token=tokens[place], span=span, label=own[place])
            for place, span in zip(places, spans, strict=True)
            if span is None or span[0] < span[1]  # a blank that the tokenizer added may be trained or not
        ))  # fmt: skip
    return tuple(found)


def _spelled(ids: Sequence[int], text: bytes, inputs: Inputs, sample: int) -> Iterator[Span | None]:
    """The bytes of the rendering that each id holds; a run of placeholders stands for any other run of them."""
    words = without_added_blanks(ids, inputs.vocabulary, text)
    hidden = {word.encode() for word in PLACEHOLDERS}
    at, before = 0, False
    for place, (token, word) in enumerate(zip(ids, words, strict=True)):
        if word in hidden:
            if not before:
                at, start = _past(text, at, hidden), at
                if at == start:
                    raise Illegible(_differs(sample, place, word or b"", text, at))
            before = True
            yield None
            continue
        before = False
        if word is None or not text.startswith(word, at):
            raise Illegible(_differs(sample, place, word or f"id {token}".encode(), text, at))
        yield at, at + len(word)
        at += len(word)
    if text[at:].strip():  # what stands after the last turn's terminator may be left off
        raise Illegible(f"conversation {sample}: the ids end before {shown(text[at : at + 40])}")


def without_added_blanks(ids: Sequence[int], vocabulary: str, text: bytes) -> Iterator[bytes | None]:
    """What each id spells of a text, less the blank that the tokenizer itself writes in front of it or of a section.

    None for an id that is not in the vocabulary.
    """
    words, special = spellings(vocabulary), vocabularies.backend(vocabulary).get_added_tokens_decoder()
    prefixed = sentence_pieces.PREFIXED.get(vocabulary)
    added = prefixed == "sections" or (prefixed == "start" and not text.startswith(b" "))
    for token in ids:
        word = words.get(token)
        yield word.removeprefix(b" ") if added and word else word
        added = prefixed == "sections" and token in special


def image_sizes(inputs: Inputs, sample: int, processor: Any) -> list[int]:
    """How many placeholders a processor makes of each run of images of a conversation, in reading order."""
    text = expected(inputs, sample).text.decode()
    found = label_forms.encoder(inputs, sample, processor)(text)["input_ids"]
    return runs(list(found[0]), processor)


def runs(ids: Sequence[int], processor: Any) -> list[int]:
    """The lengths of the runs of placeholders among ids."""
    hidden = {processor.tokenizer.convert_tokens_to_ids(word) for word in PLACEHOLDERS}
    return [len(list(group)) for is_one, group in itertools.groupby(ids, hidden.__contains__) if is_one]


def _past(text: bytes, at: int, hidden: set[bytes]) -> int:
    while found := next((word for word in hidden if text.startswith(word, at)), b""):
        at += len(found)
    return at


def _differs(sample: int, place: int, word: bytes, text: bytes, at: int) -> str:
    return f"conversation {sample}: token {place} spells {shown(word)} where it has {shown(text[at : at + 24])}"


def shown(text: bytes) -> str:
    """Bytes as quoted text of a bounded length."""
    words = text.decode(errors="replace")
    return repr(words if len(words) <= 80 else f"{words[:38]} ... {words[-38:]}")


@lru_cache(maxsize=8)
def spellings(vocabulary: str) -> dict[int, bytes]:
    """The bytes that each id of a vocabulary stands for."""
    made = vocabularies.backend(vocabulary)
    special = {token: word.content for token, word in made.get_added_tokens_decoder().items()}
    return {
        token: special[token].encode() if token in special else vocabularies.spelling(vocabulary, word)
        for word, token in made.get_vocab(with_added_tokens=True).items()
    }


def trained_runs(pieces: Sequence[Piece], text: bytes) -> tuple[bytes, ...]:
    """What is trained on, run by run, as bytes. Placeholders among them are left out."""
    runs: list[list[bytes]] = []
    last = None
    for piece in pieces:
        if piece.trained and piece.span is not None:
            if last is None or piece.place != last + 1:
                runs.append([])
            runs[-1].append(text[slice(*piece.span)])
            last = piece.place
    return tuple(b"".join(run) for run in runs)
