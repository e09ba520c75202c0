"""The laws of reading answers. A parser may refuse what is not as it was asked for, if it says so."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

from assay.audits.components.grounding import answers
from assay.audits.components.grounding.detections import Read
from assay.audits.components.grounding.parse import NAME, Inputs
from assay.audits.laws.trial import Trial, answerable
from assay.audits.terms import Evidence, Inexpressible, Law, Operation


def lost(trial: Trial) -> Iterator[Evidence]:
    """Every detection that can be read comes back, in the order of the answer, twice if it stands there twice.

    Why: a box that is dropped counts as one that the model did not find. The first detections of a list are its surest:
    who keeps the last, or one of each description, measures something else.

    Example: detections kept in a dict by description, so that of two cups one is left.
    """
    inputs: Inputs = trial.inputs
    got, truth = _read(trial), [box for _, box in inputs.legible]
    if not inputs.strict and (got.reported or got.reported is None or not got.pairs):
        raise Inexpressible("it is said that the answer was not read, which is no ordinary one")
    boxes = [box for _, box in got.pairs]
    missing = next((place for place, box in enumerate(truth) if boxes.count(box) < truth.count(box)), None)
    if len(boxes) < len(truth) and (missing is not None or not inputs.strict):
        place = missing if missing is not None else len(boxes)
        yield _evidence(inputs, f"{len(boxes)} detections", f"{len(truth)}", "lost", place)
    elif sorted(boxes) == sorted(truth) and boxes != truth:
        yield _evidence(inputs, "another order", "that of the answer", "moved", 0)


def invented(trial: Trial) -> Iterator[Evidence]:
    """There are no more detections than the answer has, and every box is one that stands in it.

    Why: four numbers are found in any text. A box that nobody wrote, made of counts, of the beginnings of numbers or of
    two lines, is a prediction that looks like any other.

    Example: a box that was cut off at ``[120, 40, 310, 2``, read as four numbers.
    """
    inputs: Inputs = trial.inputs
    got, left = _read(trial), [box for _, box in inputs.whole]
    known = [box for _, box in inputs.items]
    for place, (_, box) in enumerate(got.pairs):
        if box in left:
            left.remove(box)
        elif not inputs.strict or len(got.pairs) > len(known) or box in known:
            yield _evidence(inputs, str(list(box)), "a box of the answer, once", "not written", place)
            return


def numbers(trial: Trial) -> Iterator[Evidence]:
    r"""The four numbers of a box are those of the answer, in their order, with all their digits.

    Why: what unit they are in, and what lies outside of the image, is for whoever knows the image. Cut to whole
    numbers, shares of the image are all zero.

    Example: ``(\d+)`` for a number, which makes two of 12.5.
    """
    inputs: Inputs = trial.inputs
    got = _read(trial)
    for place, ((_, box), (_, truth)) in enumerate(zip(got.pairs, inputs.items, strict=False)):
        if box != truth and box not in [other for _, other in inputs.items]:
            yield _evidence(inputs, str(list(box)), str(list(truth)), "other numbers", place)
            return


def labels(trial: Trial) -> Iterator[Evidence]:
    """A box has the description that it has in the answer, and none where it has none there.

    Why: early in training descriptions are missing. Who collects boxes and descriptions in two lists gives each box
    after the first gap the name of its neighbour.

    Example: ``zip(re.findall(box), re.findall(label))``.
    """
    inputs: Inputs = trial.inputs
    got = _read(trial)
    if not got.labelled:
        raise Inexpressible("the form has no descriptions")
    for place, ((label, box), (truth, wanted)) in enumerate(zip(got.pairs, inputs.items, strict=False)):
        if box == wanted and label != _plain(truth):
            yield _evidence(inputs, repr(label), repr(truth), "another description", place)
            return


def understood(trial: Trial) -> Iterator[Evidence]:
    """An answer in the form that was asked for is read; that it has no objects is not a failure.

    Why: an image without the object is answered by an empty list. Taken for an answer that could not be read it is
    asked again, or counted as broken, and a model that is right on negatives looks worse.

    Example: ``if not detections: return None``.
    """
    inputs: Inputs = trial.inputs
    got = _read(trial)
    if got.reported is None:
        raise Inexpressible("the form cannot tell an answer without objects from one that cannot be read")
    if got.reported:
        yield _evidence(inputs, "said not to be read", f"{len(inputs.items)} detections", "refused", 0)


def reported(trial: Trial) -> Iterator[Evidence]:
    """An answer that cannot be read is no error, and is said not to have been read.

    Why: answers are cut at the token limit, and early in training they are anything. An exception ends the evaluation;
    an empty list says that the model saw nothing, and nobody learns that the limit was too low.

    Example: ``except json.JSONDecodeError: return []``.
    """
    inputs: Inputs = trial.inputs
    outcome = trial.attempt(inputs)
    if outcome.raised:
        said = f"{outcome.raised.kind}: {outcome.raised.message}"[:200]
        yield _evidence(inputs, said, "no error", "an exception", 0)
        return
    got = Read.of(outcome.values)
    if got.reported is None or inputs.style.spoilt in answers.WORDS:
        return
    silent = not got.reported and (got.partly or not got.pairs)
    if silent and len(got.pairs) < len(inputs.items):
        yield _evidence(inputs, f"{len(got.pairs)} detections", "said not to be read", "not said", 0)


def spelled(trial: Trial) -> Iterator[Evidence]:
    """Blanks, the order of keys, escapes, ``10`` or ``10.0``, a fence and words around it change nothing.

    Why: all of these mean the same, and models change between them from one checkpoint to the next.

    Example: an expression that wants the box before the description.
    """
    style: answers.Style = trial.inputs.style
    json = style.written in answers.KEYS
    further: dict[str, dict[str, Any]] = {
        "without blanks": {"spaces": "none"}, "over several lines": {"spaces": "lines"},
        "keys turned": {"turned": True}, "escaped": {"escaped": True}, "fenced": {"fenced": not style.fenced},
    }  # fmt: skip
    changes: dict[str, dict[str, Any]] = {"decimal points": {"pointed": True}, "words around": {"around": True}}
    for what, change in ({**changes, **further} if json else changes).items():
        other = dataclasses.replace(trial.inputs, style=dataclasses.replace(style, **change))
        yield from _alike(trial, other, what)


def formats(trial: Trial) -> Iterator[Evidence]:
    """The same detections read alike in each form that the parser knows.

    Why: a data set changes its form, and old checkpoints write the old one. A key that was renamed in one place gives
    boxes without names from then on.

    Example: ``item["desc"]``, where new answers have ``description``.
    """
    inputs: Inputs = trial.inputs
    unlabelled = [label is None for label in inputs.labels]
    tags = () if any(unlabelled[1:]) else answers.TAGS  # there a box without a description has the one before it
    forms = [name for name in (*answers.KEYS, "unquoted", *tags) if inputs.items]
    if inputs.style.written == "bare":
        raise Inexpressible("a box alone has no other form")
    styles = {name: dataclasses.replace(inputs.style, written=name, fenced=False) for name in forms}
    others = {name: style for name, style in styles.items() if name != inputs.style.written}
    yield from answerable(
        _alike(trial, dataclasses.replace(inputs, style=style), f"as {name}") for name, style in others.items()
    )


def _alike(trial: Trial, other: Inputs, what: str) -> Iterator[Evidence]:
    outcome = trial.attempt(other)
    if outcome.raised:
        yield _evidence(other, f"{outcome.raised.kind}: {outcome.raised.message}"[:200], "no error", what, 0)
        return
    before, after = _read(trial), Read.of(outcome.values)
    if before.pairs == after.pairs and before.reported == after.reported:
        return
    pairs = [*zip(before.pairs, after.pairs, strict=False)]
    place = next((at for at, (one, two) in enumerate(pairs) if one != two), len(pairs))
    yield _evidence(other, _said(after, place), _said(before, place), what, place)


def _said(found: Read, place: int) -> str:
    if found.reported:
        return "said not to be read"
    return str(found.pairs[place]) if place < len(found.pairs) else f"{len(found.pairs)} detections"


def _evidence(inputs: Inputs, measured: str, limit: str, message: str, place: int) -> Evidence:
    text = inputs.text if len(inputs.text) < 160 else f"{inputs.text[:80]} ... {inputs.text[-70:]}"
    return Evidence(where="answer", measured=measured, limit=limit, message=f"{message}: {text!r}", index=(place,))


def _read(trial: Trial) -> Read:
    return Read.of(trial.outcome.values)


def _plain(label: str | None) -> str | None:
    return None if label is None else " ".join(label.split()).casefold()


def _ordinary(_operation: Operation, case: Any) -> str | None:
    return "the answer is not as it was asked for" if case.spoilt else None


def _labelled(operation: Operation, case: Any) -> str | None:
    plain = "descriptions that other forms cannot hold" if case.rich or not case.count else None
    return _ordinary(operation, case) or plain


def _spoilt(_operation: Operation, case: Any) -> str | None:
    return None if case.spoilt else "the answer is as it was asked for"


_law = partial(Law.of, (NAME,))

LAWS = (
    _law(lost), _law(invented), _law(numbers, _ordinary), _law(labels, _ordinary), _law(understood, _ordinary),
    _law(reported, _spoilt), _law(spelled, _ordinary), _law(formats, _labelled),
)  # fmt: skip
