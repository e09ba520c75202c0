"""The A/B comparison: what two trainings share, what a patch may do, and the page and plot that follow from numbers."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch

from assay.audits.ab import __main__ as command
from assay.audits.ab import arms, page, plot, train
from assay.audits.ab.comparison import Arm, Comparison, compare, dump, load
from assay.audits.ab.train import Run, Settings

SMALL = Settings(steps=3, rows=2, per_row=3, exam=1)
PATCHES = """
import torch

def rotary_off():
    from transformers.models.qwen3_vl import modeling_qwen3_vl as theirs
    theirs.apply_rotary_pos_emb = lambda q, k, cos, sin, **_: (q, k)

def doubled(model):
    with torch.no_grad():
        model.lm_head.weight.mul_(2)

def mute(batch):
    return {name: value for name, value in batch.items() if name != "labels"}

def late(batch, *_, **__):
    batch["labels"] = batch["labels"].roll(1, -1)
    return batch

def nothing(batch):
    return None

def two(batch, more):
    return batch
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """An importable module of patches."""
    (tmp_path / "ab_patches.py").write_text(PATCHES)
    monkeypatch.syspath_prepend(tmp_path)
    yield "ab_patches"
    sys.modules.pop("ab_patches", None)


def _run(seed: int, refs: tuple[str, str], level: float) -> Run:
    steps = range(60)
    return Run(
        seed=seed,
        loss=tuple(6.0 / (step + 1) + (1 - level) for step in steps),
        accuracy=tuple(min(level, step / 40) for step in steps),
        exams=dict.fromkeys(refs, (level, level, level, 1.0)),
        weights=f"w{seed}",
        data=f"d{seed}",
        seconds=1.0,
    )


def _comparison(a: str = arms.TRUE, b: str = arms.COPIED, *, equal: bool = False) -> Comparison:
    """Made-up numbers of two seeds."""
    sides = [
        Arm(ref=ref, about=f"{ref} <does> this.", runs=tuple(_run(seed, (a, b), level + seed / 20) for seed in (0, 1)))
        for ref, level in ((a, 0.9), (b, 0.9 if equal else 0.6))
    ]
    return Comparison(
        settings=Settings(steps=60),
        seeds=(0, 1),
        a=sides[0],
        b=sides[1],
        questions=("row", "column", "left", "above"),
        order_alone=(0.6, 0.7, 0.8, 1.0),
        one_answer=(0.3, 0.3, 0.5, 0.5),
        steepest={"time": 1.0, "height": 0.4, "width": 0.1},
        environment={"python": "3", "cores": "2"},
    )


def test_a_run_follows_from_its_seed() -> None:
    one, again = (train.train(SMALL, arms.TRUE, 0) for _ in range(2))
    assert dataclasses.replace(one, seconds=0) == dataclasses.replace(again, seconds=0)
    assert len(one.loss) == len(one.accuracy) == 3
    other = train.train(SMALL, arms.TRUE, 1)
    assert other.weights != one.weights
    assert other.data != one.data
    assert other.loss != one.loss


def test_both_sides_start_alike_and_only_the_patch_parts_them() -> None:
    a, b = (train.train(SMALL, ref, 0, also) for ref, also in ((arms.TRUE, arms.COPIED), (arms.COPIED, arms.TRUE)))
    assert (a.weights, a.data) == (b.weights, b.data)
    assert a.loss[0] != b.loss[0]
    assert set(a.exams) == set(b.exams) == {arms.TRUE, arms.COPIED}


def test_training_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    train.train(SMALL, arms.COPIED, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_loss_falls() -> None:
    """Far in thirty steps: what is left is to tell places."""
    loss = train.train(dataclasses.replace(SMALL, steps=30), arms.TRUE, 0).loss
    assert loss[-1] < loss[0] / 2


def test_a_patch_of_the_model_is_in_its_training(mine) -> None:
    plain, patched = train.train(SMALL, arms.TRUE, 0), train.train(SMALL, f"{mine}:doubled", 0, arms.TRUE)
    assert patched.data == plain.data
    assert patched.weights != plain.weights
    assert patched.loss != plain.loss
    assert set(patched.exams) == {f"{mine}:doubled"}, "the model cannot be asked without it"


def test_a_patch_may_change_the_batch_it_is_given_and_not_what_is_right(mine) -> None:
    plain, patched = train.train(SMALL, arms.TRUE, 0), train.train(SMALL, f"{mine}:late", 0)
    assert patched.accuracy[0] == plain.accuracy[0]
    assert patched.loss[0] != plain.loss[0]
    assert patched.data == plain.data


@pytest.mark.parametrize(
    ("name", "message"),
    [("mute", "returned no loss"), ("nothing", "expected the batch back, a dictionary, got NoneType"),
     ("two", "expected no required parameter or one"), ("torch", "expected a function, got module")],
)  # fmt: skip
def test_a_patch_that_cannot_be_used_is_told(mine, name: str, message: str) -> None:
    with pytest.raises((TypeError, RuntimeError), match=message):
        train.train(SMALL, f"{mine}:{name}", 0)


def test_a_patch_of_code_stays_on_its_side(mine) -> None:
    """Each side in a process of its own; here the real thing, with two of them."""
    found = compare(SMALL, arms.TRUE, f"{mine}:rotary_off", (0,), processes=2)
    assert found.same_start
    assert found.a.runs[0].loss == train.train(SMALL, arms.TRUE, 0).loss
    assert found.a.runs[0].loss != found.b.runs[0].loss
    assert not found.never_differed
    assert load(dump(found)) == found
    assert {"torch", "transformers", "cores"} <= set(found.environment)


@pytest.mark.parametrize("field", ["steps", "rows", "exam"])
def test_sizes_below_one_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}: expected more than 0, got 0"):
        Settings(**{field: 0})


