"""The comparison of kernels: what is asked, what is counted, who is timed and who is not."""

from __future__ import annotations

import dataclasses
import json
import math
from importlib import import_module

import pytest
import torch

from assay.benchmarks import __main__ as command
from assay.benchmarks import compare, counts, errors, facts, machine, measure, pages, tables
from assay.benchmarks.nouns import MODES, Arguments, Offer, Provider, Shape, from_json
from assay.benchmarks.operations._labels import IGNORED, labels, scored
from assay.benchmarks.providers import ours, plain

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
OPERATIONS = {name: import_module(f"assay.benchmarks.operations.{name}") for name in compare.operation_names()}


def _problem(name: str, **changes):
    shape = dataclasses.replace(next(iter(OPERATIONS[name].shapes("tiny"))), **changes)
    return OPERATIONS[name].problem(shape, CPU, torch.float32)


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_full_grid_has_what_was_asked_for(name: str) -> None:
    shapes = list(OPERATIONS[name].shapes("full"))
    assert len({shape.label for shape in shapes}) == len(shapes)
    if name == "rotary":
        assert {shape.layout for shape in shapes} == {"view", "packed", "dense"}
        assert {2048, 131072} <= {shape.tokens for shape in shapes}
    else:
        assert {0.0, 0.5, 0.9} <= {shape.masked for shape in shapes}
        assert {shape.mask for shape in shapes} >= {"random"}
        assert 1.0 in {shape.upstream for shape in shapes} != {1.0}
    if name == "cross_entropy":
        assert any(shape.settings["vocabulary"] % 128 for shape in shapes)


@pytest.mark.parametrize("name", OPERATIONS)
def test_plain_torch_is_as_near_the_truth_as_float32_allows(name: str) -> None:
    """The float64 truth of every operation against formulas that somebody else wrote down."""
    problem = _problem(name, tokens=48)
    call = plain.OFFERS[name].call(problem.shape)
    truth = problem.truth()
    outputs = call(problem.tensors)
    arguments = Arguments(tensors=problem.tensors, upstream=problem.upstream)
    grads = measure.gradients(outputs, arguments, problem, keep=False)
    got = dict(zip(problem.outputs, outputs, strict=True))
    got |= {f"grad:{name}": grad for name, grad in zip(problem.differentiable, grads, strict=True)}
    found = errors.errors(got, truth)
    assert set(found) == {*problem.outputs, *(f"grad:{name}" for name in problem.differentiable)}
    assert max(found.values()) < 1e-5, found


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_wrong_answer_is_far_from_the_truth(name: str) -> None:
    truth = _problem(name, tokens=16).truth()
    wrong = {key: value * 1.01 for key, value in truth.items()}
    assert min(errors.errors(wrong, truth).values()) == pytest.approx(0.01)
    poisoned = {key: torch.full_like(value, math.nan) for key, value in truth.items()}
    assert set(errors.errors(poisoned, truth).values()) == {math.inf}
    assert errors.errors({}, truth) == dict.fromkeys(truth, math.inf)


@pytest.mark.parametrize("mask", ["spans", "random"])
@pytest.mark.parametrize("masked", [0.0, 0.5, 0.9, 0.98])
def test_the_share_of_labels_is_exact(masked: float, mask: str) -> None:
    shape = Shape(model="m", tokens=4096, settings={}, masked=masked, mask=mask)
    made = labels(shape, 50, CPU)
    assert int((made != IGNORED).sum()) == scored(shape) == 4096 - int(masked * 4096)
    edges = int(((made == IGNORED).int().diff() != 0).sum())
    assert edges < 20 or mask == "random"


def test_floors_count_what_must_be_moved() -> None:
    settings = {"vocabulary": 1000}
    shape = Shape(model="m", tokens=100, settings=settings, masked=0.9)
    floors = OPERATIONS["cross_entropy"].floors(shape, 2)
    assert floors["forward"].bytes == 10 * 1000 * 2
    assert floors["both"].bytes == 10 * 1000 * 2 + 100 * 1000 * 2  # zeros are written too
    linear = OPERATIONS["linear_cross_entropy"].floors(
        Shape(model="m", tokens=100, settings={"width": 64, "vocabulary": 1000}, masked=0.5), 2
    )
    assert linear["both"].flops == 6 * 50 * 64 * 1000
    ceilings = machine.Ceilings(bandwidth=1e9, rate=1e12)
    assert ceilings.least(1000, 0) == pytest.approx(1.0)
    assert ceilings.least(1000, 10_000_000) == pytest.approx(10.0)


def test_what_a_call_consumes_is_restored() -> None:
    problem = _problem("cross_entropy")
    before = problem.tensors["logits"].detach().clone()

    def spoil(arguments):
        with torch.no_grad():
            arguments.tensors["logits"].zero_()

    run = measure.Run(spoil, measure.Sets(problem), ("logits",))
    run()
    assert not problem.tensors["logits"].any()
    run.restore()
    assert torch.equal(problem.tensors["logits"], before)


def test_nobody_is_timed_on_what_another_has_left() -> None:
    """Not even while all are made ready: the next one would keep gradients, to restore them before each call."""
    problem = _problem("cross_entropy")
    before = problem.tensors["logits"].detach().clone()

    def spoil(tensors):
        with torch.no_grad():
            tensors["logits"].zero_()
        return (tensors["logits"].sum(),)

    for mode in ("forward", "both"):
        entry = measure.ready("spoils", spoil, problem, mode, measure.Sets(problem), ("logits",))
        assert torch.equal(problem.tensors["logits"], before)
        for run in (entry.sample, entry.wall):
            run()
            assert torch.equal(problem.tensors["logits"], before)


