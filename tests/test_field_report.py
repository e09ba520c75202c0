"""The field report is what the stored reports and entries say; each entry has its script."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest

from assay.audits import field_report, peer, registry
from assay.audits.laws.shared import MACHINE_RULES
from assay.audits.render.example import REPORT
from assay.audits.terms import Verdict

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / field_report.FOLDER


def test_the_page_is_up_to_date() -> None:
    page = field_report.page(field_report.proven(FOLDER), field_report.reports(FOLDER))
    assert (ROOT / field_report.PAGE).read_text() == page, "run nox -s docs"


def test_each_report_tells_the_version_of_its_package() -> None:
    page = (ROOT / field_report.PAGE).read_text()
    for name in field_report.reports(FOLDER):
        version = peer.peer(name).requirements[0].partition("==")[2]
        assert f"### {name}\n\n{name} {version}, " in page


def test_every_entry_has_its_script_and_every_script_its_entry() -> None:
    entries = [item.script for item in field_report.proven(FOLDER)]
    assert sorted(entries) == sorted(path.name for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize("item", field_report.proven(FOLDER), ids=lambda item: f"{item.package}-{item.id}")
def test_an_entry_names_what_there_is(item: field_report.Proven) -> None:
    laws = {f"{name}.{law.name}" for name in registry.operations() for law in registry.laws(name)}
    assert all(rule in laws or rule.rpartition(".")[2] in MACHINE_RULES for rule in item.rules)
    registry.operation(item.operation)
    if item.candidate and item.package != "transformers":
        named = {found.name for found in peer.candidates(peer.peer(item.package), item.operation)}
        assert item.candidate in named


def test_the_same_mistake_is_counted_once_and_by_an_entry_there_is() -> None:
    counted = {f"{item.package} {item.id}" for item in field_report.proven(FOLDER) if not item.same}
    assert {item.same for item in field_report.proven(FOLDER) if item.same} <= counted


def test_what_is_unknown_says_why() -> None:
    finding = next(item for item in REPORT.findings if item.verdict == Verdict.UNKNOWN)
    report = replace(REPORT, findings=(finding,), checks=())
    (row,) = field_report._rows(report)
    assert row.endswith(f"| UNKNOWN | {finding.message} |")


def test_each_fail_has_numbers_and_a_command_and_says_whether_it_is_a_bug() -> None:
    audited, found = field_report.reports(FOLDER), field_report.proven(FOLDER)
    page = (ROOT / field_report.PAGE).read_text()
    for name, report in audited.items():
        lines = list(field_report._broken(name, report, [item for item in found if item.package == name]))
        for finding in report.findings:
            if finding.verdict == Verdict.FAIL:
                (line,) = (one for one in lines if one.startswith(f"* `{finding.rule}`, {finding.candidate}: "))
                assert f'`nox -s "peer({name})" -- {finding.operation} --candidate {finding.candidate} ' in line
                assert "--python" not in line
                assert "not counted as a bug" in line or "[a bug](#" in line
                assert line in page
    assert "[a bug](#llamafactory-dummy-image-mask)" in page
    assert "/tmp/" not in page
    assert "/home/" not in page


def test_scripts_import_nothing_of_ours() -> None:
    for path in FOLDER.glob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        assert not any(name.split(".")[0] == "assay" for name in names), path.name


def test_no_machine_path_is_stored() -> None:
    for path in FOLDER.rglob("*.json"):
        text = path.read_text()
        assert "/tmp/" not in text, path.name
        assert "/home/" not in text, path.name


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "findings").mkdir()
    (tmp_path / "findings" / "x.toml").write_text('[[finding]]\nid = "a"\n')
    with pytest.raises(ValueError, match=r"x\.toml: a: missing or unknown: \['candidate'"):
        field_report.proven(tmp_path)
