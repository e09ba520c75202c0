"""Wrong ways of cutting a labelled sequence."""

from __future__ import annotations

import dataclasses
import itertools

import torch

from assay.audits.components.label_mask.truncate import IMAGE, NAME, Inputs, reference
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs
from assay.reference import label_truncation
from assay.reference.label_mask import IGNORE

_calls = itertools.count()


def _cut(inputs: Inputs) -> slice:
    """What is left of a sequence that is cut without a look at what it holds."""
    cut = inputs.cut(inputs.max_length)
    return slice(0, cut) if inputs.side == "right" else slice(cut, None)


@fault(NAME, "images", "parity", link="https://github.com/zjysteven/lmms-finetune/issues/49")
def cut_through_an_image(inputs: Inputs) -> Outputs:
    """Ids and labels are sliced.

    Effect: an image at the cut keeps some of its placeholders; counts do not match, or features move.
    """
    left = _cut(inputs)
    if not bool((inputs.labels[left] != IGNORE).any()):
        raise ValueError("nothing is left to train on")
    return {"input_ids": inputs.input_ids[left].clone(), "labels": inputs.labels[left].clone()}


@fault(NAME, "together", "parity", link="https://github.com/vllm-project/vllm/pull/54539")
def labels_always_cut_at_the_right(inputs: Inputs) -> Outputs:
    """Ids are cut at the side that is asked for, labels at the right.

    Effect: with cuts on the left, labels are those of tokens that are gone.
    """
    found = reference(inputs)
    return {**found, "labels": inputs.labels[: len(found["input_ids"])].clone()}


@fault(NAME, "together", "parity", "returns", link="https://github.com/axolotl-ai-cloud/axolotl/issues/2089")
def labels_not_cut(inputs: Inputs) -> Outputs:
    """The ids are cut while they are made, the mask of the whole conversation is not.

    Effect: the two have different lengths, and whoever pads them to one has labels that are out of step.
    """
    return {**reference(inputs), "labels": inputs.labels.clone()}


@fault(NAME, "unnoticed", link="https://github.com/OpenBMB/MiniCPM-V/issues/662")
def answer_cut_off_unnoticed(inputs: Inputs) -> Outputs:
    """What is left is not looked at.

    Effect: after a long image there is no answer left; labels are all ignored, and the loss is not a number.
    """
    found = label_truncation.truncate(
        inputs.input_ids, inputs.labels, inputs.max_length, side="left" if inputs.side == "left" else "right",
        blocks=inputs.pairs, divided="drop" if inputs.divided == "drop" else "error", untrained="report",
    )  # fmt: skip
    return {"input_ids": found.input_ids, "labels": found.labels}


@fault(NAME, "together", "parity", link="https://github.com/QwenLM/Qwen3-VL/issues/2010")
def open_answer_without_labels(inputs: Inputs) -> Outputs:
    """A span of labels is copied only where its end is found.

    Effect: the answer that the cut falls into is not trained at all.
    """
    found = dict(reference(inputs))
    labels = found["labels"].clone()
    if inputs.side == "right" and len(labels) < len(inputs.labels) and int(inputs.labels[len(labels)]) != IGNORE:
        ignored = (labels == IGNORE).nonzero().flatten()
        labels[int(ignored[-1]) + 1 if len(ignored) else 0 :] = IGNORE
    return {**found, "labels": labels}


@fault(NAME, "slices", "parity")
def side_not_read(inputs: Inputs) -> Outputs:
    """The side is not read: all is cut at the right.

    Effect: the last answers are dropped where the oldest turns were to go.
    """
    return reference(dataclasses.replace(inputs, side="right", divided="drop"))


@fault(NAME, "slices", "parity", "returns")
def one_token_too_many(inputs: Inputs) -> Outputs:
    """The end is counted in.

    Effect: a row is one token longer than the buffer that it goes to.
    """
    return reference(dataclasses.replace(inputs, max_length=inputs.max_length + 1, divided="drop"))


