"""``python -m assay.benchmarks.tune``: try a handful of tile sizes per kernel and class of shapes, on the GPU at hand.

Each is checked against the formula's result first, and timed beside it by the comparison's own method. ``--write``
stores what was clearly faster where the launch code reads it (`kernels/choices.json`). Without a GPU nothing can be
timed: status 3; ``--rehearse`` then runs everything once on tiny shapes and stores nothing. ``--predict`` asks the
compiler and the model of ``docs/kernels.md`` alone.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from assay.audits.compile import OfflineError
from assay.audits.laws import limits
from assay.benchmarks import errors, graphs, machine, measure
from assay.benchmarks.measure import Timed
from assay.benchmarks.nouns import Arguments, Problem, Shape
from assay.benchmarks.offline import load
from assay.benchmarks.predict import CHIPS, predict
from assay.benchmarks.tuned import TUNED, Settings, Tuned
from assay.kernels import choices

NO_GPU = 3
"""The exit status where nothing can be timed."""
PREDICTED = 90
"""The chip whose ceiling the model knows."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting of one kernel on one shape; without an `entry` it was not timed, and `reason` says why."""

    tuned: Tuned
    shape_class: str
    settings: Settings
    prediction: str
    entry: Timed | None = None
    reason: str = ""

    @property
    def told(self) -> str:
        """The settings in a few words."""
        return ", ".join(f"{name} {value}" for name, value in self.settings.items()) or "formula"


def trials(tuned: Tuned, name: str, shape: Shape, *, rehearsal: bool) -> list[Trial]:
    """The formula and what is tried beside it, checked, and timed in turns."""
    device = torch.device("cuda" if machine.place() == "cuda" else "cpu")
    with graphs.own_stream(device):
        problem = tuned.problem(shape, device, machine.dtype_on(device))
        sets, pool = measure.Sets(problem), graphs.pool(device)
        truth = _answers(tuned, problem, sets, {})
        found = [_ready(tuned, name, problem, sets, settings, truth, pool) for settings in ({}, *tuned.tried)]
        entries = [trial.entry for trial in found if trial.entry]
        if rehearsal:
            for entry in entries:
                entry.seconds.append(entry.sample())
        else:
            measure.interleaved(entries, device.type)
    return [_done(trial) for trial in found]


def _done(trial: Trial) -> Trial:
    """With what it was found to take; what it was called with may go, or all shapes would be in memory at the end."""
    if trial.entry is None:
        return trial
    trial.entry.sample = trial.entry.wall = _over
    return replace(trial, entry=None, reason=_told(trial.entry.failed)) if trial.entry.failed else trial


def _over() -> float:
    raise RuntimeError("its samples have been taken")


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]


def _answers(tuned: Tuned, problem: Problem, sets: measure.Sets, settings: Settings) -> dict[str, torch.Tensor]:
    """Outputs and gradients under some settings."""
    run = measure.Run(lambda arguments: _both(tuned, problem, arguments), sets, tuned.consumes)
    with choices.forced(tuned.kernel, settings):
        found: dict[str, torch.Tensor] = run()
    run.restore_all()
    return found


def _both(tuned: Tuned, problem: Problem, arguments: Arguments) -> dict[str, torch.Tensor]:
    out = tuned.offer.call(problem.shape)(arguments.tensors)
    kept = [x.detach().clone() for x in out]
    grads = measure.gradients(out, arguments, problem, keep=False)
    names = (*problem.outputs, *(f"grad:{name}" for name in problem.differentiable))
    return dict(zip(names, (*kept, *(grad.clone() for grad in grads)), strict=True))


def _ready(
    tuned: Tuned, name: str, problem: Problem, sets: measure.Sets, settings: Settings, truth: dict[str, torch.Tensor],
    pool: graphs.Pool,
) -> Trial:  # fmt: skip
    """A setting made ready to be timed, if it gives what the formula gives."""
    told = functools.partial(
        Trial, tuned=tuned, shape_class=name, settings=settings, prediction=prediction(tuned, problem.shape, settings)
    )
    try:
        if reason := _differs(_answers(tuned, problem, sets, settings), truth):
            return told(reason=reason)
        with choices.forced(tuned.kernel, settings):
            call = tuned.offer.call(problem.shape)
            entry = measure.ready(tuned.kernel, call, problem, tuned.mode, sets, tuned.consumes, pool)
    except Exception as error:  # noqa: BLE001 - sizes that a compiler or a driver refuses are a result too
        return told(reason=_told(error))
    entry.sample = _under(tuned.kernel, settings, entry.sample)  # what no graph could hold launches anew
    entry.wall = _under(tuned.kernel, settings, entry.wall)
    return told(entry=entry)


def _under(kernel: str, settings: Settings, run: Callable[[], float]) -> Callable[[], float]:
    def under() -> float:
        with choices.forced(kernel, settings):
            return run()

    return under


def _differs(got: Mapping[str, torch.Tensor], truth: Mapping[str, torch.Tensor]) -> str:
    """Why a result is not the formula's; both may round each number once, and add in other orders."""
    for name, distance in errors.errors(got, truth).items():
        most = limits.ULPS * torch.finfo(truth[name].dtype).eps
        if not distance <= most:
            return f"wrong: {name} is {distance:.2g} from the formula's, at most {most:.2g}"
    return ""


