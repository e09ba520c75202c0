"""``grounding.parse``: a generated answer to what it says where things are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from assay.audits.candidates import of_reference
from assay.audits.components.grounding import answers
from assay.audits.components.grounding.answers import Item, Style
from assay.audits.components.grounding.detections import UNREAD, first_box, read
from assay.audits.fields import Count, one_of
from assay.audits.strategies import st
from assay.audits.terms import Form, Operation, Outputs, Relations
from assay.reference import grounding_answers

NAME = "grounding.parse"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The detections that a model meant, ``boxes`` float64 [N,4] with their ``labels``, and how it wrote them."""

    labels: tuple[str | None, ...]
    boxes: Tensor
    style: Style

    @property
    def items(self) -> list[Item]:
        """Descriptions with their boxes."""
        return [(label, (a, b, c, d)) for label, (a, b, c, d) in zip(self.labels, self.boxes.tolist(), strict=True)]

    @property
    def text(self) -> str:
        """The answer."""
        return answers.write(self.items, self.style)

    @property
    def whole(self) -> list[Item]:
        """The detections whose box stands in it as a whole."""
        if self.style.spoilt in answers.WORDS:
            return []
        return self.items[:-1] if self.style.spoilt in answers.BROKEN else self.items

    @property
    def legible(self) -> list[Item]:
        """Those of them that were not cut at all."""
        return self.items[:-1] if self.style.spoilt == "cut-label" else self.whole

    @property
    def strict(self) -> bool:
        """Whether it is what was asked for, and has to be read."""
        return not self.style.spoilt


@dataclass(frozen=True, kw_only=True)
class Case:
    """Parameters of a case; the seed chooses boxes and descriptions.

    ``unlabelled``: places of detections without a description. ``repeated``: the last is the first once more.
    """

    seed: Count = 0
    count: Count = 3
    written: Annotated[str, one_of(answers.FORMATS)] = "label"
    rich: bool = False
    numbers: Annotated[str, one_of(("whole", "decimal", "unit"))] = "whole"
    unlabelled: tuple[Count, ...] = ()
    repeated: bool = False
    fenced: bool = False
    around: bool = False
    spoilt: Annotated[str, one_of(answers.SPOILT)] = ""


def build(case: Case, _dtype: torch.dtype, device: torch.device) -> Inputs:
    """The detections of a case, from its own generator."""
    found = answers.items(
        case.count, case.seed, rich=case.rich, numbers=case.numbers, unlabelled=case.unlabelled, repeated=case.repeated
    )
    if case.spoilt == "beyond":
        found = [(label, answers.beyond(box, place)) for place, (label, box) in enumerate(found)]
    return Inputs(
        labels=tuple(label for label, _ in found),
        boxes=torch.tensor([box for _, box in found], dtype=torch.float64, device=device).reshape(-1, 4),
        style=Style(written=case.written, fenced=case.fenced, around=case.around, spoilt=case.spoilt),
    )


