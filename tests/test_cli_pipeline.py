"""``assay audit --pipeline`` and ``assay show``: what they say of a user's module, and with which status they leave."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from assay.audits import choose, cli
from assay.audits.choose import Request, UsageError

MODULE = """
from assay.audits.components.pipeline import own, row_faults
from assay.audits.components.pipeline.wrong import FAMILY, pipeline


def good():
    made = own.padded_qwen2_5_vl()
    parts = {"dataset": made.dataset, "collate_fn": made.collator, "processor": made.processor}
    return {**parts, "model": lambda: made.model}


def bad():
    return pipeline(row_faults._Untyped(FAMILY))


def nothing():
    return {"collator": list}


def raising():
    raise RuntimeError("the disk is full")
"""


@pytest.fixture(autouse=True)
def _mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder has a module of a user's."""
    (tmp_path / "mine.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_a_wrong_pipeline_fails_and_its_command_shows_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["audit", "--pipeline", "mine:bad", "--law", "types", "--law", "positions", "--law", "side"]
    assert cli.run([*asked, "--case", "two", "--json", "r.json", "--junit", "r.xml"]) == 1
    out = capsys.readouterr().out
    assert "pipeline.batch.types" in out
    assert "without it the model numbers images as if they were text" in out
    report = json.loads(Path("r.json").read_text(encoding="utf-8"))
    finding = next(item for item in report["findings"] if item["rule"] == "pipeline.batch.types")
    assert finding["repro"] == (
        "assay audit pipeline.batch --pipeline mine:bad --law types --case two --dtype float64 --seed 0"
    )
    assert cli.run(["repro", finding["fingerprint"], "--report", "r.json"]) == 1
    assert "showed again: FAIL pipeline.batch.types" in capsys.readouterr().out
    assert "mine:bad" in Path("r.xml").read_text(encoding="utf-8")


def test_a_right_pipeline_passes_on_chosen_samples(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["audit", "--pipeline", "mine:good", "--case", '{"samples":[2,0]}', "--law", "answers", "--law", "isolated"]
    assert cli.run(asked) == 0
    assert "PASS  0 failed, 0 unknown" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "status", "told"),
    [
        ("nothing", 2, "--pipeline: dataset: expected a sequence of samples, make() returned none"),
        ("raising", 3, ""),
    ],
)
def test_what_is_no_pipeline_is_told(capsys: pytest.CaptureFixture[str], make: str, status: int, told: str) -> None:
    assert cli.run(["audit", "--pipeline", f"mine:{make}"]) == status
    captured = capsys.readouterr()
    assert told in captured.err
    if not told:
        assert "RuntimeError: the disk is full" in captured.out


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (Request(pipeline="a:b", patch="c:d", families=("qwen2_vl",)), "it goes without --patch, --family"),
        (Request(pipeline="a:b", candidate="c:d"), "it goes without --candidate"),
        (Request(pipeline="a:b", targets=("mrope",)), "--pipeline is judged by pipeline.batch, not by mrope"),
        (Request(targets=("pipeline.batch",), candidate="a:b"), "judges pipelines, not functions: ask with --pipeline"),
    ],
)
def test_what_does_not_go_together(request_: Request, told: str) -> None:
    with pytest.raises(UsageError) as raised:
        choose.plan(request_, lambda _ref: ())
    assert told in str(raised.value)


def test_one_law_of_a_pipeline_is_planned() -> None:
    ((operation, candidate),) = choose.plan(Request(pipeline="a:b"))
    assert (operation.name, candidate.name, candidate.target["pipeline"]) == ("pipeline.batch", "a:b", "a:b")


def test_show_draws_a_page_that_needs_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["show", "--pipeline", "mine:bad", "--samples", "2,0", "--html", "b.html"]) == 0
    out = capsys.readouterr().out
    assert "row 0: sample 2: 89 tokens, 0 of them padding, 17 trained" in out
    assert "row 1: sample 0: 89 tokens, 35 of them padding, 13 trained" in out
    assert "Law types: " in out
    page = Path("b.html").read_text(encoding="utf-8")
    assert "A batch of mine:bad: samples 2, 0" in page
    assert "Law positions: sample 2: not the positions of the rule" in page
    assert page.count('class="i"') == 13
    assert "http" not in page
    assert "<|im_end|>".replace("<", "&lt;").replace(">", "&gt;") in page


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--pipeline", "mine:good", "--samples", "0,99"], "--samples: the dataset has 5 samples"),
        (["--pipeline", "mine:good", "--samples", "first"], "--samples: expected numbers with commas between them"),
        (["--pipeline", "mine:good", "--html", "no/such/b.html"], "--html: cannot write no/such/b.html"),
    ],
)
def test_show_tells_what_is_wrong(capsys: pytest.CaptureFixture[str], arguments: list[str], told: str) -> None:
    assert cli.run(["show", *arguments]) == 2
    assert told in capsys.readouterr().err
