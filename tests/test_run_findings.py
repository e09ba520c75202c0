"""What the judge's findings say: numbers, order, fingerprints, cases, and the commands that show them again."""

from __future__ import annotations

import json
import math
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy import OPERATION, Case, judge, law, oracle, wrong_when

from assay.audits import cases, findings
from assay.audits.findings import Broke
from assay.audits.run import Options
from assay.audits.terms import Candidate, Evidence

HERE = Path(__file__).parent


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
