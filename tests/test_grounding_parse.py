"""Answers are read: right parsers in every call form pass, wrong ones are found, the reference says what it read."""

from __future__ import annotations

import parser_rewrites
import pytest

from assay.audits import registry
from assay.audits.components.grounding import answers, detections, parse
from assay.audits.observe import BadReturn
from assay.audits.run import Options, audit
from assay.audits.terms import Candidate, Report, Verdict
from assay.reference.grounding_answers import parse_answer

CUP = ("a cup", (1.0, 2.0, 3.0, 4.0))


def _audited(name: str, form: str) -> Report:
    target = {"kind": "import", "ref": f"parser_rewrites:{name}", "operation": parse.NAME}
    candidate = Candidate(operation=parse.NAME, name=name, form=form, target=target, trusted=True)
    return audit(registry.operation(parse.NAME), candidate, Options(examples=20))


@pytest.mark.parametrize(("name", "form"), parser_rewrites.RIGHT)
def test_a_rewrite_is_not_accused(name: str, form: str) -> None:
    report = _audited(name, form)
    assert [(f.rule, f.case, f.measured, f.limit, f.message) for f in report.findings] == []
    assert report.verdict == Verdict.PASS


@pytest.mark.parametrize(("name", "form", "rules"), parser_rewrites.WRONG)
def test_a_wrong_one_is_found(name: str, form: str, rules: set[str]) -> None:
    assert {f.rule.rpartition(".")[2] for f in _audited(name, form).findings} >= rules


def test_every_form_has_a_right_function() -> None:
    assert {form for _, form in parser_rewrites.RIGHT} == {form.name for form in parse.FORMS}


@pytest.mark.parametrize(
    ("text", "told", "complete"),
    [
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "a cup"}]', [CUP], True),
        ('{"desc": "a cup", "bbox": [1.0, 2, 3, 4e0]}', [CUP], True),
        ("[{bbox_2d: [1, 2, 3, 4], desc: a cup}]", [CUP], True),
        ("<|object_ref_start|>a cup<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>", [CUP], True),
        ("<ref>a cup</ref><box>(1, 2), (3, 4)</box><box>(1,2),(3,4)</box>", [CUP, CUP], True),
        ("[1, 2, 3, 4]", [(None, CUP[1])], True),
        ("[[1, 2, 3, 4], [1, 2, 3, 4]]", [(None, CUP[1])] * 2, True),
        ("[]", [], True),
        ("", [], False),
        ("There are 3 cups, 2 plates, 1 fork and 4 knives.", [], False),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "a cup"}, {"bbox_2d": [5, 6, 7', [CUP], False),
        ("<|box_start|>(1,2),(3,4", [], False),
        ('[{"bbox_2d": [1, 2, 3], "label": "a cup"}]', [], False),
        ('[{"bbox_2d": [1, 2, NaN, 4], "label": "a cup"}]', [], False),
        ('[{"bbox_2d": [1, 2, true, 4], "label": "a cup"}]', [], False),
        ("[" * 9000, [], False),
        ("[" * 2000 + "]" * 2000, [], False),
        ("[[1, 2, 3, 4], [5, 6, 7]]", [(None, CUP[1])], False),
        ('[{"bbox_2d": [1, 2, 3, ' + "4" * 400 + '], "label": "a cup"}]', [], False),
        ("{bbox_2d: [1, 2, 3, 4e999], desc: a cup}", [], False),
        ("<box>(1,2),(3,4e999)</box>", [], False),
    ],
)
def test_the_reference_reads(text: str, told: list[object], complete: bool) -> None:
    found = parse_answer(text)
    assert [(item.label, item.box) for item in found.detections] == told
    assert found.complete is complete


@pytest.mark.parametrize(
    ("returned", "reported", "partly"),
    [
        (None, True, False), ([], False, False), (([], None), False, True), (([], "cut"), True, True),
        (([], False), True, True), ({"objects": [], "ok": False}, True, True), ({"boxes": []}, False, False),
    ],
)  # fmt: skip
def test_how_it_went_is_read(returned: object, reported: bool, partly: bool) -> None:
    found = detections.read(returned)
    assert (found.reported, found.partly, found.pairs) == (reported, partly, ())


@pytest.mark.parametrize(
    "item",
    [
        {"label": "a cup", "box": [1, 2, 3, 4]}, ("a cup", [1, 2, 3, 4]), ((1, 2, 3, 4), "A  cup"),
        {"desc": "a cup", "x1": 1, "y1": 2, "x2": 3, "y2": 4}, parser_rewrites.Found("a cup", [1, 2, 3, 4]),
    ],
)  # fmt: skip
def test_detections_are_read_however_they_are_held(item: object) -> None:
    assert detections.read([item]).pairs == (CUP,)
    assert detections.Read.of(detections.read([item]).outputs()).pairs == (CUP,)


@pytest.mark.parametrize(
    "returned", ["text", 3.5, [("a", [1, 2])], [[1, 2, "x", 4]], {"loss": 1}, [("a", [1, 2, 3, None])]]
)
def test_what_is_no_answer_is_told(returned: object) -> None:
    with pytest.raises((BadReturn, TypeError), match="expected|vars"):
        detections.read(returned)


def test_what_is_cut_is_cut_in_a_number() -> None:
    text = answers.write([("a", (100.0, 200.0, 300.0, 400.0))], answers.Style(spoilt="cut"))
    assert text == '[{"bbox_2d": [100, 200, 300, 4'
