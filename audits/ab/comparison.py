"""Two patches compared: what was trained, what came out, and the statistics that plot and page show."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from assay.audits.ab import arms, task
from assay.audits.ab.model import build, family_of, steepest
from assay.audits.ab.train import Run, Settings, train
from assay.audits.environment import environment


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One side: the patch, what its docstring says of it, and a run for each seed."""

    ref: str
    about: str
    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        """The patch's name in words."""
        return self.ref.rpartition(":")[2].replace("_", " ")

    def scores(self, question: int | None = None, under: str = "") -> tuple[float, ...]:
        """By seed the share of right answers to a question, or the mean over all, asked under a patch or its own."""
        exams = [run.exams[under or self.ref] for run in self.runs]
        return tuple(statistics.fmean(exam) if question is None else exam[question] for exam in exams)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison of ``a`` with ``b`` on one family.

    ``order_alone`` and ``one_answer`` are, by question, the shares of right answers of whoever sees the order of the
    tokens alone, and of whoever always gives the same answer. ``steepest`` is the model's fastest turn, by axis.
    """

    settings: Settings
    seeds: tuple[int, ...]
    a: Arm
    b: Arm
    questions: tuple[str, ...]
    order_alone: tuple[float, ...]
    one_answer: tuple[float, ...]
    steepest: Mapping[str, float]
    environment: Mapping[str, str]

    @property
    def arms(self) -> tuple[Arm, Arm]:
        """Both sides."""
        return self.a, self.b

    @property
    def same_start(self) -> bool:
        """Whether both sides began with equal weights and saw equal batches, seed by seed, before the patches."""
        pairs = zip(self.a.runs, self.b.runs, strict=True)
        return all((a.weights, a.data) == (b.weights, b.data) for a, b in pairs)

    @property
    def never_differed(self) -> bool:
        """Whether the losses of both sides are equal at every step: the two patches have the same effect, or none."""
        return all(a.loss == b.loss for a, b in zip(self.a.runs, self.b.runs, strict=True))

    def gaps(self, question: int | None = None) -> tuple[float, ...]:
        """By seed how much larger the share of right answers is on side ``a``."""
        return tuple(a - b for a, b in zip(self.a.scores(question), self.b.scores(question), strict=True))


def compare(settings: Settings, a: str, b: str, seeds: Sequence[int], *, processes: int = 2) -> Comparison:
    """Train under both patches with every seed, each patch in a process of its own (``processes`` at a time).

    Numbers do not depend on ``processes``. What a patch raises passes through.
    """
    fresh: Any = multiprocessing.get_context("spawn")  # a patch of code must not reach the other side
    with ProcessPoolExecutor(min(processes, 2), mp_context=fresh, max_tasks_per_child=1) as pool:
        jobs = [pool.submit(_side, settings, ref, tuple(seeds), other) for ref, other in ((a, b), (b, a))]
        sides = [job.result() for job in jobs]
    turned = steepest(build(family_of(settings.family), 0))
    numbers = range(len(task.QUESTIONS))
    return Comparison(
        settings=settings,
        seeds=tuple(seeds),
        a=sides[0],
        b=sides[1],
        questions=task.QUESTIONS,
        order_alone=tuple(round(task.order_alone(number), 4) for number in numbers),
        one_answer=tuple(round(task.one_answer(number), 4) for number in numbers),
        steepest={axis: float(f"{angle:.3g}") for axis, angle in turned.items()},
        environment={
            **environment(),
            "cores": str(os.cpu_count()),
            "processes": str(processes),
            "threads of each": "1",
        },
    )


def _side(settings: Settings, ref: str, seeds: Sequence[int], other: str) -> Arm:
    return Arm(ref=ref, about=arms.about(ref), runs=tuple(_told(settings, ref, seeds, other)))


def _told(settings: Settings, ref: str, seeds: Sequence[int], other: str) -> Iterator[Run]:
    """The runs, each told on the terminal when it ends."""
    for seed in seeds:
        run = train(settings, ref, seed, other)
        share = statistics.fmean(run.exams[ref])
        sys.stderr.write(
            f"{settings.family} {ref} seed {seed}: {share:.1%} right after {run.seconds:.0f} s of a core\n"
        )
        yield run


def dump(comparison: Comparison) -> str:
    """The comparison as JSON; curves have a line each."""
    return _json(dataclasses.asdict(comparison), depth=0) + "\n"


def _json(value: Any, depth: int) -> str:
    """Objects and lists of objects over several lines, all else in one."""
    pad, end = "  " * (depth + 1), "  " * depth
    if isinstance(value, dict):
        inner = (f"{pad}{json.dumps(name)}: {_json(item, depth + 1)}" for name, item in value.items())
        return "{\n" + ",\n".join(inner) + f"\n{end}}}"
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(pad + _json(item, depth + 1) for item in value) + f"\n{end}]"
    return json.dumps(value)


def load(text: str) -> Comparison:
    """The comparison that :func:`dump` wrote. ValueError where it is another file."""
    record = json.loads(text)
    names = {field.name for field in dataclasses.fields(Comparison)}
    if not isinstance(record, dict) or set(record) != names:
        message = f"not the results of an A/B comparison: expected the fields {sorted(names)}"
        raise ValueError(message)
    sides = {side: _arm(record[side]) for side in ("a", "b")}
    lists = {name: tuple(record[name]) for name in ("seeds", "questions", "order_alone", "one_answer")}
    return Comparison(**{**record, **lists, **sides, "settings": Settings(**record["settings"])})


def _arm(record: Mapping[str, Any]) -> Arm:
    return Arm(ref=record["ref"], about=record["about"], runs=tuple(Run.of(run) for run in record["runs"]))
