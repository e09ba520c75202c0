"""One run of the whole comparison: who can answer, how wrong the answers are, what they cost.

A provider is timed only when its audit is green: value and gradients of the very function that is timed, by the laws
that everything here is judged by. Why one is not in the table stands beside it.
"""

from __future__ import annotations

import dataclasses
import gc
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from typing import Any

import torch

from assay.benchmarks import budget, graphs, machine, measure, operations, providers
from assay.benchmarks.admission import reason_absent, red
from assay.benchmarks.facts import Facts, Truth
from assay.benchmarks.measure import Sets, Timed
from assay.benchmarks.nouns import (
    MODES,
    Absence,
    Comparison,
    Mode,
    Offer,
    Problem,
    Provider,
    Row,
    Shape,
)

Say = Callable[[str], None]
Keep = Callable[[Comparison], None]


def operation_names() -> tuple[str, ...]:
    """The files of ``benchmarks/operations``."""
    return tuple(name for name in budget.SHARES if name in _files(operations))


def all_providers() -> tuple[Provider, ...]:
    """Those of the files of ``benchmarks/providers``: ours last, so that the table ends with it."""
    found = [
        provider for name in _files(providers)
        for provider in import_module(f"{providers.__name__}.{name}").PROVIDERS
    ]  # fmt: skip
    return tuple(sorted(found, key=lambda provider: provider.name.startswith("assay")))


def _files(package: Any) -> list[str]:
    return sorted(item.name for item in pkgutil.iter_modules(package.__path__) if not item.name.startswith("_"))


class DeviceLost(RuntimeError):
    """A provider has left the device in a state in which nothing runs any more."""


def compare(
    grid: str, *, only: Sequence[str] = (), who: Sequence[str] = (), seconds: float = 440.0, say: Say = print,
    keep: Keep = lambda _found: None,
) -> Comparison:  # fmt: skip
    """Measure a grid, ``full``, ``small`` or ``tiny``; shapes for which no time is left are named as left out.

    Args:
        grid: which shapes, see the operations.
        only: names of operations; empty: all.
        who: names of providers; empty: all.
        seconds: of the whole run.
        say: takes lines about what is going on.
        keep: is given what there is after each shape, so that nothing is lost when the run does not end.

    Raises:
        ValueError: an operation or provider that there is none of.
    """
    chosen = _chosen("only", only, operation_names())
    answering = [
        item for item in all_providers() if item.name in _chosen("who", who, [p.name for p in all_providers()])
    ]
    device = torch.device("cuda" if machine.place() == "cuda" else "cpu")
    shares = budget.Shares(chosen, seconds)
    with graphs.own_stream(device):
        ceilings = machine.ceilings(device)
        facts = machine.describe(device, ceilings)
        say(_first_line(facts))
        run = _Run(Comparison(
            machine=facts, rows=(), absences=(), grid=grid, rehearsal=machine.place() == "interpreter",
            cut="it is not at its end yet",
        ), device, ceilings, say, keep)  # fmt: skip
        for line in _estimates(grid, chosen, answering, ceilings):
            say(line)
        try:
            for name in chosen:
                _Operation(name, run, shares.next()).measure(grid, answering)
        except DeviceLost as lost:
            say(str(lost))
            return run.found(cut=str(lost))
    return run.found()


def _estimates(
    grid: str, chosen: Sequence[str], answering: Sequence[Provider], ceilings: machine.Ceilings
) -> list[str]:  # fmt: skip
    """Of the time that a run on a GPU will take; elsewhere nobody waits for it by a clock."""
    if machine.place() != "cuda":
        return []
    offers = {
        name: [
            provider.offers[name] for provider in answering
            if name in provider.offers and not reason_absent(provider, provider.offers[name])
        ] for name in chosen
    }  # fmt: skip
    return budget.lines(grid, chosen, offers, ceilings)


