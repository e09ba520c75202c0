"""Metrics of grounding: right ones in every call form pass, a mean over survivors does not, the numbers are right."""

from __future__ import annotations

import math

import grounding_rewrites
import pytest
import torch

from assay.audits import registry
from assay.audits.components.grounding import metrics, scores
from assay.audits.laws.rounded import agree
from assay.audits.observe import BadReturn
from assay.audits.run import Options, audit
from assay.audits.terms import Candidate, Report, Verdict
from assay.reference.grounding_metrics import box_iou, grounding_metrics

CASES = ("ordinary", "before-tuning", "unit-square", "clipped", "none-found", "one", "even", "collapsed")
BOX = [0.1, 0.2, 0.5, 0.6]


def _audited(name: str, form: str, cases: tuple[str, ...] = CASES) -> Report:
    target = {"kind": "import", "ref": f"grounding_rewrites:{name}", "operation": metrics.NAME}
    candidate = Candidate(operation=metrics.NAME, name=name, form=form, target=target, trusted=True)
    return audit(registry.operation(metrics.NAME), candidate, Options(cases=cases))


@pytest.mark.parametrize(("name", "form"), grounding_rewrites.RIGHT)
def test_a_rewrite_is_not_accused(name: str, form: str) -> None:
    report = _audited(name, form)
    assert [(f.rule, f.case, f.where, f.measured, f.limit, f.message) for f in report.findings] == []
    assert report.verdict == Verdict.PASS


@pytest.mark.parametrize(("name", "form", "rules"), grounding_rewrites.WRONG)
def test_a_wrong_one_is_found(name: str, form: str, rules: set[str]) -> None:
    found = _audited(name, form, ("ordinary", "unit-square", "repeated", "clipped"))
    assert {f.rule.rpartition(".")[2] for f in found.findings} >= rules


def test_the_mean_over_survivors_is_named() -> None:
    """The fine-tuning whose mean rose threefold while detection fell to 15 %."""
    report = _audited("survivors_undeclared", "metrics", ("collapsed",))
    found = next(f for f in report.findings if f.where == "mean_iou" and f.rule.endswith("averages"))
    assert "this is the mean over those with a box" in found.message
    assert isinstance(found.measured, float)
    assert isinstance(found.limit, float)
    assert 6 < found.measured / found.limit < 7


def test_the_numbers_of_the_notes() -> None:
    told = {}
    for name in ("before-tuning", "tuned", "collapsed"):
        case = metrics.CASES[name]
        told[name] = metrics.build(case, torch.float64, torch.device("cpu")).truth()
    before, after, collapsed = told.values()
    assert (before.detection_rate, after.detection_rate, collapsed.detection_rate) == (0.9, 1.0, 0.15)
    assert [round(x, 4) for x in (before.mean_iou_detected or 0, after.mean_iou_detected or 0)] == [0.1114, 0.3372]
    assert [round(x or 0, 4) for x in (before.median_iou_detected, after.median_iou_detected)] == [0.0, 0.1043]
    assert [dict(x.accuracy) for x in (before, after)] == [{0.5: 0.08, 0.75: 0.02}, {0.5: 0.34, 0.75: 0.28}]
    assert round((collapsed.mean_iou_detected or 0) / (before.mean_iou_detected or 1) - 1, 2) == 1.94
    assert collapsed.mean_iou < before.mean_iou / 2


def test_every_form_has_a_right_function() -> None:
    assert {form for _, form in grounding_rewrites.RIGHT} == {form.name for form in metrics.FORMS}


def test_the_reference_says_what_is_wrong() -> None:
    for predictions, targets, told in (
        ([], [], "one for each of 0"), ([None], [BOX, BOX], "one for each of 2"), ([[1.0, 2.0]], [BOX], "four numbers"),
        ([[math.nan] * 4], [BOX], "finite numbers"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            grounding_metrics(predictions, targets)
    with pytest.raises(ValueError, match="thresholds"):
        grounding_metrics([BOX], [BOX], thresholds=[0.0])


def test_nothing_found_has_no_mean_over_what_was_found() -> None:
    found = grounding_metrics([None], [BOX])
    assert (found.mean_iou, found.mean_iou_detected, found.median_iou_detected) == (0.0, None, None)


def test_overlaps_against_counted_cells() -> None:
    """Boxes with whole corners, against cells that are counted one by one."""
    generator = torch.Generator().manual_seed(0)
    boxes = torch.randint(0, 9, (2, 200, 4), generator=generator).double()
    cells = torch.arange(9) + 0.5
    inside = []
    for each in boxes:
        low, high = torch.minimum(each[:, :2], each[:, 2:]), torch.maximum(each[:, :2], each[:, 2:])
        axes = [(cells > low[:, axis, None]) & (cells < high[:, axis, None]) for axis in (0, 1)]
        inside.append(axes[0][:, :, None] & axes[1][:, None, :])
    both, either = ((inside[0] & inside[1]).sum((1, 2)), (inside[0] | inside[1]).sum((1, 2)))
    assert torch.allclose(box_iou(*boxes), both / either.clamp(min=1).double(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("name", "ours"),
    [("acc@0.5", 0.5), ("Accuracy_0.75", 0.75), ("acc50", 0.5), ("P@0.5", 0.5), ("acc_at_0.25", 0.25), ("acc05", 0.5)],
)
def test_accuracies_are_read_by_their_threshold(name: str, ours: float) -> None:
    assert scores.read({name: 0.25}, torch.ones(1, dtype=torch.bool))["thresholds"].tolist() == [ours]


@pytest.mark.parametrize("answer", [None, 0.5, {"loss": 1.0}, {"mean_iou": "high"}])
def test_what_is_no_report_is_told(answer: object) -> None:
    with pytest.raises(BadReturn, match="expected"):
        scores.read(answer, torch.ones(1, dtype=torch.bool))


@pytest.mark.parametrize(
    ("got", "want", "same"),
    [
        (0.1114, 0.11139, True),
        (0.111, 0.11139, True),
        (0.11, 0.11139, False),
        (0.1114, 0.1116, False),
        (1.0, 0.9998, False),
    ],
)
def test_reports_may_be_rounded(got: float, want: float, same: bool) -> None:
    assert agree(got, want) is same