def prediction(tuned: Tuned, shape: Shape, settings: Settings) -> str:
    """The share of the ceiling that the model expects of sm_90, as ``docs/kernels.md`` has it; empty if unknown."""
    try:
        family = load(tuned.operation)
        job = tuned.job(shape, settings, PREDICTED)
        with choices.forced(tuned.kernel, settings):
            report = family.compile_one(*job)
            found = predict(report, family.work(job), CHIPS[PREDICTED])
    except (OfflineError, KeyError, ValueError, AssertionError):
        return ""  # an interpreting Triton, a shape that is in no report, a kernel with other loops
    spilled = f", {report.stack} bytes of stack" if report.spilled else ""
    return f"{found.low:.0%} to {found.high:.0%}, {report.registers} registers{spilled}" if found else ""


def predicted(tuned: Tuned, name: str, shape: Shape) -> list[Trial]:
    """The formula and what is tried beside it, compiled and not run."""
    return [
        Trial(tuned=tuned, shape_class=name, settings=settings, prediction=prediction(tuned, shape, settings))
        for settings in ({}, *tuned.tried)
    ]


def winners(found: Sequence[Trial]) -> Iterator[tuple[Trial, Trial]]:
    """(winner, formula) of each kernel and class where one is faster beyond the spread of both."""
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial in found:
        groups.setdefault((trial.tuned.kernel, trial.shape_class), []).append(trial)
    for formula, *others in groups.values():
        timed = [trial for trial in others if trial.entry]
        best = min(timed, key=_median, default=None)
        if best and best.entry and formula.entry and best.entry.quantile(0.8) < formula.entry.quantile(0.2):
            yield best, formula


def _median(trial: Trial) -> float:
    assert trial.entry is not None
    return trial.entry.median


def table(found: Sequence[Trial]) -> Iterator[str]:
    """One line for each setting."""
    best = {id(winner) for winner, _ in winners(found)}
    yield "| kernel | shapes | settings | *predicted*, H200 | measured µs (20 % to 80 %) | |"
    yield "|---|---|---|---|--:|---|"
    for trial in found:
        measured = ""
        if trial.entry and trial.entry.seconds:
            low, high = trial.entry.quantile(0.2), trial.entry.quantile(0.8)
            measured = f"{trial.entry.median:,.1f} ({low:,.1f} to {high:,.1f})"
        note = trial.reason or ("chosen" if id(trial) in best else "")
        cells = (trial.tuned.kernel, trial.shape_class, trial.told, trial.prediction, measured, note)
        yield f"| {' | '.join(cells)} |"


def write(found: Sequence[Trial], path: Path) -> int:
    """Store the winners, and drop what is stored of classes that the formula has won back; how many were stored."""
    device = torch.device("cuda")
    major, minor = torch.cuda.get_device_capability(device)
    facts = machine.describe(device, machine.ceilings(device))
    asked = {
        (trial.tuned.kernel, f"{major}.{minor}", trial.shape_class)
        for trial in found if trial.entry and not trial.settings
    }  # fmt: skip
    before = choices.read(path) if path.exists() else ()
    kept = [each for each in before if (each.kernel, each.capability, each.shape) not in asked]
    new = [
        choices.Choice(
            kernel=best.tuned.kernel, capability=f"{major}.{minor}", shape=best.shape_class, settings=best.settings,
            device=facts["name"], versions=facts["versions"], date=facts["date"],
            microseconds=round(_median(best), 2), formula=round(_median(formula), 2),
        ) for best, formula in winners(found)
    ]  # fmt: skip
    lines = ",\n".join(f"  {json.dumps(asdict(each))}" for each in (*kept, *new))
    path.write_text(f'{{\n "schema": {choices.SCHEMA},\n "entries": [\n{lines}\n ]\n}}\n')
    choices.forget()
    choices.read(path)
    return len(new)


def main(arguments: list[str] | None = None) -> int:
    """Try, print, and store on request."""
    parser = argparse.ArgumentParser(prog="python -m assay.benchmarks.tune", description=__doc__)
    parser.add_argument("--operation", action="append", default=[], choices=sorted({t.operation for t in TUNED}))
    parser.add_argument("--write", action="store_true", help="store what was clearly faster")
    parser.add_argument("--out", type=Path, help="the file to store it in, instead of the one that is read")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes, anywhere, once; stores nothing")
    parser.add_argument("--predict", action="store_true", help="no GPU and no times: what the compiler makes of each")
    told = parser.parse_args(arguments)
    place = machine.place()
    if not (told.predict or told.rehearse or place == "cuda"):
        print("no CUDA device: nothing can be timed here. --rehearse runs the machinery, --predict asks the compiler")
        return NO_GPU
    if told.rehearse and place == "cpu":
        parser.error("--rehearse without a GPU needs TRITON_INTERPRET=1")
    found: list[Trial] = []
    grid, itemsize = ("tiny", 4 if place == "interpreter" else 2) if told.rehearse else ("full", 2)
    for tuned in TUNED:
        if told.operation and tuned.operation not in told.operation:
            continue
        for name, shape in tuned.shapes(grid, itemsize).items():
            if told.predict:
                found += predicted(tuned, name, shape)
            else:
                found += trials(tuned, name, shape, rehearsal=told.rehearse)
    if told.rehearse:
        print("A rehearsal: it shows that everything runs. Its times mean nothing.")
    print("\n".join(table(found)))
    if told.write and not told.rehearse and not told.predict:
        path = told.out or choices.default_path()
        print(f"{write(found, path)} choices stored in {path}")
    wrong = [trial for trial in found if trial.reason.startswith("wrong")]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
