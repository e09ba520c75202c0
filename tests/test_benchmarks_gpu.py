"""The comparison as a GPU runs it, on one that is pretended: devices, streams, graphs, too little memory, the end."""

from __future__ import annotations

import dataclasses
import json
from importlib import import_module

import pretended_gpu
import pytest
import torch

from assay.benchmarks import __main__ as command
from assay.benchmarks import admission, budget, compare, counts, facts, graphs, machine, measure, tune, tuned
from assay.benchmarks.nouns import Offer, Provider, Shape, from_json
from assay.benchmarks.providers import ours, plain, quack

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.skipif(torch.cuda.is_available(), reason="a real one")]

SIZES = {"COPY": 1 << 12, "SIDE": 16, "WARM": 0.0, "REPEATS": 2}
H200 = machine.Ceilings(bandwidth=4.3e12, rate=790e12)


@pytest.fixture
def gpu(monkeypatch):
    for name, value in SIZES.items():
        monkeypatch.setattr(machine, name, value)
    monkeypatch.setattr(graphs, "FLUSHED", 1 << 14)
    monkeypatch.setitem(measure.WARM, "cuda", 0.0)
    monkeypatch.setitem(measure.SAMPLES, "cuda", 2)
    monkeypatch.setattr(measure, "FEWEST", 2)
    monkeypatch.setattr(measure, "MOST_SETS", 2)
    monkeypatch.setattr(counts, "launches_and_waits", lambda _run: (None, None))
    with pretended_gpu.pretended(monkeypatch) as record:
        yield record
    graphs._other_memory.cache_clear()


@pytest.fixture
def unjudged(monkeypatch):
    monkeypatch.setattr(compare, "red", lambda *_asked: ("", ""))


def _provider(name, function, **more) -> Provider:
    offer = Offer(function=function, arguments=("logits", "labels"), form="rows", **more)
    return Provider(name=name, packages=("torch",), offers={"cross_entropy": offer})


def _waiting(logits, labels):
    assert int((labels != -100).sum()) > 0
    return plain.cross_entropy(logits, labels)


def _run(monkeypatch, *providers, operation="cross_entropy", keep=lambda _found: None):
    monkeypatch.setattr(compare, "all_providers", lambda: providers)
    return compare.compare("tiny", only=[operation], say=lambda _line: None, keep=keep)


@pytest.mark.parametrize("name", compare.operation_names())
def test_what_is_judged_on_a_gpu_is_judged_there(gpu, name: str) -> None:
    """No law, reference or case mixes what is on the device with what is not: else nobody would be timed."""
    own = plain.PROVIDERS[0]
    assert admission.red(name, own, dataclasses.replace(own.offers[name], cases=3)) == ("", "")


def _picky(hidden, head, labels):
    rows, targets = quack._eights(hidden, head, labels)
    assert len(rows) % 8 == head.shape[0] % 8 == head.shape[1] % 8 == 0
    return plain.linear_cross_entropy(rows, head, targets)


def test_who_takes_multiples_of_eight_alone_is_judged_on_those() -> None:
    """QuACK's demands: rows are padded with such as are not scored, other sizes are not its own."""
    name = "linear_cross_entropy"
    base = quack.PROVIDERS[0]
    offer = dataclasses.replace(base.offers[name], function=_picky, devices=("cpu", "interpreter"))
    assert admission.red(name, base, dataclasses.replace(offer, cases=4))[0] == ""
    reason, _ = admission.red(name, base, dataclasses.replace(offer, cases=4, asked=()))
    assert "it took no case on which these could be asked: returns, parity" in reason


@pytest.mark.parametrize("name", compare.operation_names())
def test_problems_and_plain_torch_live_on_the_device(gpu, unjudged, monkeypatch, name: str) -> None:
    operation = import_module(f"assay.benchmarks.operations.{name}")
    last = list(operation.shapes("tiny"))[-1:]
    monkeypatch.setattr(operation, "shapes", lambda _grid: last)
    found = _run(monkeypatch, *plain.PROVIDERS, operation=name)
    assert {row.mode for row in found.rows} == {"forward", "backward", "both"}
    assert {row.how for row in found.rows} == {"graph"}
    assert all(0 < max(row.errors.values()) < 0.02 for row in found.rows)
    assert not found.absences


@pytest.mark.skipif(machine.place() != "interpreter", reason="kernels need an interpreter here")
def test_our_kernels_are_captured_and_those_that_overwrite_are_restored(gpu, unjudged, monkeypatch) -> None:
    found = _run(monkeypatch, *ours.PROVIDERS[:2], operation="masked_regression")
    assert {row.provider for row in found.rows} == {"assay", "assay, in place"}
    assert {row.how for row in found.rows} == {"graph"}
    assert all(max(row.errors.values()) < 0.02 for row in found.rows)
    assert found.machine["multiprocessors"] == 132


