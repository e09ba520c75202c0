"""The other commands: gate, list, explain; and what the command must not import."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from assay.audits import cli, manual
from assay.audits.render import schema
from assay.audits.render.example import CANDIDATE, FAR, REPORT
from assay.audits.terms import Check, Finding, Report, Verdict

HEAVY = ("torch", "transformers", "hypothesis", "rich", "numpy", "jinja2", "packaging")
PASSED = Report(findings=(), checks=(Check(rule=FAR.rule, candidate=CANDIDATE, exercised=3),), environment={})


def _with(*findings: Finding) -> Report:
    return replace(PASSED, findings=findings)


def _reports(tmp_path: Path, *reports: Report) -> list[str]:
    paths = [tmp_path / f"{number}.json" for number in range(len(reports))]
    for path, report in zip(paths, reports, strict=True):
        path.write_text(schema.dump(report), encoding="utf-8")
    return [str(path) for path in paths]


@pytest.mark.parametrize(
    ("head", "status", "told"),
    [
        (PASSED, 0, "gate: PASS"),
        (_with(FAR), 1, "New:"),
        (_with(replace(FAR, verdict=Verdict.UNKNOWN)), 3, "gate: UNKNOWN"),
        (replace(PASSED, checks=(replace(PASSED.checks[0], rule="mrope.rotate.norm"),)), 1, "Disappeared checks:"),
    ],
)
def test_gate(tmp_path: Path, capsys: pytest.CaptureFixture[str], head: Report, status: int, told: str) -> None:
    assert cli.run(["gate", *_reports(tmp_path, PASSED, head)]) == status
    assert told in capsys.readouterr().out


def test_gate_refuses_a_broken_report_and_names_the_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = _reports(tmp_path, PASSED, PASSED)
    told = json.loads(Path(bad).read_text(encoding="utf-8"))
    told["checks"][0]["exercised"] = "many"
    Path(bad).write_text(json.dumps(told), encoding="utf-8")
    assert cli.run(["gate", good, bad]) == cli.USAGE
    assert f"{bad}: checks[0].exercised: Input should be a valid integer" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["components", "operations", "laws", "faults", "families"])
def test_list_tells_what_each_is(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    assert cli.run(["list", kind]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert all(" " in line.strip() for line in lines), lines


def test_families_say_who_audits_them(capsys: pytest.CaptureFixture[str]) -> None:
    """And why not: of the families that place features at least forty are audited."""
    assert cli.run(["list", "families"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    audited = {name: line.partition("UNKNOWN")[0].split() for name, line in rows.items()}
    assert sum("masked_scatter" in told or "masked_scatter," in told for told in audited.values()) >= 40
    assert "masked_scatter: UNKNOWN, scatters bytes into patches" in rows["blt"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("mrope.rotate.parity", "mrope.rotate.parity\n"),
        ("parity", "mrope.positions.parity"),
        ("mrope.rotate", "Laws:"),
        ("mrope.positions", "qwen2_5_vl: merge 2, frames by their seconds, 4 ids a second, cut to whole ids"),
        ("mrope.positions", "151655          a patch of an image"),
        ("mrope.positions", "hf-5.3 passes them as mm_token_type_ids"),
        ("mrope", "Operations:"),
        ("mrope.rotate.raises", "raises\n"),
        ("waiver.stale", "A waiver still matches something."),
    ],
)
def test_explain(capsys: pytest.CaptureFixture[str], name: str, told: str) -> None:
    assert cli.run(["explain", name]) == 0
    assert told in capsys.readouterr().out


def test_a_function_judged_by_a_family_is_judged_so_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["audit", "mrope.positions", "--candidate", "fault:sides-swapped", "--law", "blocks", "--examples", "0"]
    assert cli.run([*asked, "--family", "paddleocr_vl", "--quiet", "--json", "report.json"]) == 1
    (finding,) = schema.load(Path("report.json").read_text(encoding="utf-8")).findings
    assert finding.candidate == "fault:sides-swapped@paddleocr_vl"
    assert "--candidate fault:sides-swapped --family paddleocr_vl --law blocks" in finding.repro
    assert cli.run(["repro", finding.fingerprint, "--report", "report.json"]) == 1
    assert "showed again: FAIL mrope.positions.blocks" in capsys.readouterr().out


def test_every_law_and_fault_has_a_page() -> None:
    for kind in ("laws", "faults"):
        for name, _ in manual.catalogue(kind):
            assert name in manual.page(name)


def test_explain_of_an_unknown_rule_names_close_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["explain", "mrope.rotate.partiy"]) == cli.USAGE
    assert "did you mean mrope.rotate.parity" in capsys.readouterr().err


def _in_a_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("arguments", [["--help"], ["audit", "--help"], ["version"]], ids=" ".join)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"import sys; from assay.audits import cli; cli.run({arguments}); "
    code += f"print(sorted(set({HEAVY}) & set(sys.modules)))"
    assert _in_a_process(code).splitlines()[-1] == "[]"


def test_gate_does_not_import_torch(tmp_path: Path) -> None:
    paths = _reports(tmp_path, REPORT, REPORT)
    code = f"import sys; from assay.audits import cli; cli.run(['gate', *{paths}]); print('torch' in sys.modules)"
    assert _in_a_process(code).splitlines()[-1] == "False"


def test_the_module_runs_and_leaves_with_the_status() -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["--help"])
    assert left.value.code == 0
