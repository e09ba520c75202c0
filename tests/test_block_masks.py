"""Blocks at random places: right samplers in every call form pass, wrong mendings are found, the numbers are right."""

from __future__ import annotations

import math

import block_rewrites
import pytest
import torch

from assay.audits import choose, registry
from assay.audits.components.block_masks import sample
from assay.audits.laws.chance import tail
from assay.audits.run import Options, audit
from assay.audits.terms import Candidate, Report, Verdict
from assay.reference import block_masks

CASES = (
    "ordinary",
    "as-large-as-the-grid",
    "as-high-as-the-grid",
    "one-row",
    "one-patch-grid",
    "more-than-half",
    "three-places",
)


def _audited(name: str, form: str) -> Report:
    target = {"kind": "import", "ref": f"block_rewrites:{name}", "operation": sample.NAME}
    candidate = Candidate(operation=sample.NAME, name=name, form=form, target=target, trusted=True)
    return audit(registry.operation(sample.NAME), candidate, Options(cases=CASES))


@pytest.mark.parametrize(("name", "form"), block_rewrites.RIGHT.items())
def test_a_rewrite_is_not_accused(name: str, form: str) -> None:
    report = _audited(name, form)
    assert [(f.rule, f.case, f.message) for f in report.findings] == []
    assert report.verdict == Verdict.PASS


@pytest.mark.parametrize(("name", "told"), block_rewrites.WRONG.items())
def test_a_wrong_mending_is_found(name: str, told: tuple[str, set[str]]) -> None:
    form, rules = told
    assert {f.rule.rpartition(".")[2] for f in _audited(name, form).findings} >= rules


def test_every_form_has_a_right_function() -> None:
    assert set(block_rewrites.RIGHT.values()) == {form.name for form in sample.FORMS}


@pytest.mark.parametrize(("name", "form"), [("unchecked", "corner"), ("by_torch", "global"), ("of_area", "area")])
def test_a_form_is_known_by_its_parameters(name: str, form: str) -> None:
    code = getattr(block_rewrites, name).__code__
    found = choose.recognised(registry.operation(sample.NAME), code.co_varnames[: code.co_argcount])
    assert [item.name for item in found] == [form]


def test_the_mending_of_the_seed_case_is_shown_with_an_example() -> None:
    found = next(f for f in _audited("range_made_one", "corner").findings if f.rule.endswith("larger"))
    assert "a block of 7 x 2 was accepted for a grid of 6 x 8" in found.message


@pytest.mark.parametrize(("block", "told"), [((5, 1), "at most 4 x 4"), ((1, 5), "at most 4 x 4"), ((0, 1), "above 0")])
def test_the_reference_refuses_what_does_not_fit(block: tuple[int, int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        block_masks.sample_block((4, 4), block, torch.Generator())


def test_the_reference_refuses_fractions() -> None:
    with pytest.raises(TypeError, match="whole numbers"):
        block_masks.sample_block((4, 4), (1.5, 1), torch.Generator())  # type: ignore[arg-type]


def test_sides_are_rounded_not_cut() -> None:
    assert block_masks.block_of_area(6, 1.5) == (3, 2)
    assert all(block_masks.block_of_area(h * w, h / w) == (h, w) for h in range(1, 40) for w in range(1, 40))
    for area, aspect in ((0, 1.0), (4, 0.0), (4, math.inf)):
        with pytest.raises(ValueError, match="expected"):
            block_masks.block_of_area(area, aspect)


@pytest.mark.parametrize(("hits", "trials", "share"), [(0, 10, 0.25), (3, 10, 0.25), (9, 10, 0.25), (10, 10, 0.5)])
def test_tails_are_sums_of_the_binomial(hits: int, trials: int, share: float) -> None:
    every = [math.comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(trials + 1)]
    wanted = sum(every[: hits + 1]) if hits <= trials * share else sum(every[hits:])
    assert math.isclose(tail(hits, trials, share), wanted, rel_tol=1e-9)


def test_tails_of_what_is_certain() -> None:
    assert [tail(5, 5, 1.0), tail(4, 5, 1.0), tail(0, 5, 0.0), tail(1, 5, 0.0)] == [1.0, 0.0, 1.0, 0.0]
