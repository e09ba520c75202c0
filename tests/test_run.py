"""The judge on a small operation of its own: what each way of failing amounts to, and what the report says."""

from __future__ import annotations

import json
import math
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from assay.audits import cases, findings, registry, resolve
from assay.audits.findings import Broke
from assay.audits.laws import shared
from assay.audits.laws.trial import Trial
from assay.audits.run import Options, audit, merge
from assay.audits.search import search
from assay.audits.terms import Candidate, Evidence, Finding, Form, Law, Numeric, Operation, Outputs, Report, Verdict

HERE = Path(__file__).parent
PASS, UNKNOWN, FAIL = Verdict.PASS, Verdict.UNKNOWN, Verdict.FAIL


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """One vector."""

    x: Tensor
    scale: float


@dataclass(frozen=True, kw_only=True)
class Case:
    """Its length and what it is multiplied by."""

    seed: int = 0
    size: int = 3
    scale: float = 2.0


def build(case: Case, dtype: torch.dtype, device: torch.device) -> Inputs:
    """Positive numbers."""
    if case.size > 90:
        message = "too long to build"
        raise MemoryError(message)
    x = torch.rand(case.size, generator=torch.Generator().manual_seed(case.seed)) + 1
    return Inputs(x=x.to(device, dtype), scale=case.scale)


def oracle(inputs: Inputs) -> Outputs:
    """The product."""
    return {"y": inputs.x * inputs.scale}


def supports(case: Case) -> str | None:
    """Nothing of negative length."""
    return "there are no negative sizes" if case.size < 0 else None


OPERATION = Operation(
    name="toy.scale",
    summary="a vector times a number",
    params=Case,
    build=build,
    outputs=("y",),
    expect=Numeric(
        oracle=oracle,
        eager=oracle,
        reach=lambda inputs, _upstream: {"y": inputs.x.abs() * abs(inputs.scale), "grad:x": torch.tensor(inputs.scale)},
    ),
    forms=(
        Form(name="plain", summary="f(x, scale)", parameters=("x", "scale"), call=lambda f, i: {"y": f(i.x, i.scale)}),
    ),
    cases={"three": Case(), "one": Case(size=1), "none": Case(size=0)},
    strategy=lambda: st.builds(
        Case, seed=st.integers(0, 9), size=st.integers(0, 40), scale=st.sampled_from([1.0, 2.0, 3.0])
    ),
    differentiable=("x",),
    dtypes=("float32", "bfloat16"),
    supports=supports,
)


