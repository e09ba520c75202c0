"""Wrong labels that common samples do not show: at an edge of lengths, of counts, of ids, or from call to call."""

from __future__ import annotations

import dataclasses
import itertools

from assay.audits.components.label_mask import label_forms, reading, sentence_pieces
from assay.audits.components.label_mask.conversations import Turn
from assay.audits.components.label_mask.drafts import Draft, Labels, each
from assay.audits.components.label_mask.labels import NAME, Inputs, reference
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs
from assay.reference.label_mask import IGNORE

_kept: dict[tuple[str, ...], list[bool]] = {}


def _without(labels: Labels, runs: list[tuple[int, int]]) -> Labels:
    """The labels with some runs of tokens ignored."""
    hidden = {place for start, stop in runs for place in range(start, stop)}
    return [IGNORE if place in hidden else label for place, label in enumerate(labels)]


@fault(NAME, "spelled", link="https://github.com/huggingface/trl/issues/1400")
def special_tokens_added_again(inputs: Inputs) -> Outputs:
    """The rendering is encoded with the tokenizer's own special tokens, which the template has written already.

    Effect: training sees two beginnings of text, inference one; the loss looks the same, and answers are worse.
    """

    def wrong(draft: Draft) -> tuple[list[int], Labels]:
        more = list(draft.tokenizer("")["input_ids"])
        return [*more, *draft.ids], [*[IGNORE] * len(more), *draft.labels]

    return each(inputs, wrong)


@fault(NAME, "expanded")
def images_left_as_the_template_writes_them(inputs: Inputs) -> Outputs:
    """The rendering is encoded by the tokenizer, which knows nothing of the size of an image.

    Effect: an image has one token in the labels and many in the model.
    """

    def wrong(draft: Draft) -> tuple[list[int], Labels]:
        hidden = {draft.token(name) for name in label_forms.PLACEHOLDERS}
        ids, labels = draft.ids, draft.labels
        kept = [place for place, own in enumerate(ids) if own not in hidden or place == 0 or ids[place - 1] != own]
        return [ids[place] for place in kept], [labels[place] for place in kept]

    return each(inputs, wrong)


@fault(NAME, "spelled", link="https://github.com/huggingface/transformers/issues/26273")
def pieces_encoded_one_by_one(inputs: Inputs) -> Outputs:
    """The text is cut at the borders of answers, and each piece encoded by itself, with what a tokenizer adds to it.

    Effect: with Llama's every answer is trained with a blank in front that no prompt has; byte-level ones add nothing.
    """

    def wrong(draft: Draft) -> tuple[list[int], Labels]:
        ids: list[int] = []
        labels: Labels = []
        edges = [0, *(edge for run in draft.runs() for edge in run), len(draft.ids)]
        for place, (start, stop) in enumerate(itertools.pairwise(edges)):
            added = [draft.token(sentence_pieces.BLANK)] if place % 2 and _adds_blanks(draft) else []
            ids += [*added, *draft.ids[start:stop]]
            labels += [*added, *draft.labels[start:stop]]
        return ids, labels

    return each(inputs, wrong)


def _adds_blanks(draft: Draft) -> bool:
    return draft.inputs.vocabulary in sentence_pieces.PREFIXED


@fault(NAME, "prompts")
def answers_measured_with_a_blank_in_front(inputs: Inputs) -> Outputs:
    """As many tokens are trained, back from its end, as an answer has by itself.

    Effect: with a tokenizer that adds a blank in front of a text, the last token of each header is trained.
    """

    def wrong(draft: Draft) -> Labels:
        headers = {start - 1 for start, _ in draft.runs() if _adds_blanks(draft)}
        return [draft.ids[place] if place in headers else label for place, label in enumerate(draft.labels)]

    return each(inputs, wrong)


