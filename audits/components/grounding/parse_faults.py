"""Wrong ways of reading answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace

import torch

from assay.audits.components.grounding import answers
from assay.audits.components.grounding.detections import Pair, Read
from assay.audits.components.grounding.parse import NAME, Inputs, reference
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs

ROBOFLOW = "https://github.com/roboflow/inference/pull/"
NOTES = "a detection fine-tuning whose answers changed their form twice"
_seen: list[str] = []


def right(inputs: Inputs) -> Read:
    """What the specification reads."""
    return Read.of(reference(inputs))


def changed(inputs: Inputs, change: Callable[[Pair], Pair]) -> Outputs:
    """Each detection changed."""
    found = right(inputs)
    return replace(found, pairs=tuple(map(change, found.pairs))).outputs()


def kept(inputs: Inputs, pairs: list[Pair]) -> Outputs:
    """Other detections, and nothing said of the difference."""
    return replace(right(inputs), pairs=tuple(pairs)).outputs()


def silent() -> Outputs:
    """An empty list, as for an answer without objects."""
    return Read((), reported=False, partly=False).outputs()


@fault(NAME, "reported", link="https://github.com/eren23/openflipbook/pull/127", also=(ROBOFLOW + "2909",))
def failure_is_an_empty_list(inputs: Inputs) -> Outputs:
    """What is no JSON gives an empty list.

    Effect: an answer that was cut at the token limit says that nothing was seen; for weeks a detector found nothing.
    """
    found = right(inputs)
    return silent() if found.reported else found.outputs()


@fault(NAME, "reported")
def failure_is_an_exception(inputs: Inputs) -> Outputs:
    """The answer is handed to ``json.loads`` as it is, fence and all.

    Effect: the evaluation stops at the first answer with a word in front.
    """
    json.loads(inputs.text)
    return reference(inputs)


@fault(NAME, "lost", link="https://github.com/eren23/openflipbook/pull/127")
def last_one_dropped_with_its_list(inputs: Inputs) -> Outputs:
    """The list is read up to its last comma, in case it was cut.

    Effect: the last object of every answer is missing, also where nothing was cut.
    """
    return kept(inputs, list(right(inputs).pairs[:-1] if len(inputs.items) > 1 else right(inputs).pairs))


@fault(NAME, "lost")
def one_of_each_description(inputs: Inputs) -> Outputs:
    """Detections are kept in a dict by their description.

    Effect: of three cups one is found, the last.
    """
    return kept(inputs, list({label: (label, box) for label, box in right(inputs).pairs}.values()))


@fault(NAME, "lost")
def sorted_by_place(inputs: Inputs) -> Outputs:
    """Detections are sorted by their corner.

    Effect: the first one is not what the model was surest of, and another description's box.
    """
    return kept(inputs, sorted(right(inputs).pairs, key=lambda pair: pair[1]))


@fault(NAME, "lost", link=ROBOFLOW + "2930")
def first_list_alone(inputs: Inputs) -> Outputs:
    """The first list of an answer is read, and what follows is not.

    Effect: an answer in two parts loses the second, without a word.
    """
    if inputs.style.spoilt == "two-lists":
        return kept(inputs, list(right(inputs).pairs[:1]))
    return reference(inputs)


@fault(NAME, "lost", "formats", "labels", link=NOTES)
def unlabelled_left_out(inputs: Inputs) -> Outputs:
    """A detection without a description is skipped.

    Effect: early in training, when descriptions are missing, nothing is ever detected; so with a renamed key.
    """
    found = right(inputs)
    old = inputs.style.written == "desc"
    pairs = [(None if old else label, box) for label, box in found.pairs]
    return kept(inputs, [pair for pair in pairs if old or pair[0] is not None])


@fault(NAME, "reported", "formats", link=NOTES)
def description_looked_up_directly(inputs: Inputs) -> Outputs:
    """The description is looked up by the key that it had when the code was written.

    Effect: the run that evaluates every thousand steps ends at step 1,000, where a description is missing.
    """
    if inputs.style.spoilt in answers.WORDS:
        return reference(inputs)
    if inputs.style.written != "label" or None in inputs.labels or inputs.style.spoilt:
        raise KeyError("label")
    return reference(inputs)


@fault(NAME, "labels")
def boxes_and_descriptions_zipped(inputs: Inputs) -> Outputs:
    """Boxes and descriptions are found by two expressions, and zipped.

    Effect: after a detection without a description, each has that of the next.
    """
    found = right(inputs)
    names: list[str | None] = [label for label, _ in found.pairs if label is not None]
    names += [None] * (len(found.pairs) - len(names))
    return kept(inputs, [(name, box) for name, (_, box) in zip(names, found.pairs, strict=True)])


@fault(NAME, "labels")
def description_up_to_the_comma(inputs: Inputs) -> Outputs:
    """A description ends at the first comma or quotation mark.

    Effect: "row 12, seat 7" is "row 12".
    """
    return changed(inputs, lambda pair: (re.split(r'[,"]', pair[0])[0].strip() or None if pair[0] else None, pair[1]))


@fault(NAME, "labels")
def missing_is_an_object(inputs: Inputs) -> Outputs:
    """A missing description is "object".

    Effect: the share of answers without descriptions, which tells how training goes, is always zero.
    """
    return changed(inputs, lambda pair: (pair[0] or "object", pair[1]))


@fault(NAME, "labels", "spelled")
def escapes_left_in(inputs: Inputs) -> Outputs:
    """The description is what stands between quotation marks, escapes and all.

    Effect: a letter that is escaped is another class.
    """
    if inputs.style.written not in answers.KEYS:
        return reference(inputs)

    def raw(pair: Pair) -> Pair:
        return (json.dumps(pair[0], ensure_ascii=inputs.style.escaped)[1:-1] if pair[0] else None, pair[1])

    return changed(inputs, raw)


@fault(NAME, "numbers")
def cut_to_whole_numbers(inputs: Inputs) -> Outputs:
    """Coordinates are made whole.

    Effect: shares of the image are all 0, and every box is a point.
    """
    return changed(inputs, lambda pair: (pair[0], tuple(float(int(value)) for value in pair[1])))


@fault(NAME, "numbers", "spelled")
def digits_alone(inputs: Inputs) -> Outputs:
    r"""Numbers are runs of digits: ``\d+``.

    Effect: 12.5 is two numbers, and all that follow are shifted by one.
    """
    if inputs.style.spoilt:
        return reference(inputs)
    pairs: list[Pair] = []
    for label, box in right(inputs).pairs:
        text = " ".join(repr(value) if inputs.style.pointed or value % 1 else str(int(value)) for value in box)
        pairs.append((label, tuple(float(run) for run in re.findall(r"\d+", text)[:4])))
    return kept(inputs, pairs)


@fault(NAME, "numbers", link="https://github.com/EvolvingLMMs-Lab/lmms-eval/issues/98")
def scaled_if_they_look_like_it(inputs: Inputs) -> Outputs:
    """Coordinates above 1 are taken for thousandths of the image and divided.

    Effect: right for one family; the pixels of another are divided too.
    """
    return changed(inputs, lambda pair: (pair[0], tuple(v / 1000 for v in pair[1]) if max(pair[1]) > 1 else pair[1]))


@fault(NAME, "numbers", link="https://github.com/Anionex/dsh-vision-toolkit/pull/73")
def rows_before_columns(inputs: Inputs) -> Outputs:
    """The numbers are read as (y, x, y, x), as another family writes them.

    Effect: boxes are mirrored at the diagonal; on square objects in the middle nobody notices.
    """
    return changed(inputs, lambda pair: (pair[0], (pair[1][1], pair[1][0], pair[1][3], pair[1][2])))


def _four(text: str) -> list[Pair]:
    numbers = [float(run) for run in re.findall(r"\d+(?:\.\d+)?", text)]
    return [(None, tuple(numbers[-4:]))] if len(numbers) >= 4 else []


@fault(NAME, "invented")
def four_numbers_of_any_text(inputs: Inputs) -> Outputs:
    """Where nothing else is found, the last four numbers of the text are a box.

    Effect: an answer that counts cups and plates is a detection, and the detection rate is near 1.
    """
    found = right(inputs)
    pairs = list(found.pairs) or _four(inputs.text)
    return replace(found, pairs=tuple(pairs), reported=found.reported and not pairs).outputs()


@fault(NAME, "invented")
def cut_box_completed(inputs: Inputs) -> Outputs:
    """An answer that was cut is closed with the brackets that are missing, and read.

    Effect: the last number of the last box is its first digit: a box that nobody wrote.
    """
    found = right(inputs)
    if not inputs.style.spoilt.startswith("cut") or inputs.style.spoilt == "cut-label":
        return found.outputs()
    return replace(found, pairs=(*found.pairs, *_four(inputs.text))).outputs()


@fault(NAME, "invented")
def five_numbers_cut_to_four(inputs: Inputs) -> Outputs:
    """Of a box with more or fewer numbers the first four are taken, filled up with zeros.

    Effect: what the model did not manage to write is a box in the corner of the image.
    """
    found = right(inputs)
    if inputs.style.spoilt not in {"three", "five"}:
        return found.outputs()
    label, box = inputs.items[-1]
    return replace(found, pairs=(*found.pairs, (label, (*box[:3], 0.0))), reported=False).outputs()


@fault(NAME, "invented")
def repeated_for_each_description(inputs: Inputs) -> Outputs:
    """Every detection is added once for each key that its description could have.

    Effect: twice as many predictions as the model made, half of which are no match.
    """
    return kept(inputs, [pair for pair in right(inputs).pairs for _ in range(2)])


@fault(NAME, "understood")
def no_objects_is_a_failure(inputs: Inputs) -> Outputs:
    """An empty list of detections is taken for a failure.

    Effect: a model that is right on images without the object is asked again, or counted as broken.
    """
    found = right(inputs)
    return found.outputs() if found.pairs else Read((), reported=True, partly=True).outputs()


@fault(NAME, "spelled", link=ROBOFLOW + "2921")
def fences_must_be_there(inputs: Inputs) -> Outputs:
    """JSON is read from a fenced block alone.

    Effect: 37 % of the answers of a model that leaves the fence open were lost.
    """
    fenced = inputs.style.fenced or inputs.style.written not in answers.KEYS
    return reference(inputs) if fenced else Read((), reported=True, partly=True).outputs()


@fault(NAME, "spelled")
def keys_in_one_order(inputs: Inputs) -> Outputs:
    """An expression wants the box first and the description after it, on one line.

    Effect: a checkpoint that writes them the other way has a detection rate of zero.
    """
    return silent() if inputs.style.turned or inputs.style.spaces == "lines" else reference(inputs)


@fault(NAME, "formats", link=NOTES)
def old_form_forgotten(inputs: Inputs) -> Outputs:
    """The form without quotes was dropped with the legacy expressions.

    Effect: checkpoints from before the change cannot be compared with those after it.
    """
    unquoted = inputs.style.written == "unquoted"
    return Read((), reported=True, partly=True).outputs() if unquoted else reference(inputs)


@fault(NAME, "nondeterministic")
def last_answer_for_one_that_fails(inputs: Inputs) -> Outputs:
    """An answer is kept, and its length said with the next: a buffer of the streaming parser that is never emptied.

    Effect: detections of one image appear on the next.
    """
    _seen.append(inputs.text)
    found = right(inputs)
    return replace(found, reported=len(_seen) % 2 == 0).outputs()


@fault(NAME, "mutates")
def boxes_scaled_in_place(inputs: Inputs) -> Outputs:
    """Targets are scaled beside the predictions, in the memory of the data set.

    Effect: each epoch compares with smaller boxes.
    """
    found = reference(inputs)
    inputs.boxes.div_(2)
    return found


@fault(NAME, "leaks")
def default_dtype_for_boxes(inputs: Inputs) -> Outputs:
    """The default dtype is set, so that boxes are float64.

    Effect: every tensor that is made from then on is twice as large.
    """
    torch.set_default_dtype(torch.float64)
    return reference(inputs)


FAULTS = gathered(globals())
