"""What a guard writes: whole files, not too many of them, and what the command makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from guard_runs import adam, batch_of, model_of, step, watched

from assay.audits import cli
from assay.audits.families import qwen2_5_vl
from assay.audits.guard import guard
from assay.audits.guard_files import Shelf, load


@pytest.fixture(scope="module", autouse=True)
def _quick(one_thread: None) -> None:
    """Tiny models."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a batch whose image tokens are trained on."""
    folder = tmp_path_factory.mktemp("guard")
    model = model_of()
    batch = batch_of(model)
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    watched(model, batch, folder, processor=qwen2_5_vl.RECIPE.tokenizer())
    (path,) = folder.glob("*.json")
    return path


def test_a_file_has_the_batch_and_what_the_model_used(written: Path) -> None:
    assert written.name == "step-0000001-rank-0.json"
    live = load(written)
    assert {"batch.pixel_values", "batch.image_grid_thw", "used.positions"} <= set(live.tensors)
    assert live.record["findings"][0]["rule"] == "guard.targets"
    assert live.record["versions"]["torch"] == str(torch.__version__)
    assert live.record["texts"]
    assert not list(written.parent.glob("*.part"))


def test_show_draws_it(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "x.html"
    assert cli.run(["show", "--batch", str(written), "--html", str(page)]) == 0
    told = capsys.readouterr().out
    assert "guard.targets: a placeholder is trained on" in told
    text = page.read_text()
    assert "height" in text and "Qwen2_5_VLForConditionalGeneration" in text


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_repro_judges_it_again(written: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["repro", str(written.with_suffix(suffix))]) == 1
    told = capsys.readouterr().out
    assert told.startswith("FAIL  guard.targets: a placeholder is trained on")
    assert "1 of" in told.splitlines()[-1]


def test_repro_passes_what_is_mended(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    live = load(written)
    view = live.view
    labels = view.labels.masked_fill(view.types > 0, -100)
    path = Shelf(tmp_path, 1, 0).write(type(live)({**live.tensors, "batch.labels": labels}, live.record), {}, 1)
    assert cli.run(["repro", str(path)]) == 0
    assert "did not show again: guard.targets" in capsys.readouterr().out


def test_explain_tells_what_a_rule_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["explain", "guard.targets"]) == 0
    assert "Labels are the tokens' own ids" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["show"],
        ["show", "--batch", "b.json", "--pipeline", "a:b"],
        ["show", "--batch", "b.json", "--samples", "0"],
        ["show", "--batch", "missing.json"],
        ["repro", "missing.json"],
    ],
)
def test_what_cannot_be_done_is_bad_usage(arguments: list[str]) -> None:
    assert cli.run(arguments) == cli.USAGE


def test_a_file_of_somebody_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report.json").write_text(json.dumps({"findings": []}))
    assert cli.run(["repro", str(tmp_path / "report.json")]) == cli.USAGE
    assert "no batch that a guard wrote" in capsys.readouterr().err


@pytest.mark.parametrize("lacking", ["facts", "findings", "parts", "tensors", "versions"])
def test_a_file_that_lacks_something_is_refused(
    written: Path, tmp_path: Path, lacking: str, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads(written.read_text())
    record["tensors"] = str(written.with_suffix(".safetensors"))
    del record[lacking]
    (tmp_path / "b.json").write_text(json.dumps(record))
    for arguments in (["repro", str(tmp_path / "b.json")], ["show", "--batch", str(tmp_path / "b.json")]):
        assert cli.run(arguments) == cli.USAGE
        assert f"it lacks {lacking}" in capsys.readouterr().err


def _steps(folder: Path, number: int, **options: Any) -> None:
    """A loss that is not finite, again and again."""
    model = model_of("llama")
    batch, optimizer = batch_of(model, ("t9",), "llama"), torch.optim.SGD(model.parameters(), lr=0.0)
    batch["labels"] = torch.full_like(batch["labels"], -100)
    with guard(model, optimizer, every=1, folder=folder, **options):
        for _ in range(number):
            step(model, batch)
            optimizer.step()


@pytest.mark.filterwarnings("ignore::assay.GuardWarning")
def test_a_rule_has_two_files_and_a_folder_as_many_as_are_allowed(tmp_path: Path) -> None:
    _steps(tmp_path, 4)
    assert len(list(tmp_path.glob("*.json"))) == len(list(tmp_path.glob("*.safetensors"))) == 2
    _steps(tmp_path, 4, keep=3)
    assert max(path.name for path in tmp_path.glob("*.json")) == "step-0000002-rank-0.json"
    assert len(list(tmp_path.glob("*.json"))) == 3, "earlier runs count"


@pytest.mark.filterwarnings("ignore::assay.GuardWarning")
def test_each_process_has_files_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    _steps(tmp_path, 1, keep=1)
    assert [path.name for path in tmp_path.glob("*.json")] == ["step-0000001-rank-3.json"]


def test_a_folder_that_cannot_be_made_ends_no_training(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.warns(UserWarning, match="the batch cannot be written"):
        _steps(tmp_path / "taken", 1)


def test_a_right_training_writes_nothing(tmp_path: Path) -> None:
    model = model_of("llama")
    watched(model, batch_of(model, ("t9",), "llama"), tmp_path / "none", made=adam)
    assert not (tmp_path / "none").exists()
