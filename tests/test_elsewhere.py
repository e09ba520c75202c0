"""Candidates in another environment, and the same audit in two of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest
import torch

from assay.audits import against, cli, environment, findings, registry, session, upgrade
from assay.audits.against import Key
from assay.audits.choose import Request, plan
from assay.audits.options import Options
from assay.audits.render import against as render
from assay.audits.render import schema
from assay.audits.render.example import REPORT
from assay.audits.terms import Evidence, Outcome, Raised

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
    assert "python cannot be asked; it has to be Python 3.11 or later with torch" in capsys.readouterr().err
    assert _audit("--against", str(other.parent / "mine.py")) == 2
    assert "mine.py is no Python and no report, *.json" in capsys.readouterr().err


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


@pytest.mark.parametrize("text", [None, "{"])
def test_a_report_that_is_none_is_told_before_anything_is_run(
    other: Path, text: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = other.parent / "stored.json"
    if text is not None:
        stored.write_text(text)
    monkeypatch.setattr(session, "conduct", lambda *_: pytest.fail("it was run"))
    assert _audit("--against", str(stored)) == 2


def test_the_environment_is_that_of_the_candidates() -> None:
    judge = {"vlm-assay": "2", "hypothesis": "6", "transformers": "5", "device": "cpu"}
    assert environment.beside(judge, {"torch": "2", "vlm-assay": "1", "device": "cpu"}) == {
        "torch": "2", "vlm-assay": "2", "hypothesis": "6", "device": "cpu",
    }  # fmt: skip


def test_what_is_ours_is_not_asked_elsewhere(other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("audit", "packed_positions.plan", "--candidate", "reference", "--python", str(other))
    assert cli.run(asked) == 2
    assert "--python: all of this is the project's own" in capsys.readouterr().err


def test_the_command_of_a_finding_says_where_unless_it_is_ours() -> None:
    (_, theirs), *_ = plan(Request(targets=("packed_positions.plan",), peer="trl"))
    operation = registry.operation(theirs.operation)
    broke = findings.Broke(
        rule="fits", case="mixed", dtype="int64", evidence=Evidence(where="", measured=1, limit=0, message="")
    )
    told = findings.repro(operation, theirs, broke, Options(python="there"))
    assert f"--peer trl --candidate {theirs.name} " in told
    assert told.endswith("--python there")
    assert "--python" not in findings.repro(operation, replace(theirs, trusted=True), broke, Options(python="there"))


class _Nobody:
    """Workers that are never started."""

    describe = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def each(self, places: Sequence[int], do: Any, _preload: tuple[str, ...]) -> None:
        for place in places:
            do(place, None)


@pytest.mark.parametrize("python", ["", "there"])
def test_what_transformers_does_is_compared_in_both_though_it_is_trusted(
    python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "workers", lambda *_: _Nobody())
    monkeypatch.setattr(against, "_returned", lambda op, found, *_: [(Key(op.name, found.name, ""), "asked")])
    request = Request(targets=("label_mask.labels",), candidate="assistant_masks")
    assert list(against.observed(request, Options(python=python))) == [Key("label_mask.labels", "assistant_masks", "")]


A, B = Key("op", "mine", "case", "out"), Key("op", "mine", "other")


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (torch.tensor([1, 2, 3]), torch.tensor([1, 5, 4]), "out[1]: 2 became 5; largest difference 3"),
        (torch.tensor([1.0, torch.nan]), torch.tensor([1.0, torch.nan]), ""),
        (torch.tensor([-torch.inf, 1.0]), torch.tensor([-torch.inf, 2.0]), "out[1]: 1 became 2; largest difference 1"),
        (torch.tensor([torch.nan, 1.0]), torch.tensor([torch.nan, 2.0]), "out[1]: 1 became 2; largest difference 1"),
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
    assert against.compare(REPORT, REPORT, {mute: "Inexpressible: no"}, {mute: "Inexpressible: no"}).same == 0


def test_where_an_environment_is_makes_no_difference() -> None:
    raised = Raised("ImportError", "cannot import name 'x' from 'y' (/envs/a/lib/site-packages/y/__init__.py)")
    ((_, told),) = against._told(A, Outcome(raised=raised))
    assert told == "ImportError: cannot import name 'x' from 'y' (y/__init__.py)"


LONG = torch.arange(2.0 * upgrade.LONG)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (({"o f c x": torch.ones(2)}, {"o f c x": torch.tensor([1.0, 2.0])}), "c | x[1] | 1 | 2 |"),
        (({"o f c x": LONG}, {"o f c x": LONG.flip(0)}), "c | x (bits) |"),
        (({"o f c x": torch.tensor(torch.nan)}, {"o f c x": torch.tensor(torch.nan)}), "1 outputs are the same"),
        (({"o f c": "Inexpressible: no"}, {"o f c x": torch.ones(2)}), "0 outputs are the same"),
        (({"o f c": "Inexpressible: no"}, {"o f c": "Inexpressible: no"}), "0 are not. 1 calls are no question"),
    ],
)
def test_the_page_of_an_upgrade(values: tuple[dict[str, Any], ...], told: str) -> None:
    stored = {
        str(place): {"verdicts": {}, "values": {key: upgrade._plain(value) for key, value in found.items()}}
        for place, found in enumerate(values)
    }
    assert told in upgrade.page(json.loads(json.dumps(stored)))


def test_outputs_that_are_the_same_are_counted() -> None:
    compared = against.compare(REPORT, REPORT, {A: torch.ones(2)}, {A: torch.ones(2)})
    assert (compared.same, compared.changes) == (1, ())
    assert "1 outputs are the same, bit for bit; 0 are not." in render.render(compared)
