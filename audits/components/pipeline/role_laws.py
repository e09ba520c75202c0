"""The laws of who speaks: heads of turns, and answers that are told before their turn."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from assay.audits.components.pipeline.views import View, alone, piece_alone, view
from assay.audits.laws.trial import Trial
from assay.audits.pipeline_talks import matched
from assay.audits.terms import Evidence, Inexpressible

SPEAKERS = ("user", "assistant")


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A message in its row: its number, its role, and what stands between the text before it and its own."""

    number: int
    role: str
    gap: str

    def under(self, heads: Mapping[str, str]) -> str:
        """The role whose head stands right before it; empty where none does."""
        return max((role for role in heads if self.gap.endswith(heads[role])), key=lambda r: len(heads[r]), default="")


def roles(trial: Trial) -> Iterator[Evidence]:
    """Each message of a sample stands under the head that the chat template writes for its role.

    Why: heads are all that tells a question from an answer. Texts, labels and lengths agree where the user's lines are
    given to the assistant; a model is then trained for a conversation that nobody will have with it. A pipeline with a
    form of its own is asked only not to use the template's heads for others; a system prompt may be put into the
    user's first turn, and more may be written between a head and its text.

    Example: roles that are told by the number of the turn, in conversations of which some begin with a system prompt.
    """
    found = view(trial)
    heads: Mapping[str, str] = found.facts.get("heads", {})
    if not heads:
        raise Inexpressible("there is no chat template, or one whose heads do not tell roles apart")
    talks = dict(zip(found.samples, found.record["talks"], strict=True))
    asked = False
    for sample in found.samples:
        if not talks[sample]:
            continue
        row = "".join(alone(trial, sample).record["spoken"])
        turns = list(_turns(row, talks[sample]["messages"]))
        asked = asked or bool(turns)
        for turn, said in _strange(turns, heads):
            message = f"sample {sample}: message {turn.number}, the {turn.role}'s, {said}"
            measured = turn.gap[-60:] or "nothing"
            yield Evidence(
                where="input_ids", measured=measured, limit=heads[turn.role], message=message, index=(sample,)
            )
            return
    if not asked:
        raise Inexpressible("the samples have no messages that stand at one place only of their rows")


def _turns(row: str, told: Sequence[Mapping[str, Any]]) -> Iterator[Turn]:
    """The messages whose first text can stand at one place only, as the one before it can."""
    texts = [(place, said, not number) for place, one in enumerate(told) for number, said in enumerate(one["texts"])]
    kept = [texts[number] for number in matched(row, [said for _, said, _ in texts])]
    starts, latest = _places(row, [said for _, said, _ in kept])
    end = 0
    for (place, said, first), start, late in zip(kept, starts, latest, strict=True):
        if start != late:
            end = -1
            continue
        if first and end >= 0:
            yield Turn(number=place, role=told[place]["role"], gap=row[end:start])
        end = start + len(said)


def _places(row: str, texts: Sequence[str]) -> tuple[list[int], list[int]]:
    """The first and the last place at which each of some texts can stand, all of them in their order."""
    first, last, start, stop = [], [], 0, len(row)
    for said in texts:
        first.append(row.find(said, start))
        start = first[-1] + len(said)
    for said in reversed(texts):
        last.append(row.rfind(said, 0, stop))
        stop = last[-1]
    return first, last[::-1]


def _strange(turns: Sequence[Turn], heads: Mapping[str, str]) -> Iterator[tuple[Turn, str]]:
    known = {turn.number: turn.under(heads) for turn in turns}
    after = {turn.number: known[late.number] for turn, late in itertools.pairwise(turns)}
    for turn in turns:
        seen = known[turn.number]
        merged = turn.role == "system" and not after.get(turn.number)
        if turn.role in heads and seen and seen != turn.role and not merged:
            yield turn, f"stands under the head of the {seen}"
    speaking = [turn for turn in turns if turn.role in SPEAKERS]
    yield from _unknown(speaking, turns, known, heads)
    strange = {role: {t.gap for t in speaking if t.role == role and not known[t.number]} - {""} for role in SPEAKERS}
    for turn in speaking:
        if not known[turn.number] and turn.gap in strange["user"] & strange["assistant"]:
            yield turn, "begins as those of others do: nothing tells who speaks"