@fault(NAME, "answers")
def one_token_for_each_letter(inputs: Inputs) -> Outputs:
    """The map from letters to tokens holds one token each; a letter that is written as bytes has up to four.

    Effect: the first byte of rare letters is trained and the others are not: the model writes broken ones.
    """

    def wrong(draft: Draft) -> Labels:
        spelled = reading.spellings(draft.inputs.vocabulary)
        continued = {token for token, word in spelled.items() if word and 0x80 <= word[0] < 0xC0}
        return [IGNORE if token in continued else label for token, label in zip(draft.ids, draft.labels, strict=True)]

    return each(inputs, wrong)


@fault(NAME, "spelled")
def first_text_of_a_turn_alone(inputs: Inputs) -> Outputs:
    """Of a message's content the first part that is a text is taken for its text.

    Effect: where text stands before and after an image, the question after it is lost, and so is half of an answer.
    """

    def halved(turn: Turn) -> Turn:
        return dataclasses.replace(turn, text=turn.text[: len(turn.text) // 2]) if turn.split else turn

    def wrong(draft: Draft) -> tuple[list[int], Labels]:
        turns = tuple(map(halved, draft.inputs.conversations[0]))
        other = Draft(dataclasses.replace(draft.inputs, conversations=(turns,)))
        return other.ids, other.labels

    return each(inputs, wrong)


@fault(NAME, "spelled")
def a_turn_said_twice_is_said_once(inputs: Inputs) -> Outputs:
    """Messages that are as the one before them are taken for duplicates and dropped.

    Effect: an answer that was given twice is trained once, after a conversation that nobody had.
    """

    def wrong(draft: Draft) -> tuple[list[int], Labels]:
        turns = draft.inputs.conversations[0]
        kept = tuple(turn for place, turn in enumerate(turns) if place == 0 or turn != turns[place - 1])
        other = Draft(dataclasses.replace(draft.inputs, conversations=(kept,)))
        return other.ids, other.labels

    return each(inputs, wrong)


@fault(NAME, "answers")
def answers_far_from_the_end_left_out(inputs: Inputs) -> Outputs:
    """Labels are written for as many of the last tokens as a window is wide.

    Effect: the first answers of a long conversation are never trained.
    """

    def wrong(draft: Draft) -> Labels:
        far = len(draft.labels) - 1024
        return [IGNORE if place < far else label for place, label in enumerate(draft.labels)]

    return each(inputs, wrong)


@fault(NAME, "pictures")
def mask_kept_by_text(inputs: Inputs) -> Outputs:
    """The mask is kept from call to call, by the text alone.

    Effect: the same question about an image of another size is trained somewhere before or after its answer.
    """

    def wrong(draft: Draft) -> Labels:
        key = (draft.right.text, draft.inputs.vocabulary, draft.inputs.train)
        mask = _kept.setdefault(key, [label != IGNORE for label in draft.labels])
        told = [*mask, *[False] * len(draft.ids)]
        return [token if own else IGNORE for token, own in zip(draft.ids, told, strict=False)]

    return each(inputs, wrong)


@fault(NAME, "answers")
def answers_of_one_token_left_out(inputs: Inputs) -> Outputs:
    """An answer's ids are squeezed, and one that has no length then is passed over.

    Effect: of a multiple choice nothing is learnt but to stop.
    """

    def wrong(draft: Draft) -> Labels:
        pairs = zip(draft.runs(), draft.places[-len(draft.runs()) :], strict=False)
        return _without(draft.labels, [(run[0], run[1] - 1) for run, p in pairs if len(draft.text(p)) == 1])

    return each(inputs, wrong)


@fault(NAME, "answers")
def token_0_ignored(inputs: Inputs) -> Outputs:
    """What is not a target is known by ``if not label``, or by ``labels == 0`` before -100 is put there.

    Effect: the first letter of the vocabulary, ``!`` in most of them, is never learnt.
    """
    found = reference(inputs)
    return {**found, "labels": found["labels"].masked_fill(found["labels"] == 0, IGNORE)}


@fault(NAME, "answers")
def answers_after_the_fourth_left_out(inputs: Inputs) -> Outputs:
    """Spans of answers go to a table of four places.

    Effect: long conversations are trained at their beginning only.
    """
    return each(inputs, lambda draft: _without(draft.labels, draft.runs()[4:]))


@fault(NAME, "answers")
def answers_to_a_picture_of_a_tool_left_out(inputs: Inputs) -> Outputs:
    """A turn of a tool is expected to be a text; where it shows an image, what follows is not looked at.

    Effect: an agent that looks at screenshots learns to call and never to read.
    """

    def wrong(draft: Draft) -> Labels:
        turns = draft.inputs.conversations[0]
        shown = [place and turns[place - 1].role == "tool" and bool(turns[place - 1].images) for place in draft.places]
        pairs = zip(draft.runs(), shown[-len(draft.runs()) :], strict=False)
        return _without(draft.labels, [run for run, own in pairs if own])

    return each(inputs, wrong)


@fault(NAME, "answers")
def thoughts_left_out(inputs: Inputs) -> Outputs:
    """Answers are trained from the end of their thoughts on.

    Effect: the model is asked to think, and has not learnt to.
    """

    def wrong(draft: Draft) -> Labels:
        end = draft.encoded("</think>")
        found = ((run, draft.found(end, run[0])) for run in draft.runs())
        return _without(draft.labels, [(start, last) for (start, stop), last in found if start < last < stop])

    return each(inputs, wrong)


@fault(NAME, "answers", "neighbours")
def rows_after_the_eighth_left_out(inputs: Inputs) -> Outputs:
    """Labels are written to a buffer that was made for batches of eight.

    Effect: the larger the batch, the less of it is trained on.
    """
    found = dict(reference(inputs))
    labels = found["labels"].clone()
    labels[8:] = IGNORE
    return {**found, "labels": labels}


@fault(NAME, "twice")
def rows_without_padding_lose_their_end(inputs: Inputs) -> Outputs:
    """The last columns are taken for padding wherever no row has any.

    Effect: in batches by length, no sample is trained to stop.
    """
    found = dict(reference(inputs))
    labels = found["labels"].clone()
    if len(labels) > 1 and bool(found["attention_mask"].all()):
        labels[:, -2:] = IGNORE
    return {**found, "labels": labels}


@fault(NAME, "twice")
def repeated_text_left_out(inputs: Inputs) -> Outputs:
    """Rows are looked up by their text, and a text that was there before is passed over.

    Effect: of answers to one question, that are weighed by how often they are given, each counts once.
    """
    found = dict(reference(inputs))
    labels = found["labels"].clone()
    for row, turns in enumerate(inputs.conversations):
        if turns in inputs.conversations[:row]:
            labels[row] = IGNORE
    return {**found, "labels": labels}


@fault(NAME, "spelled", link="https://github.com/huggingface/trl/pull/5904")
def cut_at_a_default_length(inputs: Inputs) -> Outputs:
    """The tokenizer is called with ``truncation=True`` and a length that nobody chose.

    Effect: a large image leaves no room for its answer, and its features do not match what is left of it.
    """
    return each(inputs, lambda draft: (draft.ids[:2048], draft.labels[:2048]))


@fault(NAME, "placeholders")
def placeholders_of_answers_trained(inputs: Inputs) -> Outputs:
    """Placeholders are masked in the user's turns alone.

    Effect: where the assistant shows an image, most targets are its placeholders.
    """

    def wrong(draft: Draft) -> Labels:
        hidden = {draft.token(name) for name in label_forms.PLACEHOLDERS}
        labels = list(draft.labels)
        for place, token in enumerate(draft.ids):
            if place and token in hidden and labels[place - 1] != IGNORE:
                labels[place] = token
        return labels

    return each(inputs, wrong)


FAULTS = gathered(globals())
