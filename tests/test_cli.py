"""The ``assay`` command: exit statuses, errors that name the option, outputs, and what it must not import."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from assay.audits import cli, manual, registry, session
from assay.audits.choose import Request, UsageError
from assay.audits.render import schema
from assay.audits.render.example import CANDIDATE, FAR
from assay.audits.run import Options
from assay.audits.terms import Candidate, Check, Finding, Law, Operation, Relations, Report, Verdict

LAWS = tuple(
    Law(name=name, operations=("mrope.rotate",), check=lambda _: (), doc=f"{name}.") for name in ("norm", "parity")
)
PASSED = Report(
    findings=(),
    checks=(Check(rule=FAR.rule, candidate=CANDIDATE, exercised=3),),
    environment={"transformers": "5.23.0"},
)


@dataclass(frozen=True)
class _Params:
    length: int = 1


def _operation(name: str) -> Operation:
    return Operation(
        name=name,
        summary="a fake",
        params=_Params,
        build=lambda *_: None,
        outputs=("q",),
        expect=Relations(),
        forms=(),
        cases={"short": _Params(1), "long": _Params(9)},
        strategy=None,
        dtypes=("float32", "bfloat16"),
    )


@dataclass
class House:
    """A fake judge: it remembers what it was asked, and answers with what it is given."""

    answer: Report | Exception = PASSED
    asked: list[tuple[Operation, Candidate, Options]] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)

    def plan(self, request: Request, _describe: object = None) -> tuple[tuple[Operation, Candidate], ...]:
        """One candidate of each target."""
        self.requests.append(request)
        names = request.targets or ("mrope.rotate",)
        if "nowhere" in names:
            message = "no component or operation named 'nowhere'; there are: mrope"
            raise UsageError(message)
        return tuple((_operation(n), Candidate(operation=n, name="x", target={}, trusted=True)) for n in names)

    def audit(self, operation: Operation, candidate: Candidate, options: Options, **_: Any) -> Report:
        """The answer."""
        self.asked.append((operation, candidate, options))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> House:
    """The command in an empty directory, with a fake judge behind it."""
    fake = House()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.setattr(session, "plan", fake.plan)
    monkeypatch.setattr(session, "audit", fake.audit)
    monkeypatch.setattr(registry, "laws", lambda _name: LAWS)
    monkeypatch.setattr(manual, "pages", lambda _report: {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    return fake


def _with(*findings: Finding) -> Report:
    return replace(PASSED, findings=findings)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (PASSED, 0),
        (_with(replace(FAR, verdict=Verdict.WAIVED)), 0),
        (_with(FAR), 1),
        (_with(replace(FAR, verdict=Verdict.UNKNOWN)), 3),
        (Report(findings=(), checks=(), environment={}), 3),
        (RuntimeError("boom"), 3),
        (KeyboardInterrupt(), 3),
    ],
    ids=["pass", "waived", "fail", "unknown", "nothing", "crash", "interrupt"],
)
def test_the_exit_status_follows_the_ladder(house: House, answer: Any, status: int) -> None:
    house.answer = answer
    assert cli.run(["audit"]) == status


def test_a_crash_is_told_in_a_line_after_its_traceback(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    house.answer = RuntimeError("boom")
    cli.run(["audit"])
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback (most recent call last):" in err
    assert err.splitlines()[-1] == "assay: the command itself failed (RuntimeError: boom); there is no verdict"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["audit", "--seed", "x"], "--seed"),
        (["audit", "--seed", "-1"], "--seed"),
        (["audit", "--examples", "-1"], "--examples"),
        (["audit", "--device", "tpu"], "--device"),
        (["audit", "--time-limit", "0"], "--time-limit"),
        (["audit", "--law", "nrom"], "--law: no law 'nrom' of mrope.rotate; there are: mrope.rotate.norm, "),
        (["audit", "--case", "tall"], "--case: mrope.rotate has no case 'tall'"),
        (["audit", "--case", '{"width": 1}'], "--case: case "),
        (["audit", "--dtype", "int4"], "--dtype: 'int4' is no dtype of mrope.rotate; there are: bfloat16, float32"),
        (["audit", "--json", "no/such/folder/r.json"], "--json: cannot write no/such/folder/r.json"),
        (["audit", "--html", "."], "--html: cannot write"),
        (["audit", "--waivers", "none.toml"], "none.toml: cannot be read"),
        (["audit", "nowhere"], "no component or operation named 'nowhere'; there are: mrope"),
        (["audit", "--lawless"], "--lawless"),
        (["list", "lawes"], "'lawes' is not one of"),
        (["repro", "abc", "--report", "none.json"], "none.json: cannot be read"),
        (["repro", "abc"], "report.json"),
        (["gate", "none.json", "none.json"], "none.json: cannot be read"),
        (["judge"], "judge"),
    ],
    ids=" ".join,
)
def test_bad_usage_is_2_and_named(
    house: House, capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    assert cli.run(arguments) == cli.USAGE
    assert named in capsys.readouterr().err
    assert house.asked == []


def test_options_reach_the_judge(house: House) -> None:
    options = "--candidate m:f --form hf --family a --family b --patch m:p --law norm --case short --seed 7"
    more = "--examples 3 --device cuda --dtype bfloat16 --time-limit 1.5"
    assert cli.run(["audit", "mrope.rotate", *options.split(), *more.split()]) == 0
    (request,), ((_, _, fitted),) = house.requests, house.asked
    assert request == Request(targets=("mrope.rotate",), candidate="m:f", form="hf", families=("a", "b"), patch="m:p")
    assert fitted == Options(
        laws=("norm",), cases=("short",), seed=7, examples=3, device="cuda", dtypes=("bfloat16",), time_limit=1.5
    )


def test_the_current_directory_is_importable_for_a_candidate_and_comes_last(house: House, tmp_path: Path) -> None:
    cli.run(["audit"])
    assert str(tmp_path) not in sys.path
    cli.run(["audit", "--candidate", "m:f"])
    assert sys.path[-1] == str(tmp_path)
    assert [operation.name for operation, _, _ in house.asked] == ["mrope.rotate", "mrope.rotate"]


def test_a_filter_goes_only_to_the_operations_that_know_it(house: House) -> None:
    assert cli.run(["audit", "mrope.rotate", "mrope.positions", "--law", "mrope.positions.norm"]) == 0
    assert [(operation.name, options.laws) for operation, _, options in house.asked] == [
        ("mrope.positions", ("mrope.positions.norm",))
    ]


def test_every_output_is_written(house: House, tmp_path: Path) -> None:
    house.answer = _with(FAR)
    names = ("json", "junit", "sarif", "markdown", "html")
    arguments = [text for name in names for text in (f"--{name}", name)]
    assert cli.run(["audit", *arguments]) == 1
    assert all(FAR.repro in (tmp_path / name).read_text(encoding="utf-8") for name in names)
    told = schema.load((tmp_path / "json").read_text(encoding="utf-8"))
    assert told.request == {"device": "cpu", "examples": 20, "seed": 0, "time_limit": 20.0}
    assert told.filtered is False


@pytest.mark.parametrize("narrowing", [["mrope.rotate"], ["--family", "a"], ["--patch", "m:p"], ["--candidate", "m:f"]])
def test_a_narrowed_run_is_filtered(house: House, tmp_path: Path, narrowing: list[str]) -> None:
    cli.run(["audit", *narrowing, "--json", "r"])
    assert house.asked
    assert schema.load((tmp_path / "r").read_text(encoding="utf-8")).filtered is True


def test_quiet_prints_one_line(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    house.answer = _with(FAR)
    cli.run(["audit", "--quiet"])
    out, err = capsys.readouterr()
    assert out == "FAIL  1 failed, 0 unknown, 0 waived; 1 check: 1 exercised, 0 inapplicable\n"
    assert err == ""


def _waivers(path: Path, until: str) -> None:
    fields = {"rule": FAR.rule, "candidate": "*", "reason": "r", "issue": "i", "until": until}
    text = "".join(f'{key} = "{value}"\n' for key, value in fields.items())
    path.write_text(f"[[waiver]]\n{text}worst = 1\n", encoding="utf-8")


@pytest.mark.parametrize(("name", "arguments"), [("waivers.toml", []), ("mine.toml", ["--waivers", "mine.toml"])])
def test_waivers_are_applied(house: House, tmp_path: Path, name: str, arguments: list[str]) -> None:
    house.answer = _with(FAR)
    _waivers(tmp_path / name, session.today().isoformat())
    assert cli.run(["audit", *arguments]) == 0
    _waivers(tmp_path / name, "2020-01-01")
    assert cli.run(["audit", *arguments]) == 1
    _waivers(tmp_path / name, "2999-01-01")
    assert cli.run(["audit", *arguments]) == cli.USAGE


def test_github_gets_annotations_and_a_summary(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    house.answer = _with(FAR)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary"))
    cli.run(["audit"])
    assert "::error title=mrope.rotate.parity" in capsys.readouterr().out
    assert (tmp_path / "summary").read_text(encoding="utf-8").startswith("## ❌ assay: FAIL")


def _reports(tmp_path: Path, *reports: Report) -> list[str]:
    paths = [tmp_path / f"{number}.json" for number in range(len(reports))]
    for path, report in zip(paths, reports, strict=True):
        path.write_text(schema.dump(report), encoding="utf-8")
    return [str(path) for path in paths]


def _repro(house: House, tmp_path: Path, name: str, again: Report) -> int:
    known = replace(FAR, repro=FAR.repro.replace("far-1000000", "long"))
    (path,) = _reports(tmp_path, _with(known, replace(known, fingerprint="other", rule="mrope.rotate.norm")))
    house.answer = again
    return cli.run(["repro", name, "--report", path])


@pytest.mark.parametrize("name", [FAR.fingerprint, FAR.fingerprint[:4], FAR.rule])
@pytest.mark.parametrize(
    ("again", "status", "told"),
    [
        (_with(FAR), 1, "showed again: FAIL mrope.rotate.parity"),
        (PASSED, 0, "did not show again"),
        (_with(replace(FAR, where="k", fingerprint="k")), 1, "showed again, in another place: k instead of q"),
        (_with(replace(FAR, rule="mrope.rotate.raises", fingerprint="r")), 1, "but there is: mrope.rotate.raises"),
        (Report(findings=(), checks=(), environment={}), 3, "nothing was exercised"),
    ],
    ids=["again", "gone", "elsewhere", "otherwise", "nothing"],
)
def test_repro(
    house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, again: Report, status: int, told: str
) -> None:  # fmt: skip
    assert _repro(house, tmp_path, name, again) == status
    assert told in capsys.readouterr().out.splitlines()[-1]
    ((operation, _, options),) = house.asked
    assert (operation.name, options.laws, options.cases, options.dtypes, options.seed) == (
        "mrope.rotate", ("parity",), ("long",), ("bfloat16",), 7,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["", "zzz"])
def test_repro_of_an_unknown_finding_lists_them(
    house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert _repro(house, tmp_path, name, PASSED) == cli.USAGE
    assert f"{FAR.fingerprint}  {FAR.rule}" in capsys.readouterr().err


def test_repro_runs_audits_only(house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = _reports(tmp_path, _with(replace(FAR, repro="rm -r /")))
    assert cli.run(["repro", FAR.fingerprint, "--report", path]) == cli.USAGE
    assert "is not an audit" in capsys.readouterr().err
    assert house.asked == []


def test_repro_of_a_command_that_cannot_run_keeps_its_status(house: House, tmp_path: Path) -> None:
    (path,) = _reports(tmp_path, _with(replace(FAR, repro="assay audit --case gone")))
    assert cli.run(["repro", FAR.fingerprint, "--report", path]) == cli.USAGE
    assert house.asked == []
