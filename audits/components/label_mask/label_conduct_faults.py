"""Wrong conduct around right labels: what is kept between calls, changed behind one's back, or left unsaid."""

from __future__ import annotations

import dataclasses

import torch

from assay.audits.components.label_mask.drafts import Draft, Labels, each, silently
from assay.audits.components.label_mask.labels import NAME, Inputs, reference
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs
from assay.reference.label_mask import IGNORE

_seen: set[tuple[object, ...]] = set()


@fault(NAME, "nondeterministic", link="https://github.com/MakazhanAlpamys/Soup/issues/1054")
def cached_without_its_labels(inputs: Inputs) -> Outputs:
    """The cache of prepared samples stores ids and mask; labels are made from the ids when it is read.

    Effect: the first epoch trains the answers, all others every token.
    """
    key = (inputs.conversations, inputs.template, inputs.vocabulary, inputs.train, inputs.pad, inputs.side)
    found = dict(reference(inputs))
    if key in _seen and inputs.train != "all":
        found["labels"] = found["input_ids"].where(found["attention_mask"].bool(), IGNORE)
    _seen.add(key)
    return found


@fault(NAME, "spelled", link="https://github.com/QwenLM/Qwen3-VL/issues/2010")
def turns_stripped(inputs: Inputs) -> Outputs:
    """Each turn is stripped before it is rendered.

    Effect: the model is trained on another text than it is asked to continue, and never sees an answer end in a blank.
    """

    def stripped(own: Inputs) -> Inputs:
        turns = tuple(dataclasses.replace(turn, text=turn.text.strip()) for turn in own.conversations[0])
        return dataclasses.replace(own, conversations=(turns,))

    def wrong(draft: Draft) -> tuple[list[int], Labels]:
        other = Draft(stripped(draft.inputs))
        return other.ids, other.labels

    return each(inputs, wrong)


@fault(NAME, "pads")
def pads_trained(inputs: Inputs) -> Outputs:
    """Labels are padded with the pad's id, as ids are.

    Effect: the model learns to write pads, and short samples weigh as much as long ones.
    """
    found = dict(reference(inputs))
    pad = inputs.processor().tokenizer.pad_token_id
    return {**found, "labels": found["labels"].where(found["attention_mask"].bool(), pad)}


@fault(NAME, "untouched")
def last_answer_popped(inputs: Inputs) -> Outputs:
    """The last answer is taken off the messages to render the prompt, and is not put back.

    Effect: from the second epoch on the sample ends with a question.
    """
    found = dict(reference(inputs))
    return {**found, "untouched": torch.zeros(len(inputs.conversations), dtype=torch.bool)}


@fault(NAME, "share")
def share_of_the_padded_row(inputs: Inputs) -> Outputs:
    """The share of trained tokens is counted over the padded row.

    Effect: the number depends on the neighbours, and nobody sees that a mask went wrong.
    """
    found = dict(reference(inputs))
    return {**found, "share": (found["labels"] != IGNORE).to(torch.float64).mean(-1)}


@fault(NAME, "policies")
def answers_whatever_is_asked(inputs: Inputs) -> Outputs:
    """The option that says what is trained is read by nothing.

    Effect: whoever asks for the last turn alone trains all of them.
    """
    return reference(dataclasses.replace(inputs, train="assistant"))


@fault(NAME, "unnoticed", link="https://github.com/OpenBMB/MiniCPM-V/issues/662")
def nothing_to_train_goes_through(inputs: Inputs) -> Outputs:
    """A conversation without targets gives labels that are all ignored.

    Effect: steps without a gradient, and a mean over no token that is not a number.
    """
    return each(inputs, lambda draft: draft.labels, untold=silently)


@fault(NAME, "mutates")
def images_normalised_in_place(inputs: Inputs) -> Outputs:
    """Pixels are scaled in the memory of the data set.

    Effect: each epoch sees a darker image.
    """
    found = reference(inputs)
    for image in inputs.images:
        image.div_(2, rounding_mode="floor")
    return found


@fault(NAME, "leaks")
def generator_seeded(inputs: Inputs) -> Outputs:
    """The global generator is seeded, so that the same augmentation is drawn each time.

    Effect: every dropout mask of the run is the same.
    """
    torch.manual_seed(0)
    return reference(inputs)


FAULTS = gathered(globals())
