"""Candidates in another environment, and the same audit in two of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from assay.audits import against, cli
from assay.audits.against import Key
from assay.audits.render import against as render
from assay.audits.render import schema
from assay.audits.render.example import REPORT

PLAN = """
import os

def planned(lengths, capacity):
    if max(lengths, default=0) > capacity:
        raise ValueError("lengths: too long")
    packs, room = [], []
    for i, length in enumerate(lengths):
        for place, left in enumerate(room):
            if length <= left:
                packs[place].append(i)
                room[place] -= length
                break
        else:
            packs.append([i])
            room.append(capacity - length)
    return packs[::-1] if os.environ.get("ELSEWHERE") else packs
"""


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another Python, as far as anybody can tell."""
    (tmp_path / "mine.py").write_text(PLAN)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nELSEWHERE=1 exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    return python


def _audit(*more: str) -> int:
    asked = ("audit", "packed_positions.plan", "--candidate", "mine:planned", "--case", "mixed", "--law", "fits")
    return cli.run([*asked, "--no-annotations", *more])


def test_a_candidate_runs_where_it_is_told_to(other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.json"
    assert _audit("--python", str(other), "--json", str(path)) == 0, capsys.readouterr().out
    report = schema.load(path.read_text(), "report.json")
    assert report.environment["torch"] == torch.__version__


def test_a_python_that_is_none_is_bad_usage(other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _audit("--python", str(other.parent / "none")) == 2
    assert "none is no Python" in capsys.readouterr().err
    other.write_text("#!/bin/sh\nexit 1\n")
    assert _audit("--python", str(other)) == 2
    assert "--python: " in capsys.readouterr().err


def test_two_environments_side_by_side(other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _audit("--against", str(other)) == 0
    said = capsys.readouterr().out
    assert "gate: PASS" in said
    assert "0 outputs are the same, bit for bit; 1 are not:" in said
    assert "* packed_positions.plan mine:planned mixed pieces[0, 1]: " in said


def test_two_reports_side_by_side(other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = other.parent / "stored.json"
    assert _audit("--json", str(stored), "--quiet") == 0
    assert _audit("--against", str(stored)) == 0
    assert "Only reports were compared" in capsys.readouterr().out


A, B = Key("op", "mine", "case", "out"), Key("op", "mine", "other")


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (torch.tensor([1, 2, 3]), torch.tensor([1, 5, 4]), "out[1]: 2 became 5; largest difference 3"),
        (torch.tensor([1.0, torch.nan]), torch.tensor([1.0, torch.nan]), ""),
        (torch.tensor([1.0]), torch.tensor([torch.nan]), "out[0]: 1 became nan; largest difference inf"),
        (torch.zeros(2), torch.zeros(3), "out: float32 [2] became float32 [3]"),
        (torch.zeros(2), torch.zeros(2).double(), "out: float32 [2] became float64 [2]"),
        (torch.tensor(True), torch.tensor(False), "out[]: True became False; largest difference 1"),
        (torch.zeros(0), torch.zeros(0), ""),
        ("KeyError: x", torch.zeros(1), "out: KeyError: x became float32 [1]"),
        (torch.zeros(1), None, "out: float32 [1] became absent"),
    ],
)
def test_differences(before: torch.Tensor | str, after: torch.Tensor | str | None, told: str) -> None:
    found = [*against.differences({A: before}, {} if after is None else {A: after})]
    assert [render.told(change) for change in found] == ([f"op mine case {told}"] if told else [])


def test_what_one_side_cannot_be_asked_is_no_difference() -> None:
    mute = Key("op", "mine", "case")
    assert not [*against.differences({mute: "Inexpressible: no"}, {A: torch.zeros(1)})]
    assert [*against.differences({B: "ValueError: no"}, {})]


def test_outputs_that_are_the_same_are_counted() -> None:
    compared = against.compare(REPORT, REPORT, {A: torch.ones(2)}, {A: torch.ones(2)})
    assert (compared.same, compared.changes) == (1, ())
    assert "1 outputs are the same, bit for bit; 0 are not." in render.render(compared)