def test_who_waits_for_the_device_is_timed_by_events(gpu, unjudged, monkeypatch) -> None:
    found = _run(monkeypatch, _provider("waits", _waiting), *plain.PROVIDERS)
    how = {(row.provider, row.mode): row.how for row in found.rows}
    assert how["waits", "both"] == how["waits", "forward"] == "events"
    assert how["waits", "backward"] == how["torch", "both"] == "graph"
    assert gpu.count("begin") == gpu.count("end")


def test_who_is_seen_to_wait_is_not_captured(gpu, unjudged, monkeypatch) -> None:
    """A capture that fails costs torch's allocator its wits."""
    monkeypatch.setattr(counts, "launches_and_waits", lambda _run: (3, 1))
    found = _run(monkeypatch, *plain.PROVIDERS)
    assert {row.how for row in found.rows} == {"events"}
    assert {(row.launches, row.waits) for row in found.rows} == {(3, 1)}
    assert "begin" not in gpu


def test_calls_are_told_from_what_the_profiler_calls(monkeypatch) -> None:
    own = ("aten::mul", "cudaLaunchKernel", "cuLaunchKernelEx", "cudaStreamSynchronize", "cudaDeviceSynchronize")
    monkeypatch.setattr(counts, "_of_the_profiler", lambda: ("cudaDeviceSynchronize",))
    monkeypatch.setattr(counts, "_calls", lambda _run: own)
    assert counts.launches_and_waits(lambda: None) == (2, 1)
    monkeypatch.setattr(counts, "_calls", lambda _run: ("aten::mul",))
    monkeypatch.setattr(counts, "_of_the_profiler", lambda: ())
    with pytest.raises(RuntimeError, match="sees no call"):
        counts.launches_and_waits(lambda: None)


def test_who_has_no_memory_beside_the_others_is_timed_after_them(gpu, unjudged, monkeypatch) -> None:
    ready, alive = measure.ready, []

    def crowded(name, *rest):
        if name == "large" and "torch" in alive:
            alive.clear()
            raise torch.OutOfMemoryError("no memory")
        alive.append(name)
        return ready(name, *rest)

    monkeypatch.setattr(measure, "ready", crowded)
    found = _run(monkeypatch, *plain.PROVIDERS, _provider("large", plain.cross_entropy))
    assert {(row.provider, row.mode) for row in found.rows} == {
        (name, mode) for name in ("torch", "large") for mode in ("forward", "backward", "both")
    }
    assert not found.absences


def test_who_never_has_the_memory_is_named(gpu, unjudged, monkeypatch) -> None:
    def full(*_tensors):
        raise torch.OutOfMemoryError("CUDA out of memory")

    found = _run(monkeypatch, _provider("full", full), *plain.PROVIDERS)
    assert {row.provider for row in found.rows} == {"torch"}
    assert all("out of memory" in item.reason for item in found.absences if item.provider == "full")


def test_who_fails_while_it_is_timed_stops_nobody(gpu, unjudged, monkeypatch) -> None:
    calls = [0]

    def tires(logits, labels):
        calls[0] += 1
        if calls[0] > 9:
            raise RuntimeError("tired")
        return plain.cross_entropy(logits, labels)

    found = _run(monkeypatch, _provider("tires", tires), *plain.PROVIDERS)
    assert any("tired" in item.reason for item in found.absences)
    assert len([row for row in found.rows if row.provider == "torch"]) == 6
    assert not found.cut


def test_no_memory_for_a_graph_leaves_whole_arguments(gpu, monkeypatch) -> None:
    """Warming up has overwritten them by then."""
    operation = import_module("assay.benchmarks.operations.cross_entropy")
    problem = operation.problem(next(iter(operation.shapes("tiny"))), torch.device("cuda"), torch.bfloat16)
    sets = measure.Sets(problem)
    before = [each.tensors["logits"].detach().clone() for each in sets.all]

    def spoil(tensors):
        with torch.no_grad():
            tensors["logits"].zero_()
        return (tensors["logits"].sum(),)

    def full(*_asked):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(graphs, "captured", full)
    with pytest.raises(torch.OutOfMemoryError):
        measure.ready("spoils", spoil, problem, "forward", sets, ("logits",))
    for each, whole in zip(sets.all, before, strict=True):
        assert bool((each.tensors["logits"] == whole).all())