def _unknown(
    speaking: Sequence[Turn], turns: Sequence[Turn], known: Mapping[int, str], heads: Mapping[str, str]
) -> Iterator[tuple[Turn, str]]:
    """A head that is none, in a row whose other speaker has the template's."""
    for turn in speaking:
        others = [other for other in speaking if other.role != turn.role]
        framed = bool(others) and all(known[other.number] == other.role for other in others)
        ruled = any(other.number == turn.number - 1 and other.role == "system" for other in turns)
        if framed and turn.gap and not ruled and heads[turn.role] not in turn.gap:
            yield turn, "stands under a head that the chat template does not write"


def markup(trial: Trial) -> Iterator[Evidence]:
    """Where a row says what its conversation says, all that stands between the texts is as the chat template writes it.

    Why: control tokens and line breaks are tokens as others are. A model that is trained with a turn that ends
    otherwise, without a line break or without the marks around a picture, meets prompts that it has never seen. How the
    row begins and ends is a choice; so are pictures at another place, and rows that say more or less.

    Example: a collator that writes the template's parts by hand, and forgets the line break after a role.
    """
    found = view(trial)
    asked = False
    ends = [*found.facts["ends"].values(), found.facts["begins"]]
    for sample, meant in zip(found.samples, found.record["meant"], strict=True):
        rows = alone(trial, sample).record["exact"]
        if meant is None or len(rows) != 1 or rows[0][1] != meant[1]:
            continue
        asked = True
        row, want = (_trimmed(said, ends) for said in (rows[0][0], meant[0]))
        if row != want:
            place = next(
                (at for at, (a, b) in enumerate(zip(row, want, strict=False)) if a != b), min(map(len, (row, want)))
            )
            message = f"sample {sample}: its row says what its conversation says, with other markup than the template's"
            measured, limit = (repr(said[max(0, place - 20) : place + 30]) for said in (row, want))
            yield Evidence(where="input_ids", measured=measured, limit=limit, message=message, index=(sample,))
            return
    if not asked:
        raise Inexpressible("no row says what its conversation says by a chat template")


def _trimmed(said: str, ends: Sequence[str]) -> str:
    """Without blanks and tokens that begin or end texts at its ends."""
    before = None
    while before != said:
        before, said = said, said.strip()
        for end in filter(None, ends):
            said = said.removesuffix(end).removeprefix(end)
    return said


def foretold(trial: Trial) -> Iterator[Evidence]:
    """What stands in a row before an answer stays as it is where the answer says something else.

    Why: an answer that can be read in its own prompt is copied, not found. The loss falls faster than ever, and the
    model has learnt nothing of the picture. It shows in no count, and hardly in a decoded batch.

    Example: a field of the dataset that is written into the question as a hint, and holds the answer.
    """
    found = view(trial)
    _ = found.labels
    changed = asked = False
    for sample in found.samples:
        single = alone(trial, sample)
        for number in range(1, len(single.record["wants"][0] or ()) + 1):
            try:
                other = alone(trial, sample, reworded=number)
            except Inexpressible:
                continue
            changed = changed or single.ids.tolist() != other.ids.tolist()
            before = _before(trial, sample, single, number), _before(trial, sample, other, number, reworded=number)
            if not (before[0] and before[1]):
                continue
            asked = True
            place = _difference(*before)
            if place is not None:
                message = f"sample {sample}: what stands before answer {number} is another where the answer is"
                measured, limit = str(before[1][place]), str(before[0][place])
                yield Evidence(where="input_ids", measured=measured, limit=limit, message=message, index=(place,))
                return
    if not (changed and asked):
        raise Inexpressible("no row with a prompt changes with an answer of its sample's messages")


def _before(trial: Trial, sample: int, single: View, number: int, **changes: int) -> list[int]:
    """The ids of a sample's row before an answer, by what is trained on; none where it cannot be told which it is."""
    piece = piece_alone(trial, sample, **changes)
    runs = [run for run in single.record["decoded"][piece.row] if piece.start <= run[0] < piece.stop]
    count = len(single.record["wants"][0])
    if len(runs) != count:
        number = number - count + len(runs) if number == count else 0
    if not 0 < number <= len(runs):
        return []
    ids: list[int] = single.ids[piece.row, piece.start : runs[number - 1][0]].tolist()
    return ids


def _difference(one: list[int], other: list[int]) -> int | None:
    """Where two beginnings differ that may have been cut on the left; None where they do not."""
    size = min(len(one), len(other))
    if one[len(one) - size :] == other[len(other) - size :]:
        return None
    return next(place for place in range(size) if one[place] != other[place])
