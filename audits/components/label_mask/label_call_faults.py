"""Wrong labels of conversations in which tools are called, and answer."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from functools import partial

from assay.audits.components.label_mask import reading
from assay.audits.components.label_mask.conversations import Call, Turn
from assay.audits.components.label_mask.drafts import Draft, Labels, Made, each
from assay.audits.components.label_mask.labels import NAME, Inputs
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs
from assay.reference.label_mask import IGNORE

OPENED, CLOSED = b"<tool_call>", b"</tool_call>"
Spans = list[tuple[int, int]]


def _without(spans: Callable[[bytes], Spans], draft: Draft) -> Labels:
    """The right labels, with the tokens that begin within some spans of a turn ignored."""
    labels, spelled = list(draft.labels), reading.spellings(draft.inputs.vocabulary)
    for start, stop in draft.runs():
        words = [spelled[token] for token in draft.ids[start:stop]]
        hidden, at = spans(b"".join(words)), 0
        for place, word in enumerate(words, start):
            if any(first <= at < last for first, last in hidden):
                labels[place] = IGNORE
            at += len(word)
    return labels


def _calls(text: bytes) -> Spans:
    return [match.span() for match in re.finditer(rb"\n?<tool_call>.*?</tool_call>", text, re.DOTALL)]


def _after_the_first(text: bytes) -> Spans:
    first = text.find(CLOSED)
    return [(first + len(CLOSED), len(text))] if first >= 0 else []


def _before_calls(text: bytes) -> Spans:
    return [(0, max(0, text.find(OPENED)))]


def _changed(change: Callable[[Turn], Turn], draft: Draft) -> Made:
    """The labels of a conversation whose turns are changed before they are rendered."""
    turns = tuple(map(change, draft.inputs.conversations[0]))
    other = Draft(dataclasses.replace(draft.inputs, conversations=(turns,)))
    return other.ids, other.labels


def _rewritten(change: Callable[[str], str], turn: Turn) -> Turn:
    """A turn with the arguments of its calls changed."""
    calls = tuple(Call(tool=call.tool, arguments=change(call.arguments)) for call in turn.calls)
    return dataclasses.replace(turn, calls=calls)


@fault(NAME, "answers")
def calls_not_trained(inputs: Inputs) -> Outputs:
    """Only what the message has as its content is trained; its calls of tools are written by the template.

    Effect: the model talks about the tools that it was to learn to call.
    """
    return each(inputs, partial(_without, _calls))


@fault(NAME, "answers", "stops")
def trained_to_the_end_of_the_first_call(inputs: Inputs) -> Outputs:
    """The end of a call is taken for the end of the turn.

    Effect: of calls at once only the first is learnt, and the model does not stop after it.
    """
    return each(inputs, partial(_without, _after_the_first))


@fault(NAME, "answers")
def text_before_calls_not_trained(inputs: Inputs) -> Outputs:
    """In a turn with calls what is trained begins with the first of them.

    Effect: what the model says, or thinks, before it calls a tool is never learnt.
    """
    return each(inputs, partial(_without, _before_calls))


@fault(NAME, "answers")
def turns_without_text_skipped(inputs: Inputs) -> Outputs:
    """Turns of the assistant's whose content is empty are passed over.

    Effect: calls of tools come without a text; most of them are not trained on.
    """
    return each(inputs, partial(_without, lambda text: [(0, len(text))] if text.startswith(OPENED) else []))


@fault(NAME, "prompts", link="https://github.com/PrimeIntellect-ai/prime-rl/pull/978")
def answers_of_tools_trained(inputs: Inputs) -> Outputs:
    """All that comes between two turns of the assistant's is trained where it is no user's.

    Effect: the model learns to write the answers of its tools itself, and goes on without calling them.
    """

    def wrong(draft: Draft) -> Labels:
        labels, opened, closed = list(draft.labels), *map(draft.encoded, ("<tool_response>", "</tool_response>"))
        at = 0
        while (start := draft.found(opened, at)) >= 0:
            stop = draft.found(closed, start)
            at = stop if stop > start else len(labels)
            labels[start:at] = draft.ids[start:at]
        return labels

    return each(inputs, wrong)


@fault(NAME, "spelled")
def calls_left_out(inputs: Inputs) -> Outputs:
    """Turns are rendered from their role and their content; calls of tools are in another key.

    Effect: tools answer what nobody asked, and the model learns to say nothing.
    """
    return each(inputs, partial(_changed, lambda turn: dataclasses.replace(turn, calls=())))


@fault(NAME, "spelled", link="https://github.com/oumi-ai/oumi/pull/2599")
def arguments_encoded_twice(inputs: Inputs) -> Outputs:
    """Arguments are kept as JSON, and the template encodes what it is given once more.

    Effect: the model learns to write a quoted string in place of an object; nothing fails.
    """
    return each(inputs, partial(_changed, partial(_rewritten, json.dumps)))


@fault(NAME, "spelled")
def arguments_sorted(inputs: Inputs) -> Outputs:
    """Arguments go through a store that sorts their keys.

    Effect: calls that are trained are not those that were recorded, and prompts that hold them miss every cache.
    """

    def ordered(arguments: str) -> str:
        return json.dumps(json.loads(arguments), sort_keys=True)

    return each(inputs, partial(_changed, partial(_rewritten, ordered)))


@fault(NAME, "spelled", link="https://github.com/THUDM/slime/pull/2264")
def answers_of_tools_rendered_one_by_one(inputs: Inputs) -> Outputs:
    """Messages are rendered one by one; the template writes the answers to calls at once into one turn.

    Effect: training sees a turn for each of them, which inference never does.
    """

    def wrong(draft: Draft) -> Made:
        seam, half = (draft.encoded(text) for text in ("</tool_response>\n<tool_response>", "</tool_response>"))
        start = draft.found(seam)
        if start < 0:
            return draft.labels
        at, more = start + len(half), draft.encoded("<|im_end|>\n<|im_start|>user")
        return [*draft.ids[:at], *more, *draft.ids[at:]], [
            *draft.labels[:at], *[IGNORE] * len(more), *draft.labels[at:],
        ]  # fmt: skip

    return each(inputs, wrong)


FAULTS = gathered(globals())
