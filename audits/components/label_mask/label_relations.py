"""Laws that relate the labels of two conversations: what must not change which characters are trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from assay.audits.components.label_mask import conversations, labels, reading
from assay.audits.components.label_mask.conversations import Turn
from assay.audits.components.label_mask.label_laws import pieces
from assay.audits.components.label_mask.labels import NAME, Inputs
from assay.audits.components.label_mask.reading import Piece
from assay.audits.components.label_mask.templates import TEMPLATES
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Inexpressible, Law, Operation, Outputs

Runs = tuple[bytes, ...]
Turns = tuple[Turn, ...]


def _runs(trial: Trial, inputs: Inputs) -> tuple[Runs, ...]:
    """What is trained of each conversation, run by run.

    :class:`Inexpressible` where byte pairs merge over the border of an answer: what becomes of such a token is free.
    """
    if inputs is trial.inputs:
        own: tuple[Runs, ...] | str = trial.once("runs", lambda: _or_reason(inputs, trial.outcome.values))
        if isinstance(own, str):
            raise Inexpressible(own)
        return own
    return _read_runs(inputs, trial.run(inputs))


def _or_reason(inputs: Inputs, outputs: Outputs) -> tuple[Runs, ...] | str:
    try:
        return _read_runs(inputs, outputs)
    except Inexpressible as reason:
        return str(reason)


def _read_runs(inputs: Inputs, outputs: Outputs) -> tuple[Runs, ...]:
    found = []
    for sample, row in enumerate(pieces(inputs, outputs)):
        whole = reading.expected(inputs, sample)
        if any(whole.divided(piece.span) for piece in row if piece.span):
            raise Inexpressible("byte pairs merge over the border of an answer")
        found.append(reading.trained_runs(row, whole.text))
    return tuple(found)


def _same(what: str, got: Runs, want: Runs, sample: int) -> Iterator[Evidence]:
    if got == want:
        return
    place = next((i for i, (a, b) in enumerate(zip(got, want, strict=False)) if a != b), min(len(got), len(want)))
    shown = [reading.shown(runs[place]) if place < len(runs) else "nothing" for runs in (got, want)]
    yield Evidence(
        where="labels", measured=shown[0], limit=shown[1], index=(sample,),
        message=f"{what} changed what is trained: run {place} of {len(want)}, measured with it, the limit without",
    )  # fmt: skip


def _mapped(inputs: Inputs, change: Callable[[Turns], Turns]) -> Inputs:
    return dataclasses.replace(inputs, conversations=tuple(map(change, inputs.conversations)))


def _asked(turns: Turns) -> int:
    """The place of the first turn that is not a system prompt."""
    return next((place for place, turn in enumerate(turns) if turn.role != "system"), len(turns))


def _unchanged(trial: Trial, what: str, changed: Inputs) -> Iterator[Evidence]:
    before = _runs(trial, trial.inputs)
    for sample, (own, other) in enumerate(zip(before, _runs(trial, changed), strict=True)):
        yield from _same(what, other, own, sample)


def pictures(trial: Trial) -> Iterator[Evidence]:
    """Larger images, and one more, change no trained character.

    Why: an image is hundreds of tokens in front of the answer. Whoever counts tokens of text alone is wrong by all of
    them, the more the larger the image. What was kept from another call with the same text is wrong likewise.

    Example: the prompt's length taken from the text before its placeholders are expanded.
    """
    inputs: Inputs = trial.inputs
    if any(word in inputs.texts for word in reading.PLACEHOLDERS):
        raise Inexpressible("a processor takes a placeholder that is typed for one of its images")
    generator = torch.Generator().manual_seed(trial.seed)
    larger = tuple(image.repeat(2, 2, 1) for image in inputs.images)
    more = labels.picture(4, 10, generator)

    def with_one_more(turns: Turns) -> Turns:
        place = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
        if place is None:
            return turns
        turn = dataclasses.replace(turns[place], images=(*turns[place].images, len(larger)))
        return (*turns[:place], turn, *turns[place + 1 :])

    if larger:
        yield from _unchanged(trial, "larger images", dataclasses.replace(inputs, images=larger))
    changed = dataclasses.replace(_mapped(inputs, with_one_more), images=(*larger, more))
    yield from _unchanged(trial, "larger images, and one more,", changed)


def system(trial: Trial) -> Iterator[Evidence]:
    """A system prompt, or another one, changes no trained character.

    Why: templates write a default system prompt where none is given. Lengths and offsets that were measured without
    it are wrong with it.

    Example: the prompt encoded without the system prompt that the template adds.
    """
    said = "You answer in the fewest words. The assistant is brief."

    def told(turns: Turns) -> Turns:
        return (Turn(role="system", text=said), *turns[_asked(turns) :])

    yield from _unchanged(trial, "another system prompt", _mapped(trial.inputs, told))


def earlier(trial: Trial) -> Iterator[Evidence]:
    """An exchange in front changes no trained character of what follows it.

    Why: a mask that is right for one turn may treat all before the last answer as its prompt, or all after the first
    prompt as its answer.

    Example: one prompt, one response, whatever the number of turns.
    """
    exchange = (Turn(role="user", text="Is it raining?"), Turn(role="assistant", text="No, the sun is out."))

    def after_one(turns: Turns) -> Turns:
        place = _asked(turns)
        return (*turns[:place], *exchange, *turns[place:])

    changed = _mapped(trial.inputs, after_one)
    before = _runs(trial, trial.inputs)
    after = _runs(trial, changed)
    for sample, (own, other) in enumerate(zip(before, after, strict=True)):
        yield from _same("an earlier exchange", other[len(other) - len(own) :], own, sample)


def later(trial: Trial) -> Iterator[Evidence]:
    """An exchange at the end leaves the earlier answers trained, and is trained itself.

    Why: supervision of all but the last turn is lost without a sign: the loss is that of fewer tokens.

    Example: the ids searched backwards for the last of the assistant's headers.
    """
    exchange = (Turn(role="user", text="Is it raining?"), Turn(role="assistant", text="No, the sun is out."))
    changed = _mapped(trial.inputs, lambda turns: (*turns, *exchange))
    before = _runs(trial, trial.inputs)
    after = _runs(trial, changed)
    ending = f"No, the sun is out.{trial.inputs.style.end_of_turn}".encode()
    for sample, (own, other) in enumerate(zip(before, after, strict=True)):
        yield from _same("a later exchange", other, (*own, ending), sample)


def quoted(trial: Trial) -> Iterator[Evidence]:
    """A prompt that holds the answer's own words, and the words that templates use, changes no trained character.

    Why: the answer is in the prompt wherever a user asks to read, to repeat or to choose. What is found by searching
    is found there first.

    Example: the first occurrence of the answer's tokens taken for the answer.
    """

    def told(turns: Turns) -> Turns:
        place = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
        if place is None:
            return turns
        said = "\n".join(turn.text for turn in turns if turn.role == "assistant")
        said = said.replace(trial.inputs.style.opening, "").replace(trial.inputs.style.end_of_turn, "")
        text = f"{said}\n{said} {conversations.ALIKE}".replace("<|image_pad|>", "")
        turn = dataclasses.replace(turns[place], text=f"{turns[place].text}\n{text}")
        return (*turns[:place], turn, *turns[place + 1 :])

    yield from _unchanged(trial, "the answer in the prompt", _mapped(trial.inputs, told))


def neighbours(trial: Trial) -> Iterator[Evidence]:
    """A conversation has the same ids and trained characters alone as in a batch.

    Why: lengths, offsets and positions of a neighbour that are used for a sample are right wherever the two happen to
    be alike.

    Example: where no answer is found, the start of the sample before is used.
    """
    inputs: Inputs = trial.inputs
    together = pieces(inputs, trial.outcome.values)
    for sample in range(len(inputs.conversations)):
        alone = pieces(inputs.of(sample), trial.run(inputs.of(sample)))[0]
        told = f"conversation {sample} is labelled otherwise in a batch than alone"
        if found := _otherwise(together[sample], alone, sample, told):
            yield found
            return


def _otherwise(row: Sequence[Piece], alone: Sequence[Piece], sample: int, message: str) -> Evidence | None:
    """The first token of a row that is not the same, or not labelled the same, as that of the conversation alone."""
    for own, other in zip(row, alone, strict=False):
        if (own.token, own.label) != (other.token, other.label):
            return Evidence(
                where="labels", measured=f"token {own.token}, label {own.label}",
                limit=f"token {other.token}, label {other.label}", index=(sample, own.place), message=message,
            )  # fmt: skip
    return None


def twice(trial: Trial) -> Iterator[Evidence]:
    """A conversation that stands in a batch twice has the same labels both times, and as alone.

    Why: real data repeats itself. Rows of one length need no padding, and what is searched by its text, or counted from
    the padding, is not found in them.

    Example: the last two columns taken for padding wherever no row has any.
    """
    inputs: Inputs = trial.inputs
    own = inputs.of(0)
    alone = pieces(own, trial.run(own))[0]
    doubled = dataclasses.replace(own, conversations=own.conversations * 2)
    for sample, row in enumerate(pieces(doubled, trial.run(doubled))):
        if found := _otherwise(row, alone, sample, "the same conversation is labelled otherwise twice than alone"):
            yield found
            return


def order(trial: Trial) -> Iterator[Evidence]:
    """Another order of the batch changes no trained character.

    Why: what a conversation is trained on must not depend on its place in the batch.

    Example: the first conversation's prompt masked in all rows.
    """
    inputs: Inputs = trial.inputs
    turned = dataclasses.replace(inputs, conversations=inputs.conversations[::-1])
    before, after = _runs(trial, inputs), _runs(trial, turned)
    for sample, (own, other) in enumerate(zip(before, reversed(after), strict=True)):
        yield from _same("another order of the batch", other, own, sample)


def sides(trial: Trial) -> Iterator[Evidence]:
    """The padding side changes no trained character.

    Why: a mask that counts columns is right for one side only, and for the longest sample of the other.

    Example: ``labels[:, :prompt_length] = -100`` on rows that are padded on the left.
    """
    other = "left" if trial.inputs.side == "right" else "right"
    yield from _unchanged(trial, "the other padding side", dataclasses.replace(trial.inputs, side=other))


def pad_id(trial: Trial) -> Iterator[Evidence]:
    """Which token is the pad changes no trained character.

    Why: many tokenizers have no pad of their own, and the end of text stands in. Whoever masks by id then masks every
    end of a turn, and the model never stops.

    Example: ``labels[labels == pad_token_id] = -100``.
    """
    other = "own" if trial.inputs.pad == "eos" else "eos"
    yield from _unchanged(trial, "another pad", dataclasses.replace(trial.inputs, pad=other))


def policies(trial: Trial) -> Iterator[Evidence]:
    """What is asked to be trained is what is trained: the last answer, all answers, everything, each within the next.

    Why: an option that nothing reads looks like one that has no effect.

    Example: all answers, whichever was asked for.
    """
    inputs: Inputs = trial.inputs
    found = {
        train: _runs(trial, inputs if train == inputs.train else dataclasses.replace(inputs, train=train))
        for train in labels.POLICIES
    }
    for sample, turns in enumerate(inputs.conversations):
        last, each, every = (found[train][sample] for train in ("last", "assistant", "all"))
        several = sum(turn.role == "assistant" for turn in turns) > 1
        sizes = [sum(map(len, runs)) for runs in (last, each, every)]
        if last != each[len(each) - len(last) :] or (several and sizes[0] >= sizes[1]) or sizes[1] >= sizes[2]:
            yield Evidence(
                where="labels", measured=f"{sizes} bytes", limit="each more than the one before", index=(sample,),
                message="the last answer, all answers and everything are not what is trained as asked",
            )  # fmt: skip
            return


def _assistants(_operation: Operation, case: Any) -> str | None:
    return "every character is trained" if case.train == "all" else None


def _stable(_operation: Operation, case: Any) -> str | None:
    if case.train != "assistant":
        return "asked where every answer is trained"
    thoughts = TEMPLATES[case.template].thoughts
    return "the template leaves out the thoughts of earlier turns" if thoughts else None


def _batched(_operation: Operation, case: Any) -> str | None:
    return None if len(case.samples) > 1 else "one conversation has no neighbour"


LAWS = (
    Law.of((NAME,), pictures, _assistants),
    Law.of((NAME,), system, _assistants),
    Law.of((NAME,), earlier, _assistants),
    Law.of((NAME,), later, _stable),
    Law.of((NAME,), quoted, _assistants),
    Law.of((NAME,), neighbours, _batched),
    Law.of((NAME,), twice),
    Law.of((NAME,), order, _batched),
    Law.of((NAME,), sides, _batched),
    Law.of((NAME,), pad_id),
    Law.of((NAME,), policies),
)
