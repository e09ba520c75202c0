"""One run of the whole comparison: who can answer, how wrong the answers are, what they cost.

A provider is timed only when its audit is green: value and gradients of the very function that is timed, by the laws
that everything here is judged by. Why one is not in the table stands beside it.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import pkgutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from typing import Any

import torch

from assay.audits import registry
from assay.audits.run import Options, audit
from assay.audits.terms import Candidate, Verdict
from assay.benchmarks import errors, machine, measure, operations, providers
from assay.benchmarks.measure import Timed
from assay.benchmarks.nouns import (
    MODES,
    Absence,
    Call,
    Comparison,
    Mode,
    Offer,
    Problem,
    Provider,
    Row,
    Shape,
)

LAWS = ("returns", "parity", "gradients")
"""What a function must pass before it is timed; the other laws cost more time than the comparison has.

An operation's ``NOTHING`` names cases in which there is nothing to do. Who fails there alone is timed, and it is said.
"""
SHARES = {"rotary": 0.2, "cross_entropy": 0.25, "linear_cross_entropy": 0.45, "masked_regression": 0.1}
"""Of the time of a whole run."""
Say = Callable[[str], None]


def operation_names() -> tuple[str, ...]:
    """The files of ``benchmarks/operations``."""
    return tuple(name for name in SHARES if name in _files(operations))


def all_providers() -> tuple[Provider, ...]:
    """Those of the files of ``benchmarks/providers``: ours last, so that the table ends with it."""
    found = [
        provider for name in _files(providers)
        for provider in import_module(f"{providers.__name__}.{name}").PROVIDERS
    ]  # fmt: skip
    return tuple(sorted(found, key=lambda provider: provider.name.startswith("assay")))


def _files(package: Any) -> list[str]:
    return sorted(item.name for item in pkgutil.iter_modules(package.__path__) if not item.name.startswith("_"))


def place() -> str:
    """``cuda``, ``interpreter`` or ``cpu``: what this process can measure on."""
    if torch.cuda.is_available():
        return "cuda"
    return "interpreter" if os.environ.get("TRITON_INTERPRET") == "1" else "cpu"


def compare(
    grid: str, *, only: Sequence[str] = (), who: Sequence[str] = (), seconds: float = 440.0, say: Say = print
) -> Comparison:
    """Measure a grid, ``full``, ``small`` or ``tiny``; shapes for which no time is left are named as left out.

    Args:
        grid: which shapes, see the operations.
        only: names of operations; empty: all.
        who: names of providers; empty: all.
        seconds: of the whole run.
        say: takes lines about what is going on.

    Raises:
        ValueError: an operation or provider that there is none of.
    """
    chosen = _chosen("only", only, operation_names())
    answering = [
        item for item in all_providers() if item.name in _chosen("who", who, [p.name for p in all_providers()])
    ]
    device = torch.device("cuda" if place() == "cuda" else "cpu")
    ceilings = machine.ceilings(device)
    facts = machine.describe(device, ceilings)
    say(_first_line(facts))
    rows: list[Row] = []
    absences: list[Absence] = []
    whole = sum(SHARES[name] for name in chosen)
    for name in chosen:
        run = _Run(name, device, ceilings, time.monotonic() + seconds * SHARES[name] / whole, say)
        run.measure(grid, answering)
        rows += run.rows
        absences += run.absences
    return Comparison(
        machine=facts, rows=tuple(rows), absences=tuple(absences), grid=grid, rehearsal=place() == "interpreter"
    )


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


def dtype_on(device: torch.device) -> torch.dtype:
    """What problems are made in: bfloat16 on a GPU, float32 on a CPU."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def reason_absent(provider: Provider, offer: Offer) -> str:
    """Why a provider cannot answer here at all; empty where it can."""
    lacking = [name for name in provider.packages if not machine.version(name)]
    if lacking:
        return f"not installed: {', '.join(lacking)}"
    return "" if place() in offer.devices else f"does not run on {place()}"