def supports(case: Case) -> str | None:
    """What a form cannot say is not asked of it."""
    json = case.written in answers.KEYS
    reasons = {
        "this is spoilt in JSON only": not json and case.spoilt not in ("", "cut", *answers.WORDS),
        "there is nothing to spoil": not case.count and case.spoilt in (*answers.BROKEN, *answers.LOOSE),
        "there is no description to cut": case.spoilt == "cut-label" and case.count - 1 in case.unlabelled,
        "one object stands without a list": case.spoilt == "object" and case.count != 1,
        "without quotes, a description has no brackets in it": not json and case.rich,
        "a box alone is one, and has no description": case.written == "bare"
        and (case.count != 1 or case.unlabelled != (0,)),
        "in tags, a box without a description has the one before it": case.written in answers.TAGS and _gap(case),
        "no objects are an empty list": not case.count and case.written in answers.TAGS,
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


def _gap(case: Case) -> bool:
    """Whether a description is missing after one that is there."""
    missing = [place in case.unlabelled for place in range(case.count)]
    missing[-1:] = missing[:1] if case.repeated else missing[-1:]
    return sorted(missing, reverse=True) != missing


def reference(inputs: Inputs) -> Outputs:
    """The specification."""
    return read(grounding_answers.parse_answer(inputs.text)).outputs()


def _text(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    return read(function(inputs.text)).outputs()


def _raising(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    try:
        returned = function(inputs.text)
    except ValueError:
        return UNREAD.outputs()
    return read(returned).outputs()


def _box(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    return first_box(function(inputs.text)).outputs()


def _claims(*written: str) -> Callable[[Inputs], str | None]:
    def accepts(inputs: Inputs) -> str | None:
        return None if inputs.style.written in written else f"the form reads {', '.join(written)} alone"

    return accepts


def _one(inputs: Inputs) -> str | None:
    return None if len(inputs.labels) == 1 and inputs.style.spoilt != "json-lines" else "the form reads one box"


RETURNS = "detections (mappings, records or (label, box)), or None where it cannot be read; with a place to say that "
FORMS = (
    Form(
        name="text",
        summary=f"function(text) -> {RETURNS}a part was not read: (detections, error), or a record with `complete`; "
        "reads every form",
        parameters=("text",),
        call=_text,
    ),
    Form(
        name="json",
        summary="as text, of JSON with bbox_2d and label alone",
        parameters=(),
        call=_text,
        accepts=_claims("label"),
    ),
    Form(
        name="json-keys",
        summary="as text, of JSON with the keys label, description and desc",
        parameters=(),
        call=_text,
        accepts=_claims(*answers.KEYS),
    ),
    Form(
        name="tags",
        summary="as text, of <|object_ref_start|> and <|box_start|> alone",
        parameters=(),
        call=_text,
        accepts=_claims("object_ref"),
    ),
    Form(
        name="raising",
        summary="as text; a ValueError says that it cannot be read",
        parameters=(),
        call=_raising,
    ),
    Form(
        name="json-raising",
        summary="as json; a ValueError says that it cannot be read",
        parameters=(),
        call=_raising,
        accepts=_claims("label"),
    ),
    Form(
        name="box",
        summary="function(text) -> the box (x1, y1, x2, y2) of an answer with one, or None; reads every form",
        parameters=(),
        call=_box,
        accepts=_one,
    ),
    Form(
        name="json-box",
        summary="as box, of JSON with bbox_2d and label, and of a box alone",
        parameters=(),
        call=_box,
        accepts=lambda inputs: _one(inputs) or _claims("label", "bare")(inputs),
    ),
)

CASES: Mapping[str, Case] = {
    "json": Case(),
    "description": Case(written="description", seed=1),
    "desc": Case(written="desc", seed=2, count=2),
    "unquoted": Case(written="unquoted", seed=3),
    "object-ref": Case(written="object_ref", seed=4),
    "ref": Case(written="ref", seed=5, count=2),
    "bare": Case(written="bare", count=1, unlabelled=(0,), seed=6),
    "rich": Case(rich=True, count=9, seed=7),
    "fenced": Case(fenced=True, around=True, seed=8),
    "fenced-rich": Case(fenced=True, rich=True, count=12, seed=9),
    "around": Case(around=True, written="object_ref", count=1, seed=10),
    "one": Case(count=1, seed=11),
    "none": Case(count=0),
    "many": Case(count=60, seed=12),
    "repeated": Case(count=4, repeated=True, seed=13),
    "decimal": Case(numbers="decimal", seed=14),
    "decimal-tags": Case(numbers="decimal", written="object_ref", seed=15),
    "unit": Case(numbers="unit", written="desc", seed=16),
    "first-unlabelled": Case(unlabelled=(0,), seed=17),
    "middle-unlabelled-json": Case(unlabelled=(1,), count=4, seed=21),
    "middle-unlabelled": Case(unlabelled=(1,), count=4, written="unquoted", seed=18),
    "none-labelled": Case(unlabelled=(0, 1, 2), seed=19),
    "unlabelled-tags": Case(unlabelled=(0,), count=3, written="object_ref", seed=20),
    **{name: Case(spoilt=name, count=1 if name == "object" else 3, seed=30) for name in answers.SPOILT if name},
    "cut-first": Case(spoilt="cut", count=1, seed=31),
    "cut-tags": Case(spoilt="cut", count=2, written="object_ref", seed=32),
    "cut-unquoted": Case(spoilt="cut", count=2, written="unquoted", seed=33),
    "three-alone": Case(spoilt="three", count=1, seed=34),
}


def strategy() -> st.SearchStrategy[Case]:
    """Up to five detections in every form, as they should be and spoilt."""
    return st.builds(
        Case, seed=st.integers(0, 2**16), count=st.integers(0, 5), written=st.sampled_from(answers.FORMATS),
        rich=st.booleans(), numbers=st.sampled_from(("whole", "whole", "decimal", "unit")),
        unlabelled=st.lists(st.integers(0, 4), max_size=2, unique=True).map(tuple), repeated=st.booleans(),
        fenced=st.booleans(), around=st.booleans(), spoilt=st.sampled_from(("",) * 12 + answers.SPOILT),
    )  # fmt: skip


OPERATION = Operation(
    name=NAME,
    summary="a generated answer to its boxes and descriptions: all of them, nothing else, and failure said",
    params=Case,
    build=build,
    outputs=("boxes", "told"),
    expect=Relations(),
    forms=FORMS,
    cases=CASES,
    strategy=strategy,
    supports=supports,
    dtypes=("float64",),
)

CANDIDATES = (of_reference(NAME, f"{__name__}:reference", origin="assay.reference.grounding_answers"),)