def test_who_breaks_down_halfway_leaves_whole_arguments() -> None:
    """Else those after it are timed, and found wrong, on what it has overwritten."""
    problem = _problem("cross_entropy")
    before = problem.tensors["logits"].detach().clone()

    def spoil(tensors):
        with torch.no_grad():
            tensors["logits"].zero_()
        raise torch.OutOfMemoryError("no memory for the rest")

    sets, offer = measure.Sets(problem), Offer(function=spoil, arguments=(), form="", consumes=("logits",))
    for truth in (facts.Truth.of(problem), None):
        with pytest.raises(torch.OutOfMemoryError):
            facts.Facts.of(plain.PROVIDERS[0], offer, spoil, problem, sets, truth)
        assert torch.equal(problem.tensors["logits"], before)
    for mode in ("forward", "both"):
        with pytest.raises(torch.OutOfMemoryError):
            measure.ready("spoils", spoil, problem, mode, sets, offer.consumes)
        assert torch.equal(problem.tensors["logits"], before)


def test_copies_keep_their_layout() -> None:
    q = _problem("rotary", layout="packed").tensors["q"]
    copy = measure._like(q)
    assert copy.stride() == q.stride()
    assert torch.equal(copy, q)
    assert copy.untyped_storage().data_ptr() != q.untyped_storage().data_ptr()


def test_memory_counts_what_lives_at_once() -> None:
    def run():
        first = torch.ones(1 << 18)
        second = first + 1
        del first
        return second * 2

    assert 3 << 20 > counts.peak_memory(run, CPU) >= 2 << 20


def _double(logits, labels):
    return plain.cross_entropy(logits, labels) * 2


def _provider(function, **more) -> Provider:
    offer = Offer(function=function, arguments=("logits", "labels"), form="rows", **more)
    return Provider(name="other", packages=("torch",), offers={"cross_entropy": offer})


def test_who_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = dataclasses.replace(_provider(_double), name="absent", packages=("no-such-package",))
    elsewhere = dataclasses.replace(_provider(_double, devices=("cuda",)), name="elsewhere")
    monkeypatch.setattr(compare, "all_providers", lambda: (_provider(_double), absent, elsewhere, *plain.PROVIDERS))
    found = compare.compare("tiny", only=["cross_entropy"], say=lambda _line: None)
    said = {item.provider: item.reason for item in found.absences}
    assert "not timed, its audit is not green" in said["other"]
    assert said["absent"] == "not installed: no-such-package"
    assert "does not run on" in said["elsewhere"]
    assert "where there is nothing to do" in said["torch"]
    assert "largest error, inf" in said["torch"]  # NaN where no label is scored
    assert {row.provider for row in found.rows} == {"torch"}
    assert {row.mode for row in found.rows} == set(MODES)
    assert all(row.errors["loss"] < 1e-5 and row.memory > 0 and row.samples >= 5 for row in found.rows)


def _fails(logits, labels):
    if logits.shape[-1] == 331:
        raise RuntimeError("out of luck")
    return plain.cross_entropy(logits, labels)


def test_who_fails_on_a_shape_is_named_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "all_providers", lambda: (_provider(_fails),))
    found = compare.compare("tiny", only=["cross_entropy"], say=lambda _line: None)
    assert not found.rows
    assert any(item.shape.startswith("tiny, 7") and "out of luck" in item.reason for item in found.absences)


def test_a_run_becomes_a_page(monkeypatch: pytest.MonkeyPatch, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ours under the interpreter beside plain torch: what a GPU's run goes through."""
    monkeypatch.setattr(compare, "all_providers", lambda: (*plain.PROVIDERS, *ours.PROVIDERS[:2]))
    code = command.main(["--grid", "tiny", "--operation", "masked_regression", "--out", str(tmp_path)])
    assert code == 0
    found = from_json(json.loads((tmp_path / "comparison.json").read_text()))
    names = {row.provider for row in found.rows}
    assert names == ({"torch", "assay", "assay, in place"} if machine.place() == "interpreter" else {"torch"})
    assert all(max(row.errors.values()) < 1e-5 for row in found.rows)
    page = (tmp_path / "comparison.md").read_text()
    assert "## Masked regression" in page
    assert "| torch " in page
    assert ("rehearsal" in page) == (machine.place() == "interpreter")
    assert "TB/s" in capsys.readouterr().out


def test_mistaken_names_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--provider", "nobody"])
    assert "expected some of" in capsys.readouterr().err
    with pytest.raises(ValueError, match="schema: expected 1, got 7"):
        from_json({"schema": 7})


def test_the_published_page_is_that_of_the_stored_runs() -> None:
    """Text alone: pictures differ between releases of matplotlib."""
    stored = [from_json(json.loads(path.read_text())) for path in pages.RESULTS.glob("*.json")]
    page = pages.PAGE.read_text()
    for run in stored:
        assert "\n".join(tables.machine_lines(run)) in page
        assert all(line in page for name in tables.TITLES for line in tables.tables(run, name))
    assert not any(run.rehearsal for run in stored)