def red(operation: str, provider: Provider, offer: Offer) -> tuple[str, str]:
    """What the audit of an offer says: why it is not timed, and what is wrong where there is nothing to do."""
    module = import_module(f"{operations.__name__}.{operation}")
    ordinary = tuple(case for case in registry.operation(module.AUDITED).cases if case not in module.NOTHING)
    ordinary = ordinary[: offer.cases or None]
    if found := _said(module.AUDITED, provider, offer, ordinary):
        return f"not timed, its audit is not green: {found}"[:300], ""
    found = "" if offer.cases else _said(module.AUDITED, provider, offer, module.NOTHING)
    return "", f"timed, but wrong where there is nothing to do: {found}"[:300] if found else ""


def _said(name: str, provider: Provider, offer: Offer, cases: Sequence[str]) -> str:
    """The first finding of the laws on some cases; empty where there is none."""
    if not cases:
        return ""
    candidate = Candidate(
        operation=name, name=provider.name, form=offer.form, trusted=True,
        target={"kind": "import", "ref": offer.ref, "operation": name},
    )  # fmt: skip
    device = torch.device("cuda" if place() == "cuda" else "cpu")
    dtype = str(dtype_on(device)).removeprefix("torch.")
    options = Options(laws=LAWS, cases=tuple(cases), examples=0, device=device.type, dtypes=(dtype,))
    report = audit(registry.operation(name), candidate, options)
    if report.verdict <= Verdict.WAIVED:
        return ""
    said = [f"{item.rule.rpartition('.')[2]}: {item.message}" for item in report.findings][:1]
    return " ".join(said) or report.verdict.name


