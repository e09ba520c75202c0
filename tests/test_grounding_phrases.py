"""Phrases of data sets: sets as people have them are not accused, sets that say nothing are."""

from __future__ import annotations

import phrase_sets
import pytest
import torch

from assay.audits import registry
from assay.audits.components.grounding import phrases, samples
from assay.audits.observe import BadReturn
from assay.audits.run import Options, audit
from assay.audits.terms import Candidate, Report, Verdict
from assay.reference.grounding_phrases import Sample, side, summarise, unfilled


def _audited(name: str, form: str) -> Report:
    target = {"kind": "import", "ref": f"phrase_sets:{name}", "operation": phrases.NAME}
    candidate = Candidate(operation=phrases.NAME, name=name, form=form, target=target, trusted=True)
    return audit(registry.operation(phrases.NAME), candidate, Options())


@pytest.mark.parametrize(("name", "form"), phrase_sets.RIGHT)
def test_a_set_as_people_have_it_is_not_accused(name: str, form: str) -> None:
    report = _audited(name, form)
    assert [(f.rule, f.message) for f in report.findings] == []
    assert report.verdict == Verdict.PASS


@pytest.mark.parametrize(("name", "form", "rules"), phrase_sets.WRONG)
def test_a_set_that_says_nothing_is_found(name: str, form: str, rules: set[str]) -> None:
    assert {f.rule.rpartition(".")[2] for f in _audited(name, form).findings} >= rules


def test_many_made_up_sets_are_not_accused() -> None:
    for seed in range(20):
        found = summarise(samples.made_up(seed, images=60))
        assert (found.unfilled, found.generic, found.leaking, found.ambiguous) == ((), (), (), ())
        assert found.on_side > 0.65 * found.sided


@pytest.mark.parametrize(("phrase", "told"), [(None, True), (" ", True), ("None", True), ("the {x} cup", True)])
def test_what_is_no_phrase(phrase: str | None, told: bool) -> None:
    assert unfilled(phrase) is told
    assert not unfilled("the nun on the left")


@pytest.mark.parametrize(
    ("phrase", "told"),
    [
        ("cup on the left", -1), ("Right cup", 1), ("left of the right one", 0), ("his left hand", 0), ("a cleft", 0),
        ("left lung", 0),
    ],
)  # fmt: skip
def test_sides(phrase: str, told: int) -> None:
    assert side(phrase) == told


def test_a_summary_counts() -> None:
    box, other = (1.0, 2.0, 3.0, 4.0), (5.0, 2.0, 9.0, 4.0)
    made = [
        Sample("a", "left cup", (box,)), Sample("a", "Left cup.", (other,)), Sample("b", "object 3", (box,)),
        Sample("b", "cup at 1, 2, 3, 4", (box,)), Sample("c", None, ()),
    ]  # fmt: skip
    found = summarise(made)
    assert (found.samples, found.distinct, found.commonest, found.repeats) == (5, 4, "left cup", 2)
    assert (found.crowded, found.sided, found.on_side) == (2, 2, 1)
    assert (found.unfilled, found.generic, found.ambiguous, found.leaking) == ((4,), (2,), (0, 1), (3,))
    assert summarise([]).samples == 0


def test_samples_survive_the_way_to_the_judge() -> None:
    made = samples.made_up(0, images=3)
    assert samples.of(samples.told(made)) == made


@pytest.mark.parametrize("dataset", [3, [1], [{"phrase": "a"}], [{"bbox": [1, 2, 3, 4]}]])
def test_what_is_no_data_set_is_told(dataset: object) -> None:
    with pytest.raises(BadReturn, match="expected"):
        samples.read(dataset, 10)


def test_the_generators_of_all_are_as_they_were() -> None:
    before = torch.initial_seed(), torch.random.get_rng_state()
    report = _audited("Torch", "dataset")
    assert not [f for f in report.findings if f.rule.endswith(("leaks", "nondeterministic"))]
    assert before[0] == torch.initial_seed()
    assert torch.equal(before[1], torch.random.get_rng_state())
