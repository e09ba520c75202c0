"""The judge on a small operation of its own: what each way of failing amounts to."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from toy import FAIL, OPERATION, PASS, UNKNOWN, Case, Inputs, judge, law, named, oracle, wrong_when

from assay.audits import cases, resolve
from assay.audits.laws import shared
from assay.audits.laws.trial import Trial
from assay.audits.run import Options, merge
from assay.audits.search import search
from assay.audits.terms import Evidence, Law, Numeric, Outputs


def test_a_right_candidate_passes(house: dict[str, Any]) -> None:
    """With every law exercised on every case, searched ones too."""
    report = judge(house, oracle)
    assert (report.verdict, report.findings) == (PASS, ())
    assert {check.rule for check in report.checks if check.inapplicable} == {"toy.scale.unused", "toy.scale.frozen"}
    assert all(check.exercised >= 2 * 3 for check in report.checks if not check.inapplicable)


@pytest.mark.parametrize(
    ("options", "laws"), [(Options(), ()), (Options(examples=0), (law(lambda _trial: [], lambda *_: "never"),))]
)
def test_an_audit_of_nothing_is_unknown(house: dict[str, Any], options: Options, laws: tuple[Law, ...]) -> None:
    """Without laws, or with none that applies."""
    house["laws"] = laws
    assert judge(house, oracle, options).verdict == UNKNOWN
    assert merge([]).verdict == UNKNOWN


def test_a_missing_device_is_unknown(house: dict[str, Any]) -> None:
    """Nothing was tried."""
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    report = judge(house, oracle, Options(device="cuda"))
    assert (report.verdict, report.exercised) == (UNKNOWN, 0)
    assert [f.rule for f in report.findings] == ["toy.scale.device"]
    assert "--device cuda" in report.findings[0].repro


def test_a_law_that_crashes_is_unknown_and_others_go_on(house: dict[str, Any]) -> None:
    """The checker is to blame, not the candidate."""

    def crashes(_trial: Trial) -> list[Evidence]:
        message = "oops"
        raise ZeroDivisionError(message)

    house["laws"] = (law(crashes), *shared.laws(OPERATION))
    report = judge(house, oracle)
    assert report.verdict == UNKNOWN
    assert {f.rule for f in report.findings} == {"toy.scale.checker-failed", "toy.scale.not-exercised"}
    assert "crashes: ZeroDivisionError: oops" in str(named(report, "checker-failed")[0].measured)
    checks = {check.rule: check for check in report.checks}
    assert checks["toy.scale.crashes"].verdict == UNKNOWN
    assert checks["toy.scale.parity"].verdict == PASS
    assert checks["toy.scale.parity"].exercised > 6


def test_a_law_that_crashes_on_a_wrong_form_is_not_to_blame(house: dict[str, Any]) -> None:
    """What the candidate returned was no answer to begin with."""

    def reads(trial: Trial) -> list[Evidence]:
        assert trial.outcome.values["y"].numel() >= 0
        return []

    house["laws"] = (law(reads),)
    report = judge(house, lambda inputs: {"z": inputs.x})
    assert report.verdict == FAIL
    assert {f.rule for f in report.findings} == {"toy.scale.returns", "toy.scale.not-exercised"}


def test_a_crash_of_the_oracle_is_unknown(house: dict[str, Any]) -> None:
    """It is ours."""

    def broken(_inputs: Inputs) -> Outputs:
        message = "no truth today"
        raise RuntimeError(message)

    house["operation"] = replace(OPERATION, expect=Numeric(oracle=broken, eager=oracle, reach=lambda *_: {}))
    report = judge(house, oracle, Options(laws=("parity",)))
    assert report.verdict == UNKNOWN
    assert "no truth today" in str(named(report, "checker-failed")[0].measured)


def test_a_case_that_cannot_be_built_is_unknown(house: dict[str, Any]) -> None:
    """And the others are judged."""
    house["operation"] = replace(OPERATION, cases={"long": Case(size=99), "three": Case()})
    report = judge(house, oracle, Options(examples=0))
    assert report.verdict == UNKNOWN
    assert [f.case for f in named(report, "checker-failed")] == ["long", "long"]
    assert all(check.exercised == 2 for check in report.checks if not check.inapplicable)


def test_a_law_never_exercised_is_unknown(house: dict[str, Any]) -> None:
    """Also one that applied here and there, and never came to its end."""

    def never(trial: Trial) -> list[Evidence]:
        raise AssertionError(trial.params)

    house["laws"] = (law(never, lambda _op, case: "short" if case.size < 2 else None),)
    report = judge(house, oracle, Options(examples=0))
    assert named(report, "not-exercised")[0].where == "never"
    assert report.checks[0].inapplicable == {"short": 4}
    assert report.checks[0].verdict == UNKNOWN


def test_what_is_inapplicable_is_counted(house: dict[str, Any]) -> None:
    """By reason, beside the ladder."""
    house["laws"] = (
        law(lambda _trial: []), replace(law(lambda _trial: [], lambda _op, case: f"size {case.size}"), name="other"),
    )  # fmt: skip
    house["operation"] = replace(OPERATION, cases={**OPERATION.cases, "negative": Case(size=-1)})
    report = judge(house, oracle, Options(examples=0))
    assert report.verdict == PASS
    assert (report.checked, report.exercised, report.inapplicable) == (2, 1, 1)
    assert report.checks[0].inapplicable == {"there are no negative sizes": 2}
    assert report.checks[1].inapplicable["size 3"] == 2


def test_a_candidate_that_fails_one_law_fails_that_one(house: dict[str, Any]) -> None:
    """A gradient missing, and nothing else."""
    report = judge(house, lambda inputs: {"y": (inputs.x * inputs.scale).detach()})
    assert {f.rule for f in report.findings} == {"toy.scale.gradients"}
    assert {c.rule: c.verdict for c in report.checks}["toy.scale.parity"] == PASS


def test_a_candidate_that_raises_fails(house: dict[str, Any]) -> None:
    """With the line where it did."""

    def raises(inputs: Inputs) -> Outputs:
        if inputs.x.numel() == 1:
            message = f"not for one, at {object()}"
            raise ValueError(message)
        return oracle(inputs)

    report = judge(house, raises, Options(examples=0))
    assert {f.rule for f in report.findings} == {"toy.scale.raises"}
    first = report.findings[0]
    assert (first.case, first.measured, first.verdict) == ("one", "ValueError", FAIL)
    assert "at <object object at 0x...>" in first.message
    assert "raise ValueError(message)" in first.message
    assert "--law" not in first.repro


def test_side_effects_are_found_whichever_law_made_the_call(house: dict[str, Any]) -> None:
    """A fast path for inference is not taken where gradients are asked for."""

    def careless(inputs: Inputs) -> Outputs:
        out = oracle(inputs)
        if not torch.is_grad_enabled():
            inputs.x.zero_()
            torch.set_default_dtype(torch.float64)
        return out

    def infers(trial: Trial) -> list[Evidence]:
        trial.run(trial.inputs)
        return []

    house["laws"] = (*shared.laws(OPERATION), law(infers))
    report = judge(house, careless, Options(laws=("mutates", "leaks", "infers"), cases=("three",)))
    assert {f.rule for f in report.findings} == {"toy.scale.mutates", "toy.scale.leaks"}
    assert "--law mutates --law infers" in named(report, "mutates")[0].repro
    assert torch.get_default_dtype() == torch.float32


def test_what_only_the_search_finds_is_shrunk(house: dict[str, Any]) -> None:
    """To the smallest case that breaks the law; the case is its own description."""
    report = judge(house, wrong_when(lambda inputs: inputs.x.numel() > 10 and inputs.scale == 3))
    found = named(report, "parity")
    assert {f.case for f in found} == {'{"size":11,"scale":3.0}'}
    for finding in found:
        again = judge(house, house["run"], Options(laws=("parity",), cases=(finding.case,), dtypes=(finding.dtype,)))
        assert [replace(f, cases_broken=1, repro="") for f in again.findings] == [replace(finding, repro="")]


def test_every_rule_is_searched_for(house: dict[str, Any]) -> None:
    """One that is broken does not hide another."""

    def doubly(inputs: Inputs) -> Outputs:
        y = inputs.x * inputs.scale * (1.5 if inputs.x.numel() > 5 else 1)
        return {"y": y.detach() if inputs.x.numel() > 20 else y}

    report = judge(house, doubly, Options(dtypes=("float32",)))
    assert {f.case for f in named(report, "parity")} == {'{"size":6,"scale":1.0}'}
    assert named(report, "gradients")


def test_the_search_ends() -> None:
    """After a fixed number of calls, whatever it finds; and without a strategy at once."""
    tried: list[Case] = []

    def breaks(case: Case) -> bool:
        tried.append(case)
        return case.size > 3

    assert search(OPERATION, breaks, examples=50, seed=3) == Case(size=4, scale=1.0)
    assert len(tried) < 50 + 150
    assert search(OPERATION, breaks, examples=0, seed=3) is None
    assert search(replace(OPERATION, strategy=None), breaks, examples=9, seed=3) is None
    assert search(OPERATION, lambda _case: False, examples=9, seed=3) is None


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_flaky_candidate_is_nondeterministic(house: dict[str, Any], seed: int) -> None:
    """Nobody else crashes over it."""
    generator = random.Random(seed)

    def flaky(inputs: Inputs) -> Outputs:
        return {"y": inputs.x * inputs.scale * (1 + 0.1 * generator.random())}

    report = judge(house, flaky)
    assert report.verdict == FAIL
    assert named(report, "nondeterministic")
    assert not named(report, "checker-failed")


def test_unloadable_candidates_of_ours_are_unknown(house: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton may not be there."""

    def lacks(_target: object, _form: object) -> None:
        message = "No module named 'triton'"
        raise ImportError(message)

    monkeypatch.setattr("assay.audits.resolve.implementation", lacks)
    report = judge(house, oracle)
    assert (report.verdict, [f.rule for f in report.findings]) == (UNKNOWN, ["toy.scale.unloadable"])