def test_the_first_call_is_over_before_the_second_is_clocked(gpu, monkeypatch) -> None:
    """Who takes long is left out by that time: a call must not be charged with the one before."""
    now, running = [0.0], [0]

    def synchronize(_device=None):
        now[0] += running[0]
        running[0] = 0

    def slow(tensors):
        running[0] += 1
        return (plain.cross_entropy(tensors["logits"], tensors["labels"]),)

    operation = import_module("assay.benchmarks.operations.cross_entropy")
    problem = operation.problem(next(iter(operation.shapes("tiny"))), torch.device("cuda"), torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(facts.time, "perf_counter", lambda: now[0])
    own = plain.PROVIDERS[0]
    found = facts.Facts.of(own, own.offers["cross_entropy"], slow, problem, measure.Sets(problem), None)
    assert found.seconds == 1.0


@pytest.mark.skipif(machine.place() != "interpreter", reason="kernels need an interpreter here")
def test_tuning_replays_graphs_and_holds_no_memory(gpu, monkeypatch) -> None:
    """On a stream that can be captured; a setting that fails while it is timed is named and not a winner."""
    (own,) = (one for one in tuned.TUNED if one.kernel == "cross_entropy.fused")
    own = dataclasses.replace(own, tried=({"block": 256}, {"form": "one read", "block": 256}))
    (name, shape), *_ = own.shapes("tiny", 2).items()
    real = tune._under

    def breaks(kernel, settings, run):
        return real(kernel, settings, run) if settings.get("form") or not settings else lambda: 1 / 0

    monkeypatch.setattr(tune, "_under", breaks)
    formula, failed, shared = found = tune.trials(own, name, shape, rehearsal=False)
    assert formula.entry.how == shared.entry.how == "graph"
    assert len(formula.entry.seconds) == len(shared.entry.seconds) == 2
    assert (failed.entry, failed.reason) == (None, "ZeroDivisionError: division by zero")
    assert len(list(tune.table(found))) == 5
    with pytest.raises(RuntimeError, match="have been taken"):
        shared.entry.sample()


def test_a_lost_device_ends_the_run_and_what_was_measured_stays(gpu, unjudged, monkeypatch, tmp_path, capsys) -> None:
    lost = [False]

    def spoils(logits, labels):
        if float((labels == -100).sum()):
            lost[0] = True
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return plain.cross_entropy(logits, labels)

    def synchronize(_device=None):
        if lost[0]:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(compare, "all_providers", lambda: (*plain.PROVIDERS, _provider("spoils", spoils)))
    code = command.main(["--grid", "tiny", "--operation", "cross_entropy", "--out", str(tmp_path)])
    found = from_json(json.loads((tmp_path / "comparison.json").read_text()))
    assert code == 1
    assert "the device was lost with spoils" in found.cut
    assert {row.masked for row in found.rows} == {0.0}
    assert "Not the whole run" in (tmp_path / "comparison.md").read_text()
    assert "estimated: cross_entropy, 2 shapes, 2 providers" in capsys.readouterr().out


def test_an_interrupted_run_keeps_its_numbers(unjudged, monkeypatch, tmp_path) -> None:
    """On a CPU: it is the same there."""
    problem = import_module("assay.benchmarks.operations.cross_entropy").problem

    def interrupted(shape: Shape, *rest):
        if shape.masked:
            raise KeyboardInterrupt
        return problem(shape, *rest)

    monkeypatch.setattr("assay.benchmarks.operations.cross_entropy.problem", interrupted)
    monkeypatch.setattr(compare, "all_providers", lambda: plain.PROVIDERS)
    code = command.main(["--grid", "tiny", "--operation", "cross_entropy", "--out", str(tmp_path)])
    found = from_json(json.loads((tmp_path / "comparison.json").read_text()))
    assert code == command.INTERRUPTED
    assert found.cut == "it was interrupted"
    assert len(found.rows) == 3


FIRST = {"rotary": 20, "cross_entropy": 10, "linear_cross_entropy": 9, "masked_regression": 5}
"""The shapes by which every target can be judged come first."""


@pytest.mark.parametrize("name", compare.operation_names())
def test_what_matters_is_estimated_to_fit_into_the_time(name: str) -> None:
    """With every provider there is, at an H200's ceilings as they were measured elsewhere."""
    offers = [provider.offers[name] for provider in compare.all_providers() if name in provider.offers]
    operation = import_module(f"assay.benchmarks.operations.{name}")
    shapes = list(operation.shapes("full"))
    took = sum(budget.of_shape(operation, shape, offers, H200, 2) for shape in shapes[: FIRST[name]])
    assert budget.AUDIT * len(offers) + took < command.SECONDS * budget.SHARES[name]
    assert command.SECONDS + command.GRACE < 480
    [*_, last] = budget.lines("full", [name], {name: offers}, H200)
    assert "together" in last


def test_no_time_is_said_and_the_next_operation_gets_what_is_left(monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr(budget.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(budget, "SHARES", {"one": 0.4, "other": 0.5, "third": 0.1})
    shares = budget.Shares(["one", "other"], 90.0)
    first = shares.next()
    assert first.deadline == pytest.approx(140.0)
    assert first.fits(1000.0)  # nothing is known yet
    first.begin()
    now[0] += 30.0
    first.end(10.0)
    assert first.fits(3.0)
    assert not first.fits(4.0)
    assert shares.next().deadline == pytest.approx(190.0)