def test_the_rate_rises_and_falls() -> None:
    settings = Settings(steps=100, warmup=10)
    rates = [settings.rate_at(step) for step in range(100)]
    assert rates.index(max(rates)) == 9
    assert rates[-1] == pytest.approx(settings.rate / 20)


def test_results_are_read_as_they_were_written() -> None:
    text = dump(_comparison())
    assert load(text) == _comparison()
    assert all(len(json.loads(line.partition(": ")[2].rstrip(","))) == 60
               for line in text.splitlines() if line.strip().startswith('"loss"'))  # fmt: skip
    with pytest.raises(ValueError, match="not the results of an A/B comparison"):
        load("{}")


def test_the_plot_has_a_line_for_each_seed_and_stays_in_its_frame() -> None:
    root = ET.fromstring(plot.render(_comparison()))
    lines = [item for item in root.iter() if item.tag.endswith("polyline")]
    assert len(lines) == 2 * 2 * (2 + 1)
    for line in lines:
        points = [tuple(map(float, point.split(","))) for point in line.get("points", "").split()]
        assert len(points) == 30
        assert all(0 < x < plot.WIDTH and 80 <= y <= 330 for x, y in points)
    text = " ".join(item.text or "" for item in root.iter())
    assert "true positions" in text
    assert "77.5%" in text


def test_a_side_without_logits_has_no_accuracies_to_draw() -> None:
    """Forwards that never store logits, as with a fused loss."""
    one = _comparison()
    runs = tuple(dataclasses.replace(run, accuracy=(None,) * 60) for run in one.b.runs)
    root = ET.fromstring(plot.render(dataclasses.replace(one, b=dataclasses.replace(one.b, runs=runs))))
    assert len([item for item in root.iter() if item.tag.endswith("polyline")]) == 2 * 2 * 3 - 3


def test_a_curve_is_the_mean_of_its_stretches() -> None:
    assert plot.curve([1.0, 3.0, 5.0, 7.0, 9.0], points=2) == ((1.5, 3.0), (4.0, 8.0))
    assert plot.mean([((1.0, 2.0),), ((1.0, 4.0),)]) == ((1.0, 3.0),)


def test_the_page_says_the_numbers() -> None:
    text = page.render([_comparison()], "stem")
    assert text.startswith("# What 3-D positions are worth\n")
    assert "94.4% of unseen questions are answered rightly with true positions, 71.9% with copied positions" in text
    assert "| row | 92.5% (90.0% to 95.0%) | 62.5% (60.0% to 65.0%) | +30.0 (+30.0 to +30.0) | 60.0% | 30.0% |" in text
    assert "seed by seed: confirmed" in text
    assert "equal at every step" not in text


def test_the_page_of_other_patches_claims_nothing_about_positions() -> None:
    text = page.render([_comparison("a.b:c", "d.e:f")], "ab")
    assert text.startswith("# An A/B training comparison\n")
    assert "nox -s ab -- --a a.b:c --b d.e:f" in text
    for word in ("NeMo", "video"):
        assert word not in text


def test_patches_without_effect_and_unequal_starts_are_told() -> None:
    one = _comparison(equal=True)
    assert "equal at every step: the patches had the same effect, or none" in page.render([one], "ab")
    moved = dataclasses.replace(one.b, runs=tuple(dataclasses.replace(run, weights="x") for run in one.b.runs))
    text = page.render([dataclasses.replace(one, b=moved)], "ab")
    assert "Initial weights or data differ" in text
    assert "not so here" in text


def test_the_committed_page_and_plots_are_those_of_the_committed_numbers() -> None:
    """``python -m assay.audits.ab --render docs/what-3d-positions-are-worth.*.json`` writes them again."""
    paths = [command.DOCS / f"{command.OWN}.{family}.json" for family in command.OWN_FAMILIES]
    found = [load(path.read_text(encoding="utf-8")) for path in paths]
    for name, text in command.files(found, command.OWN).items():
        assert (command.DOCS / name).read_text(encoding="utf-8") == text, name
    for one in found:
        assert one.same_start
        assert len(one.seeds) >= 3
        assert one.settings == Settings(family=one.settings.family), "not a plain run"


def test_results_are_drawn_again_without_training(tmp_path: Path, capsys) -> None:
    command.write([_comparison("a.b:c", "d.e:f")], tmp_path, "ab")
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(made) == {"ab.md", "ab.qwen3_vl.json", "ab.qwen3_vl.svg"}
    assert command.main(["--render", str(tmp_path / "ab.qwen3_vl.json"), "--out", str(tmp_path / "again")]) == 0
    assert {path.name: path.read_text() for path in (tmp_path / "again").iterdir()} == made
    assert capsys.readouterr().out.strip().endswith("again/ab.md")


def test_a_plain_run_alone_writes_the_projects_page() -> None:
    parse = command._parser().parse_args
    assert command._folder(parse([])) == command._folder(parse(["--processes", "1"])) == command.DOCS
    for more in (["--steps", "9"], ["--seeds", "2"], ["--family", "qwen2_vl"], ["--b", "a.b:c"]):
        assert command._folder(parse(more)) == "ab-report"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--seeds", "0"], "--seeds: expected at least 1"), (["--steps", "0"], "steps: expected more than 0"),
     (["--b", "no_such_module:f"], "No module named"), (["--b", "assay.audits.ab.arms"], "expected package.module"),
     (["--render", "/nowhere.json"], "No such file")],
)  # fmt: skip
def test_bad_usage_is_told_before_anything_is_trained(arguments: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit) as left:
        command.main(arguments)
    assert left.value.code == 2
    assert re.search(re.escape(message), capsys.readouterr().err)