def test_what_a_call_form_cannot_express_is_inapplicable(house: dict[str, Any]) -> None:
    """In a call that a law makes, as in that of the case: a law that cannot ask has not been exercised."""

    def wider(trial: Trial) -> Iterator[Evidence]:
        trial.run(replace(trial.inputs, scale=99.0))
        yield Evidence(where="y", measured=1.0, limit=0.0, message="it was asked")

    form = replace(OPERATION.forms[0], accepts=lambda inputs: "no such scale" if inputs.scale == 99.0 else None)
    run = resolve._through(form, lambda x, scale: x * scale)
    house["laws"] = (*shared.laws(OPERATION), law(wider))
    report = judge(house, run, Options(examples=0))
    assert report.verdict == PASS
    check = next(check for check in report.checks if check.rule == "toy.scale.wider")
    assert (check.exercised, set(check.inapplicable)) == (0, {"no such scale"})


@pytest.mark.parametrize("options", [Options(laws=("nothing",)), Options(cases=("nothing",))])
def test_unknown_names_are_errors(house: dict[str, Any], options: Options) -> None:
    """That say what there is."""
    with pytest.raises((LookupError, cases.BadCase), match="parity|three"):
        judge(house, oracle, options)


def test_a_brief_audit_asks_relations_in_the_first_dtype_and_compares_in_all(house: dict[str, Any]) -> None:
    asked: list[torch.dtype] = []

    def related(trial: Trial) -> Iterator[Evidence]:
        asked.append(trial.dtype)
        yield from ()

    house["laws"] = (*house["laws"], law(related))
    report = judge(house, wrong_when(lambda inputs: inputs.x.dtype == torch.bfloat16), Options(brief=True))
    assert set(asked) == {torch.float32}
    assert {finding.dtype for finding in named(report, "parity")} == {"bfloat16"}
