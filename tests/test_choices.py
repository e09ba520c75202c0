"""Chosen tile sizes: what the launch code takes from the file, what it refuses, and how the file comes to be."""

# mypy: allow-untyped-calls
# Some of torch's own methods carry no types.

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_device import DEVICE

from assay.benchmarks import measure, tune, tuned
from assay.benchmarks.operations import cross_entropy as operation
from assay.kernels import choices
from assay.kernels import masked_cross_entropy_launch as launch
from assay.kernels import masked_regression_triton as regression
from assay.kernels import mrope_triton as mrope

RULES = launch.Rules()
ENTRY = {
    "kernel": "cross_entropy.rows", "capability": "9.0", "shape": "4 bytes, 512 columns",
    "settings": {"block": 256, "warps": 2}, "device": "NVIDIA H200", "date": "2026-11-22", "microseconds": 1.5,
}  # fmt: skip


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Writes a file of entries that is read from then on, on a chip of capability 9.0."""

    def write(*entries: Any) -> Path:
        path = tmp_path / "choices.json"
        path.write_text(json.dumps({"schema": 1, "entries": list(entries)}))
        monkeypatch.setenv("ASSAY_CHOICES", str(path))
        monkeypatch.setattr(choices, "capability", lambda _x: "9.0")
        choices.forget()
        return path

    yield write
    choices.forget()


def logits(vocabulary: int = 304) -> torch.Tensor:
    return torch.zeros(1, 3, vocabulary, device=DEVICE)


def test_what_is_stored_is_looked_up_and_everything_else_keeps_its_formula(table: Any) -> None:
    formula = launch.cut("rows", logits(), RULES)
    assert formula == launch.Cut(block=512, warps=2)
    table(ENTRY | {"settings": {"block": 256}})
    assert launch.cut("rows", logits(), RULES) == launch.Cut(block=256, warps=1)  # the warps follow the block
    assert launch.cut("rows", logits(303), RULES) == launch.Cut(block=512, warps=2)  # no 16 bytes at once
    assert launch.cut("rows", logits(600), RULES) == launch.Cut(block=1024, warps=4)
    assert launch.cut("gradient", logits(), RULES) == formula
    assert launch.cut("rows", logits(), launch.Rules(softcap=1.0)) == formula
    assert launch.cut("rows", logits().bfloat16(), RULES) == launch.Cut(block=512, warps=1)


def test_another_chip_keeps_its_formula(table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    table(ENTRY)
    for chip in ("", "8.0"):
        monkeypatch.setattr(choices, "capability", lambda _x, chip=chip: chip)
        assert launch.cut("rows", logits(), RULES) == launch.Cut(block=512, warps=2)


def _options(monkeypatch: pytest.MonkeyPatch, module: Any, kernel: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    class Spy:
        def __getitem__(self, _grid: Any) -> Any:
            return lambda *_arguments, **options: found.append(options)

    monkeypatch.setattr(module, kernel, Spy())
    return found


def test_launches_honour_the_file(table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k = torch.zeros(1, 4, 5, 16, device=DEVICE), torch.zeros(1, 2, 5, 16, device=DEVICE)
    x = torch.zeros(1, 6, 40, device=DEVICE)
    rules = regression.Rules(kind="mse")
    shapes = (mrope.shape_class(4, 2, 8, 0, 4), regression.shape_class(40, rules, 4))
    table(
        ENTRY,
        ENTRY | {"kernel": "cross_entropy.fused", "settings": {"form": "one read", "block": 128, "residents": 3}},
        ENTRY | {"kernel": "rotary.rotate", "shape": shapes[0], "settings": {"warps": 2, "chunk": 1}},
        ENTRY | {"kernel": "masked_regression.rows", "shape": shapes[1], "settings": {"elements": 128}},
    )
    labels = torch.zeros(3, dtype=torch.int64, device=DEVICE)
    rows = _options(monkeypatch, launch.kernels, "rows_kernel")
    teams = _options(monkeypatch, launch, "teams_kernel")
    launch.score_rows(logits(), labels, None, None, RULES)
    launch.score_rows(logits(), labels, None, None, RULES, gradient=True)
    assert [(one["BLOCK"], one["num_warps"]) for one in rows] == [(256, 2)]
    assert teams[0]["BLOCK"] == 128
    assert teams[0]["maxnreg"] == 255  # a third of the registers is more than a thread can have
    turned = _options(monkeypatch, mrope, "rotate_kernel")
    mrope.launch_rotate(q, k, q, k, (q[:1], q[:1]), None, half=8, adjacent=False, conjugate=False, from_positions=False)
    assert (turned[0]["CHUNK"], turned[0]["num_warps"]) == (1, 2)
    scored = _options(monkeypatch, regression, "regression_kernel")
    mask = torch.ones(6, dtype=torch.uint8, device=DEVICE)
    read = regression.Operands(
        prediction=x, target=x, mask=mask, by_element=False, indices=None, weight=None, divisor=torch.ones(())
    )
    regression.launch_value(read, rules)
    assert scored[0]["BLOCK_R"] * scored[0]["BLOCK_C"] == 128


def test_forced_settings_come_before_the_file(table: Any) -> None:
    table(ENTRY)
    with choices.forced("cross_entropy.rows", {}):
        assert launch.cut("rows", logits(), RULES) == launch.Cut(block=512, warps=2)
        with choices.forced("cross_entropy.rows", {"block": 128}):
            assert launch.cut("rows", logits(), RULES).block == 128
        assert launch.cut("rows", logits(), RULES).block == 512
    assert launch.cut("rows", logits(), RULES) == launch.Cut(block=256, warps=2)
    with pytest.raises(ValueError, match="forced, block of cross_entropy.rows: .*, got 100"), \
            choices.forced("cross_entropy.rows", {"block": 100}):  # fmt: skip
        pass


@pytest.mark.parametrize(("entry", "message"), [
    ({"kernel": "cross_entropy.row"}, r"entry 1, kernel: expected one of .*rotary.*, got 'cross_entropy\.row'"),
    ({"settings": {"blocks": 256}}, r"entry 1, settings of .*rows: expected none but block, warps, got 'blocks'"),
    ({"settings": {"block": 300}}, r"entry 1, block of cross_entropy\.rows: expected one of 128, 256, .*, got 300"),
    ({"settings": {"warps": True}}, r"entry 1, warps of .*: expected one of 1, 2, .*, got True"),
    ({"settings": {"block": "256"}}, r"entry 1, block of .*, got '256'"),
    ({"settings": [256]}, r"entry 1, settings: expected an object, got \[256\]"),
    ({"settings": {"block": 256.0}}, r"entry 1, block of .*, got 256\.0"),
    ({"capability": 9.0}, r"entry 1, capability: expected a string, got 9\.0"),
    ({"kernel": ["cross_entropy.rows"]}, r"entry 1, kernel: expected a string, got \['cross_entropy\.rows'\]"),
    ({"speed": 3}, r"entry 1: expected none but .*, got speed"),
    ({}, r"expected one entry for a kernel, chip and class of shapes, got two for .*cross_entropy\.rows"),
])  # fmt: skip
def test_bad_entries_are_named(table: Any, entry: dict[str, Any], message: str) -> None:
    """At the first launch, before anything is computed with them."""
    path = table(ENTRY, ENTRY | entry)
    with pytest.raises(ValueError, match=message) as caught:
        launch.cut("rows", logits(), RULES)
    assert str(path) in str(caught.value)


def test_bad_files_are_named(table: Any) -> None:
    path = table({"kernel": "cross_entropy.rows"})
    with pytest.raises(ValueError, match="entry 0: expected an object with kernel, capability, shape, settings"):
        choices.read(path)
    for text, message in (("{", "expected JSON"), ('{"schema": 2, "entries": []}', "schema.*1.*got .*2")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            choices.read(path)
    path.unlink()
    choices.forget()
    with pytest.raises(FileNotFoundError):  # it was asked for by name
        launch.cut("rows", logits(), RULES)


def test_what_the_project_brings_is_right_and_was_measured() -> None:
    for entry in choices.read(Path(choices.__file__).with_name("choices.json")):
        assert entry.device
        assert entry.versions
        assert entry.microseconds is not None
        assert entry.formula is not None
        assert entry.microseconds < entry.formula


def test_settings_that_are_tried_can_be_stored() -> None:
    assert {one.kernel for one in tuned.TUNED} == set(choices.ALLOWED)
    for one in tuned.TUNED:
        shapes = one.shapes("full", 2)
        assert shapes
        for settings in one.tried:
            choices.check("tried", one.kernel, settings)


def test_classes_of_shapes_are_those_of_the_launch_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """What tuning would store is found by the very call that was timed."""
    asked: set[str] = set()
    monkeypatch.setattr(choices, "look_up", lambda kernel, shape, _x: asked.add(f"{kernel}: {shape}") or {})
    for one in tuned.TUNED:
        ((name, shape), *_) = one.shapes("tiny", 4).items()
        problem = one.problem(shape, torch.device(DEVICE), torch.float32)
        tune._answers(one, problem, measure.Sets(problem), {})
        assert f"{one.kernel}: {name}" in asked


def _fused(*tried: dict[str, Any]) -> tuned.Tuned:
    (own,) = (one for one in tuned.TUNED if one.kernel == "cross_entropy.fused")
    return dataclasses.replace(own, tried=tried)


def test_tuning_is_rehearsed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], table: Any) -> None:
    """Everything runs but storing; nothing is stored though it is asked for."""
    path = table()
    before = path.read_text()
    monkeypatch.setattr(tune, "TUNED", (_fused({"form": "one read", "block": 256}),))
    assert tune.main(["--rehearse", "--write"]) == 0
    said = capsys.readouterr().out
    assert "A rehearsal" in said
    assert "| cross_entropy.fused | 4 bytes, 512 columns, beginning anywhere | form one read, block 256 |" in said
    assert path.read_text() == before


def test_without_a_gpu_nothing_is_timed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune.machine, "place", lambda: "cpu")
    assert tune.main(["--write"]) == tune.NO_GPU == 3
    assert "nothing can be timed" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        tune.main(["--rehearse"])


def test_a_setting_that_gives_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    own = _fused({"block": 256})
    ((name, shape), *_) = own.shapes("tiny", 4).items()
    real = tune._answers

    def spoiled(one: Any, problem: Any, sets: Any, settings: Any) -> Any:
        found = real(one, problem, sets, settings)
        return {key: x * 1.01 for key, x in found.items()} if settings else found

    monkeypatch.setattr(tune, "_answers", spoiled)
    formula, other = tune.trials(own, name, shape, rehearsal=True)
    assert formula.entry
    assert other.entry is None
    assert other.reason.startswith("wrong: loss is 0.01 from the formula's")


def _trial(settings: dict[str, Any], seconds: list[float]) -> tune.Trial:
    entry = measure.Timed("x", sample=lambda: 0.0, wall=lambda: 0.0, how="graph", seconds=seconds)
    return tune.Trial(tuned=_fused(), shape_class="c", settings=settings, prediction="", entry=entry)


def test_only_what_is_clearly_faster_wins_and_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: Any
) -> None:
    formula = _trial({}, [10e-6, 11e-6, 12e-6])
    near, clear = _trial({"block": 256}, [9e-6, 10.5e-6, 11e-6]), _trial({"block": 512}, [8e-6, 9e-6, 9.5e-6])
    assert not list(tune.winners([formula, near]))
    assert list(tune.winners([formula, near, clear])) == [(clear, formula)]
    assert sum("chosen" in line for line in tune.table([formula, near, clear])) == 1
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    monkeypatch.setattr(tune.machine, "ceilings", lambda _device: None)
    facts = {"name": "NVIDIA H200", "versions": {"triton": "3.7.1"}, "date": "2026-11-22"}
    monkeypatch.setattr(tune.machine, "describe", lambda *_: facts)
    path = tmp_path / "stored.json"
    assert tune.write([formula, clear], path) == 1
    (stored,) = choices.read(path)
    assert (stored.settings, stored.microseconds, stored.formula) == ({"block": 512}, 9.0, 11.0)
    assert (stored.capability, stored.device, stored.date) == ("9.0", "NVIDIA H200", "2026-11-22")
    assert tune.write([formula, near], path) == 0  # the formula has won the class back
    assert not choices.read(path)
    assert tune.write([formula, clear], path) == 1
    lost = dataclasses.replace(formula, entry=None, reason="OutOfMemoryError")
    assert tune.write([lost, clear], path) == 0  # nothing was compared: what is stored stays
    assert choices.read(path) == (stored,)


def test_the_comparison_knows_every_class_that_it_asks_for() -> None:
    names = {name for one in tuned.TUNED if one.operation == "cross_entropy" for name in one.shapes("full", 2)}
    assert names == {
        launch.shape_class(torch.empty(1, 1, size, dtype=torch.bfloat16, device="meta"), RULES)
        for size in operation.VOCABULARIES.values()
    }  # fmt: skip