@fault(NAME, "images", "parity")
def half_an_image_filled_from_elsewhere(inputs: Inputs) -> Outputs:
    """Placeholders of an image at the cut are dropped, its markers are not.

    Effect: an image without any token, whose features belong to the next.
    """
    if not inputs.divides(inputs.max_length):
        return reference(inputs)
    left = _cut(inputs)
    ids, labels = inputs.input_ids[left], inputs.labels[left]
    return {"input_ids": ids[ids != IMAGE].clone(), "labels": labels[ids != IMAGE].clone()}


@fault(NAME, "images", "parity")
def cut_before_the_first_image(inputs: Inputs) -> Outputs:
    """Where an image does not fit, all images are dropped, with the text between them.

    Effect: a conversation about two images loses the one that fits, and its answers.
    """
    if not inputs.divides(inputs.max_length):
        return reference(inputs)
    first, last = inputs.pairs[0][0], inputs.pairs[-1][1]
    left = slice(0, first) if inputs.side == "right" else slice(last, None)
    return {"input_ids": inputs.input_ids[left].clone(), "labels": inputs.labels[left].clone()}


@fault(NAME, "unnoticed")
def nothing_left_beside_a_dropped_image(inputs: Inputs) -> Outputs:
    """Where an image is dropped, what is left is handed back before anybody looks for targets in it.

    Effect: a prompt in front of a large image goes through as a sample, and teaches nothing.
    """
    if not inputs.divides(inputs.max_length):
        return reference(inputs)
    found = label_truncation.truncate(
        inputs.input_ids, inputs.labels, inputs.max_length, side="left" if inputs.side == "left" else "right",
        blocks=inputs.pairs, divided="drop", untrained="report",
    )  # fmt: skip
    return {"input_ids": found.input_ids, "labels": found.labels}


@fault(NAME, "together", "parity")
def token_0_ignored(inputs: Inputs) -> Outputs:
    """Labels of 0 are taken for none.

    Effect: the first letter of the vocabulary is never learnt.
    """
    found = reference(inputs)
    return {**found, "labels": found["labels"].masked_fill(found["labels"] == 0, IGNORE)}


@fault(NAME, "images")
def third_image_cut_in_two(inputs: Inputs) -> Outputs:
    """The cut is moved for the first two images.

    Effect: long conversations break at a later image, and its features move.
    """
    blocks = inputs.pairs[:2]
    found = label_truncation.truncate(
        inputs.input_ids, inputs.labels, inputs.max_length, side="left" if inputs.side == "left" else "right",
        blocks=blocks, divided="drop" if inputs.divided == "drop" else "error",
    )  # fmt: skip
    return {"input_ids": found.input_ids, "labels": found.labels}


@fault(NAME, "slices", "parity")
def never_more_than_a_default_length(inputs: Inputs) -> Outputs:
    """The length that is asked for is limited to one that nobody chose.

    Effect: who pays for long samples trains on their beginnings.
    """
    return reference(dataclasses.replace(inputs, max_length=min(inputs.max_length, 4096)))


@fault(NAME, "mutates")
def labels_masked_in_place(inputs: Inputs) -> Outputs:
    """The labels that are cut off are masked in the memory of the data set.

    Effect: a later epoch with a larger length has nothing to train there.
    """
    found = {name: value.clone() for name, value in reference(inputs).items()}
    inputs.labels.fill_(IGNORE)
    return found


@fault(NAME, "nondeterministic")
def random_side(inputs: Inputs) -> Outputs:
    """Which end is cut off changes from call to call.

    Effect: the same sample is another one each time, and nobody can say what was trained.
    """
    if next(_calls) % 2 and not inputs.divides(inputs.max_length):
        other = "left" if inputs.side == "right" else "right"
        return reference(dataclasses.replace(inputs, side=other, divided="drop"))
    return reference(inputs)


@fault(NAME, "leaks")
def default_dtype_set(inputs: Inputs) -> Outputs:
    """The default dtype is set and left so.

    Effect: all that is made afterwards is in float64.
    """
    torch.set_default_dtype(torch.float64)
    return reference(inputs)


FAULTS = gathered(globals())