class _Run:
    """The measurements of one operation."""

    def __init__(
        self, name: str, device: torch.device, ceilings: machine.Ceilings, deadline: float, say: Say
    ) -> None:  # fmt: skip
        self.name, self.device, self.ceilings, self.deadline, self.say = name, device, ceilings, deadline, say
        self.operation = import_module(f"{operations.__name__}.{name}")
        self.dtype = dtype_on(device)
        self.rows: list[Row] = []
        self.absences: list[Absence] = []

    def measure(self, grid: str, answering: Iterable[Provider]) -> None:
        """All shapes of the grid, each with all providers in turns."""
        offers = list(self._present(answering))
        for shape in self.operation.shapes(grid):
            if time.monotonic() > self.deadline:
                self.absences.append(Absence(operation=self.name, provider="all", shape=shape.label, reason="no time"))
                continue
            self.say(f"{self.name}: {shape.label}")
            try:
                self._shape(shape, offers)
            except torch.OutOfMemoryError:
                self._absent("all", "the problem itself is larger than the memory", shape)
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _absent(self, provider: str, reason: str, shape: Shape | None = None) -> None:
        label = shape.label if shape else ""
        self.absences.append(Absence(operation=self.name, provider=provider, shape=label, reason=reason))
        self.say(f"{self.name}: {provider}{f', {label}' if label else ''}: {reason}")

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
            if not reason:
                yield provider, offer

    def _shape(self, shape: Shape, offers: Sequence[tuple[Provider, Offer]]) -> None:
        problem: Problem = self.operation.problem(shape, self.device, self.dtype)
        sets = measure.argument_sets(problem)
        facts = [self._facts(provider, offer, problem) for provider, offer in offers]
        for mode in MODES:
            entries: list[tuple[_Facts, Timed]] = []
            for own in filter(None, facts):
                if own.offer.early and mode == "backward":
                    continue
                try:
                    entry = measure.ready(own.provider.name, own.call, problem, mode, sets, own.offer.consumes)
                except Exception as error:  # noqa: BLE001 - foreign code: whatever it raises is the reason
                    self._absent(own.provider.name, f"{mode}: {_told(error)}", shape)
                else:
                    entries.append((own, entry))
            measure.interleaved([entry for _, entry in entries], self.device.type)
            self.rows += [self._row(own, entry, problem, mode) for own, entry in entries]

    def _facts(self, provider: Provider, offer: Offer, problem: Problem) -> _Facts | None:
        """Errors, memory and launches of one provider on one problem; None where it cannot take it."""
        if reason := offer.refuses(problem.shape):
            self._absent(provider.name, reason, problem.shape)
            return None
        call = offer.call(problem.shape)
        try:
            return _Facts.of(provider, offer, call, problem)
        except Exception as error:  # noqa: BLE001 - foreign code: whatever it raises is the reason
            self._absent(provider.name, _told(error), problem.shape)
            return None

    def _row(self, own: _Facts, entry: Timed, problem: Problem, mode: Mode) -> Row:
        shape, floor = problem.shape, problem.floors[mode]
        least = self.ceilings.least(floor.bytes, floor.flops)
        return Row(
            operation=self.name, provider=own.provider.name, version=machine.version(own.provider.packages[0]),
            model=shape.model, tokens=shape.tokens, layout=shape.layout, masked=shape.masked, mask=shape.mask,
            values=shape.values, upstream=shape.upstream, mode=mode, how=entry.how, median=entry.median,
            low=entry.quantile(0.2), high=entry.quantile(0.8), samples=len(entry.seconds),
            wall=1e6 * sorted(entry.walls)[len(entry.walls) // 2], least=least, share=least / entry.median,
            floor_bytes=floor.bytes, floor_flops=floor.flops, memory=own.memory, launches=own.launches, waits=own.waits,
            errors=own.errors, rounding=own.rounding, note=own.provider.note,
        )  # fmt: skip


def _told(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:240]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Facts:
    """What is known of a provider's answer to a problem before it is timed."""

    provider: Provider
    offer: Offer
    call: Call
    errors: dict[str, float]
    rounding: dict[str, float]
    memory: int
    launches: int | None
    waits: int | None

    @classmethod
    def of(cls, provider: Provider, offer: Offer, call: Call, problem: Problem) -> _Facts:
        """Answer once for the errors, once for the memory, once for the launches."""
        device = next(iter(problem.tensors.values())).device
        wrong, least = _errors(call, problem, offer)
        run = measure.Run(measure.step(call, problem, "both"), [problem.tensors], offer.consumes)
        run()
        run.restore()
        memory = measure.peak_memory(run.act, device)
        launches = waits = None
        if device.type == "cuda":
            run.restore()
            launches, waits = measure.launches_and_waits(run.act)
        run.restore()
        return cls(
            provider=provider, offer=offer, call=call, errors=wrong, rounding=least, memory=memory, launches=launches,
            waits=waits,
        )  # fmt: skip


def _errors(call: Call, problem: Problem, offer: Offer) -> tuple[dict[str, float], dict[str, float]]:
    """How far outputs and gradients are from the truth, and what storing the truth in their dtype costs.

    Memory that is free is filled with NaN first, so that what is never written is noticed.
    """
    if problem.truth is None:
        return {}, {}
    truth = problem.truth()
    run = measure.Run(lambda tensors: _answers(call, tensors, problem), [problem.tensors], offer.consumes)
    _poison(problem)
    got = run()
    run.restore()
    dtype = problem.tensors[problem.differentiable[0]].dtype
    wide = {name: x for name, x in truth.items() if not name.startswith("loss")}
    return errors.errors(got, truth), errors.rounding(wide, dtype)


def _answers(call: Call, tensors: Any, problem: Problem) -> dict[str, torch.Tensor]:
    with torch.enable_grad():
        out = call(tensors)
        kept = [x.detach().clone() for x in out]  # some write their gradients over their outputs, or their inputs
        grads = measure.gradients(out, tensors, problem, keep=False, own=True)
    return {
        **dict(zip(problem.outputs, kept, strict=True)),
        **{f"grad:{name}": grad.clone() for name, grad in zip(problem.differentiable, grads, strict=True)},
    }


def _poison(problem: Problem) -> None:
    """Leave NaN in the memory that the allocator hands out next."""
    for name in problem.differentiable:
        for _ in range(2):
            torch.full_like(problem.tensors[name], torch.nan)