def _chosen(argument: str, names: Sequence[str], known: Sequence[str]) -> list[str]:
    if strangers := [name for name in names if name not in known]:
        message = f"{argument}: expected some of {', '.join(known)}, got {', '.join(strangers)}"
        raise ValueError(message)
    return [name for name in known if not names or name in names]


def _first_line(facts: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return (
        f"{facts['name']}: copies {facts['copy_tb_per_s']:.3f} TB/s, {facts['product']} products "
        f"{facts['tflop_per_s']:.2f} TFLOP/s; Python {facts['python']}, {versions}"
    )


@dataclasses.dataclass
class _Run:
    """What a run has found so far, and where it runs."""

    begun: Comparison
    device: torch.device
    ceilings: machine.Ceilings
    say: Say
    keep: Keep
    rows: list[Row] = dataclasses.field(default_factory=list)
    absences: list[Absence] = dataclasses.field(default_factory=list)

    def found(self, *, cut: str = "") -> Comparison:
        """All of it."""
        return dataclasses.replace(self.begun, rows=tuple(self.rows), absences=tuple(self.absences), cut=cut)

    def kept(self) -> None:
        """Hand over what there is, as the part that it is."""
        self.keep(self.found(cut=self.begun.cut))


class _Operation:
    """The measurements of one operation."""

    def __init__(self, name: str, run: _Run, clock: budget.Clock) -> None:
        self.name, self.run, self.clock, self.device = name, run, clock, run.device
        self.operation = import_module(f"{operations.__name__}.{name}")
        self.dtype = machine.dtype_on(run.device)

    def measure(self, grid: str, answering: Iterable[Provider]) -> None:
        """All shapes of the grid, each with all providers in turns."""
        offers = list(self._present(answering))
        gc.collect()
        gc.freeze()  # the libraries of all providers are loaded now: what is collected from here on is little
        for shape in self.operation.shapes(grid):
            guess = budget.of_shape(
                self.operation, shape, [offer for _, offer in offers], self.run.ceilings, self.dtype.itemsize
            )  # fmt: skip
            if not self.clock.fits(guess):
                self._absent("all", "no time", shape)
                continue
            self.run.say(f"{self.name}: {shape.label}")
            self.clock.begin()
            try:
                self._shape(shape, offers)
            except torch.OutOfMemoryError:
                self._absent("all", "the problem itself is larger than the memory", shape)
            except DeviceLost:
                raise
            except Exception as error:  # noqa: BLE001 - one shape that cannot be made is not the end of the others
                self._absent("all", _told(error), shape)
                self._alive("the problem itself")
            self._tidy()
            self.clock.end(guess)
            self.run.kept()

    def _tidy(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _absent(self, provider: str, reason: str, shape: Shape | None = None) -> None:
        label = shape.label if shape else ""
        self.run.absences.append(Absence(operation=self.name, provider=provider, shape=label, reason=reason))
        self.run.say(f"{self.name}: {provider}{f', {label}' if label else ''}: {reason}")

    def _alive(self, provider: str) -> None:
        """An illegal access is told by whatever comes after it, for ever: DeviceLost says whose it was."""
        if self.device.type == "cpu":
            return
        try:
            torch.cuda.synchronize()
        except Exception as error:
            raise DeviceLost(f"{self.name}: the device was lost with {provider}: {_told(error)}") from error

    def _present(self, answering: Iterable[Provider]) -> Iterator[tuple[Provider, Offer]]:
        """Providers that are installed, run here and pass their audit."""
        for provider in answering:
            offer = provider.offers.get(self.name)
            if offer is None:
                continue
            if reason := reason_absent(provider, offer):
                self._absent(provider.name, reason)
                continue
            reason, degenerate = red(self.name, provider, offer)
            if found := reason or degenerate:
                self._absent(provider.name, found)
                self._alive(provider.name)
            if not reason:
                yield provider, offer

    def _shape(self, shape: Shape, offers: Sequence[tuple[Provider, Offer]]) -> None:
        problem: Problem = self.operation.problem(shape, self.device, self.dtype)
        sets = Sets(problem)
        truth = self._truth(problem)
        facts = [self._facts(provider, offer, problem, sets, truth) for provider, offer in offers]
        del truth
        for mode in MODES:
            waiting = [own for own in facts if own and not (own.offer.early and mode == "backward")]
            while waiting:
                waiting = self._turns(waiting, problem, sets, mode)
                self._tidy()

    def _truth(self, problem: Problem) -> Truth | None:
        """Asked for once: at the largest shapes it takes longer than all the others."""
        try:
            return Truth.of(problem) if problem.truth else None
        except torch.OutOfMemoryError:
            self._absent("all", "timed, but no errors: the truth is larger than the memory", problem.shape)
            return None

    def _turns(self, own: Sequence[Facts], problem: Problem, sets: Sets, mode: Mode) -> list[Facts]:
        """Time some providers in turns; who had no memory beside the others is handed back, to be timed after them."""
        entries: list[tuple[Facts, Timed]] = []
        left: list[Facts] = []
        pool = graphs.pool(self.device)
        for each in own:
            try:
                entry = measure.ready(
                    each.provider.name, each.call, problem, mode, sets, each.offer.consumes, pool
                )  # fmt: skip
            except torch.OutOfMemoryError as error:
                if entries:
                    left.append(each)
                else:
                    self._failed(each, mode, error, problem.shape)
                self._tidy()
            except Exception as error:  # noqa: BLE001 - foreign code: whatever it raises is the reason
                self._failed(each, mode, error, problem.shape)
            else:
                entries.append((each, entry))
        measure.interleaved([entry for _, entry in entries], self.device.type)
        for each, entry in entries:
            if entry.failed:
                self._failed(each, mode, entry.failed, problem.shape)
            else:
                self.run.rows.append(self._row(each, entry, problem, mode))
        return left

    def _failed(self, own: Facts, mode: Mode, error: Exception, shape: Shape) -> None:
        self._absent(own.provider.name, f"{mode}: {_told(error)}", shape)
        self._alive(own.provider.name)

    def _facts(
        self, provider: Provider, offer: Offer, problem: Problem, sets: Sets, truth: Truth | None
    ) -> Facts | None:  # fmt: skip
        """Errors and memory of one provider on one problem; None where it cannot take it."""
        if reason := offer.refuses(problem.shape):
            self._absent(provider.name, reason, problem.shape)
            return None
        call = offer.call(problem.shape)
        try:
            found = Facts.of(provider, offer, call, problem, sets, truth)
            if self.device.type == "cpu" or not budget.too_slow(found.seconds):
                return found
            self._absent(provider.name, f"no time: one call takes {found.seconds:.2f} s", problem.shape)
        except Exception as error:  # noqa: BLE001 - foreign code: whatever it raises is the reason
            self._absent(provider.name, _told(error), problem.shape)
        self._tidy()
        self._alive(provider.name)
        return None

    def _row(self, own: Facts, entry: Timed, problem: Problem, mode: Mode) -> Row:
        shape, floor = problem.shape, problem.floors[mode]
        least = self.run.ceilings.least(floor.bytes, floor.flops)
        return Row(
            operation=self.name, provider=own.provider.name, version=machine.version(own.provider.packages[0]),
            model=shape.model, tokens=shape.tokens, layout=shape.layout, masked=shape.masked, mask=shape.mask,
            values=shape.values, upstream=shape.upstream, mode=mode, how=entry.how, median=entry.median,
            low=entry.quantile(0.2), high=entry.quantile(0.8), samples=len(entry.seconds),
            wall=1e6 * sorted(entry.walls)[len(entry.walls) // 2], least=least, share=least / entry.median,
            floor_bytes=floor.bytes, floor_flops=floor.flops, memory=own.memory, launches=entry.launches,
            waits=entry.waits, errors=own.errors, rounding=own.rounding, note=own.provider.note,
        )  # fmt: skip


def _told(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:240]