def law(check: Callable[[Trial], Iterable[Evidence]], applies: Callable[..., str | None] = lambda *_: None) -> Law:
    """A law of the toy's."""
    return Law(name=check.__name__, operations=(OPERATION.name,), check=check, applies=applies, doc="A law.")


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The registry, with the toy and the given implementation in it."""
    held: dict[str, Any] = {"laws": shared.laws(OPERATION), "operation": OPERATION}
    real = registry.operation
    monkeypatch.setattr(registry, "laws", lambda _name: held["laws"])
    monkeypatch.setattr(registry, "operation", lambda name: held["operation"] if name == OPERATION.name else real(name))
    monkeypatch.setattr("assay.audits.resolve.implementation", lambda _target, _form: held["run"])
    return held


def judge(house: dict[str, Any], run: Callable[[Inputs], Any], options: Options | None = None, **more: Any) -> Report:
    """The report on a trusted candidate."""
    house["run"] = run
    candidate = Candidate(operation=OPERATION.name, name="it", target={}, trusted=True, **more)
    return audit(house["operation"], candidate, options)


def named(report: Report, rule: str) -> list[Finding]:
    """The findings under a rule."""
    return [f for f in report.findings if f.rule == f"toy.scale.{rule}"]


def wrong_when(condition: Callable[[Inputs], bool]) -> Callable[[Inputs], Outputs]:
    """Right, except where it is not."""
    return lambda inputs: {"y": inputs.x * inputs.scale * (1.5 if condition(inputs) else 1)}


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


def test_numbers_have_three_digits() -> None:
    """More differ from machine to machine, and say nothing."""
    assert findings.rounded(0.123456) == 0.123
    assert findings.rounded(123456.0) == 123000.0
    assert findings.rounded(5.2199e-07) == 5.22e-07
    assert findings.rounded(0.0) == 0.0
    assert findings.rounded(math.inf) == "inf"
    assert findings.rounded(math.nan) == "nan"
    assert findings.rounded("as it is") == "as it is"


def test_numbers_that_three_digits_do_not_tell_apart_have_more(house: dict[str, Any]) -> None:
    """A measured value beyond its limit does not look as if it were the limit."""
    house["laws"] = (law(lambda _: [Evidence(where="y", measured=0.012345678, limit=0.01234321, message="more")]),)
    finding = judge(house, oracle, Options(cases=("three",), dtypes=("float32",))).findings[0]
    assert (finding.measured, finding.limit) == (0.01235, 0.01234)


def test_findings_are_sorted(house: dict[str, Any]) -> None:
    """The worst first, then by name."""
    report = judge(house, lambda inputs: {"y": inputs.x.detach() * 9})
    keys = [(-f.verdict, f.rule, f.dtype, f.where) for f in report.findings]
    assert keys == sorted(keys)
    assert len(keys) == len(set(keys)) > 3


def test_fingerprints_do_not_depend_on_the_seed(house: dict[str, Any]) -> None:
    """Nor on the amount; rule, candidate, dtype and place make them."""
    wrong = wrong_when(lambda inputs: inputs.x.numel() > 10)
    many = [{f.fingerprint for f in judge(house, wrong, Options(seed=n, examples=30)).findings} for n in range(3)]
    assert many[0] == many[1] == many[2]
    assert findings.fingerprint("a.b", "c", "float32", "q") == "72a118cbf316"


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


@pytest.mark.parametrize("case", [*OPERATION.cases.values(), Case(size=7, scale=1e-3), Case(seed=5)])
def test_cases_are_told_and_read_back(case: Case) -> None:
    """By name, or by what differs."""
    assert cases.parse(OPERATION, cases.text(OPERATION, case, {})) == case


def test_a_fixed_parameter_is_not_told() -> None:
    """The candidate fixes it."""
    told = cases.text(OPERATION, Case(size=7, scale=9.0), {"scale": 9.0})
    assert told == '{"size":7}'
    assert replace(cases.parse(OPERATION, told), scale=9.0) == Case(size=7, scale=9.0)


@pytest.mark.parametrize("case", ["nothing", "{", '{"length":3}', "[1]"])
def test_bad_cases_are_told(case: str) -> None:
    """With what is possible."""
    with pytest.raises(cases.BadCase, match="three|Case"):
        cases.parse(OPERATION, case)


def _broke(rule: str, **more: Any) -> Broke:
    evidence = Evidence(where="y", measured=1.0, limit=0.5, message="wrong")
    return Broke(rule=rule, case="it's $HOME", dtype="float32", evidence=evidence, **more)


COMMANDS = [
    (_broke("parity", law="parity"), Options(), "--law parity --case 'it'\"'\"'s $HOME' --dtype float32 --seed 0"),
    (_broke("raises", law="parity"), Options(seed=3), "--case 'it'\"'\"'s $HOME' --dtype float32 --seed 3"),
    (
        _broke("mutates", law="split"), Options(device="cuda", time_limit=2.5),
        "--law mutates --law split --case 'it'\"'\"'s $HOME' --dtype float32 --seed 0 --device cuda --time-limit 2.5",
    ),
    (_broke("parity", law="parity", alone=False), Options(examples=7), "--seed 0 --examples 7"),
]  # fmt: skip


@pytest.mark.parametrize(("broke", "options", "words"), COMMANDS)
def test_commands(broke: Broke, options: Options, words: str) -> None:
    """Quoted for a shell."""
    target = {"ref": "m:f", "public": True}
    candidate = Candidate(operation=OPERATION.name, name="m:f", target=target, form="plain")
    command = findings.repro(OPERATION, candidate, broke, options)
    assert command == f"assay audit toy.scale --candidate m:f --form plain {words}"


MODULE = """
from hostile import good

def far_off(q, k, cos, sin):
    a, b = good(q, k, cos, sin)
    return (a * 1.01 if q.shape[1] == 28 else a), b

def long_off(q, k, cos, sin):
    a, b = good(q, k, cos, sin)
    return a, (b * 1.01 if q.shape[2] in (8, 9) else b)
"""


@pytest.mark.parametrize(("function", "kind"), [("far_off", "qwen2.5-vl"), ("long_off", r'\{.*"tokens":8.*\}')])
def test_commands_show_their_findings_again(tmp_path: Path, function: str, kind: str) -> None:
    """A named case and a searched one, through the command itself."""
    (tmp_path / "hostile.py").write_text((HERE / "hostile.py").read_text())
    (tmp_path / "mine.py").write_text(MODULE)
    command = ["assay", "audit", "mrope.rotate", "--candidate", f"mine:{function}", "--law", "parity"]
    first = _assay(tmp_path, [*command, "--dtype", "float32", "--examples", "200"])
    found = [f for f in first["findings"] if f["rule"] == "mrope.rotate.parity"]
    assert found
    assert re.fullmatch(kind, found[0]["case"])
    again = _assay(tmp_path, shlex.split(found[0]["repro"]))
    same = [f for f in again["findings"] if f["fingerprint"] == found[0]["fingerprint"]]
    assert [(f["measured"], f["limit"], f["case"]) for f in same] == [
        (found[0]["measured"], found[0]["limit"], found[0]["case"])
    ]


def _assay(folder: Path, command: list[str]) -> Any:
    """Run the command in a folder; its report."""
    assert command[0] == "assay"
    code = "import sys; from assay.audits.cli import main; main(sys.argv[1:])"
    words = [sys.executable, "-P", "-c", code, *command[1:], "--json", "report.json"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    return json.loads((folder / "report.json").read_text())
