"""The judge: one operation, one candidate, all laws that apply, on named cases and on searched ones."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from assay.audits import cases, registry
from assay.audits.findings import Broke
from assay.audits.laws.shared import COMPARISONS
from assay.audits.laws.trial import Broken, Trial
from assay.audits.mishap import checker_failed, ended, misfit
from assay.audits.options import Options
from assay.audits.search import search
from assay.audits.server import Server
from assay.audits.subject import Foreign, InProcess, subject
from assay.audits.tally import Tally, absent, merge, report
from assay.audits.terms import (
    Candidate,
    Evidence,
    Inexpressible,
    Law,
    Level,
    Operation,
    Outcome,
    Outputs,
    Report,
    Tape,
    Verdict,
)  # fmt: skip

__all__ = ["Options", "audit", "merge"]

MAX_DEATHS = 3
"""A candidate that has ended its process so often is asked no more: each new process imports it again."""
COSTLY = 5
"""By how much the search of a costly candidate is cut on a CPU, and the cases that its relations are asked on."""
BRIEF = 3
"""Of how many cases one is put to the relations in a brief audit."""
TRIES = 2
"""Of how many cases a finding's command is tried, the worst ones first."""
NOTES = {
    "mutates": ("mutates", "the call changed its input"),
    "state": ("leaks", "the call changed a global setting"),
}
"""Which law a side effect breaks that was seen while another law was looking at something else."""


@dataclass
class _Watched:
    """A subject whose side effects are collected, whichever law makes the call."""

    subject: InProcess | Foreign
    notes: dict[str, None] = field(default_factory=dict)

    @property
    def level(self) -> Level:
        """That of the subject."""
        return self.subject.level

    @property
    def gone(self) -> bool:
        """Whether the candidate has ended its process too often."""
        return isinstance(self.subject, Foreign) and self.subject.deaths >= MAX_DEATHS

    def call(self, inputs: Any, upstream: Outputs | None = None, tape: Tape | None = None) -> Outcome:
        """Run once."""
        outcome = self.subject.call(inputs, upstream, tape)
        self.notes |= dict.fromkeys(outcome.notes)
        return outcome

    def close(self) -> None:
        """End the process of a foreign candidate."""
        if isinstance(self.subject, Foreign):
            self.subject.close()


def audit(
    operation: Operation,
    candidate: Candidate,
    options: Options | None = None,
    *,
    server: Server | None = None,
    progress: Callable[[str], None] = lambda _text: None,
) -> Report:
    """Judge one candidate of one operation by its laws.

    ``server`` is the worker for foreign candidates (one is started and stopped when none is given). Errors of the
    candidate become findings; a device that is not there is UNKNOWN; LookupError for laws or cases that do not exist.
    """
    options = options or Options()
    laws = _laws(operation, options)
    tally = Tally(operation, candidate, options)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        tally.broke.append(absent(tally, "device", "no CUDA device is available"))
        return report(tally, laws, lambda group: group[0])
    own = Server() if server is None and not candidate.trusted else None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _judge_all(tally, laws, server or own, progress)
        again = functools.cache(functools.partial(_shows_again, tally, laws, server or own))
        return report(tally, laws, lambda group: _confirmed(tally, group, again))
    finally:
        torch.set_num_threads(threads)
        if own:
            own.close()


def _laws(operation: Operation, options: Options) -> tuple[Law, ...]:
    known = registry.laws(operation.name)
    wanted = {name.rpartition(".")[2] for name in options.laws}
    missing = wanted - {law.name for law in known}
    if missing:
        names = ", ".join(law.name for law in known)
        message = f"{operation.name} has no law {', '.join(sorted(missing))}; it has: {names}"
        raise LookupError(message)
    return tuple(law for law in known if not wanted or law.name in wanted)


def _judge_all(tally: Tally, laws: tuple[Law, ...], server: Server | None, progress: Callable[[str], None]) -> None:
    judged = _subject(tally, server)
    if judged is None:
        return
    try:
        for dtype in tally.options.dtypes or tally.operation.dtypes:
            progress(f"{tally.operation.name} {tally.candidate.name} {dtype}")
            if not tally.gone:
                _judge(tally, judged, laws, dtype)
    finally:
        judged.close()


def _subject(tally: Tally, server: Server | None) -> _Watched | None:
    operation, options = tally.operation, tally.options
    try:
        made = subject(
            tally.candidate, operation.differentiable, server, options.time_limit, operation.level,
            limit_memory=options.device == "cpu",
        )  # fmt: skip
    except Exception as error:  # noqa: BLE001 - our own candidates may lack what they import
        tally.gone = True
        tally.broke.append(absent(tally, "unloadable", f"{type(error).__name__}: {error}"))
        return None
    return _Watched(made)


def _judge(tally: Tally, judged: _Watched, laws: tuple[Law, ...], dtype: str) -> None:
    operation, options = tally.operation, tally.options
    chosen = [cases.parse(operation, name) for name in options.cases] or list(operation.cases.values())
    for params in (replace(case, **tally.scope) for case in chosen):
        tally.broke.extend(_exercise(tally, judged, laws, params, dtype))
        if tally.gone:
            return
    if options.cases:
        return
    while not tally.gone:
        hit = _hunt(tally, judged, laws, dtype)
        if not hit:
            return
        tally.broke.extend(hit)


def _hunt(tally: Tally, judged: _Watched, laws: tuple[Law, ...], dtype: str) -> list[Broke]:
    """Search for a case that breaks a law not yet known to be broken in this dtype."""
    known = {item.rule for item in tally.broke if item.dtype == dtype}
    open_laws = tuple(law for law in laws if law.name not in known)
    best: dict[str, list[Broke]] = {}

    def breaks(params: Any) -> bool:
        scoped = replace(params, **tally.scope)
        fresh = [item for item in _exercise(tally, judged, open_laws, scoped, dtype) if item.rule not in known]
        if fresh:
            best[repr(params)] = fresh
        return bool(fresh)

    examples = tally.options.examples
    if tally.costly:
        examples = -(-examples // COSTLY)
    smallest = search(tally.operation, breaks, examples=examples, seed=tally.options.seed)
    return best[repr(smallest)] if smallest is not None else []


def _exercise(tally: Tally, judged: _Watched, laws: tuple[Law, ...], params: Any, dtype: str) -> Iterator[Broke]:
    """Put one case to each law. Stops when the candidate no longer answers."""
    operation = tally.operation
    case = cases.text(operation, params, tally.scope)
    try:
        reason = operation.supports(params)
        trial = None if reason else _trial(tally, judged, params, dtype)
        reason = reason or _refused_by_form(tally, trial.inputs if trial else None)
        applying = [law for law in laws if not _excused(tally, law, params, reason)]
        applying = [law for law in applying if not _spared(tally, law, dtype)]
    except Exception as error:  # noqa: BLE001 - a failing checker must not pass or stop the audit
        yield Broke(rule="checker-failed", case=case, dtype=dtype, evidence=checker_failed("case", error))
        return
    for law in applying:
        if tally.gone:
            return
        assert trial is not None
        yield from (
            Broke(rule=rule, case=case, dtype=dtype, evidence=item, law=law.name, params=params)
            for rule, item in _put(tally, law, trial, judged)
        )


def _trial(tally: Tally, judged: _Watched, params: Any, dtype: str) -> Trial:
    width, options = getattr(torch, dtype), tally.options
    inputs = tally.operation.build(params, width, torch.device(options.device))
    return Trial(
        operation=tally.operation, params=params, inputs=inputs, dtype=width, subject=judged, seed=options.seed
    )


def _refused_by_form(tally: Tally, inputs: Any) -> str | None:
    name = tally.candidate.form
    return registry.form(tally.operation.name, name).accepts(inputs) if name else None


def _excused(tally: Tally, law: Law, params: Any, reason: str | None) -> bool:
    why_not = reason or law.applies(tally.operation, params)
    if why_not:
        tally.excuse(law.name, why_not)
    return bool(why_not)


def _passed_over(tally: Tally, law: Law, dtype: str) -> bool:
    """Whether a comparison is left to other cases, one of three; all comparisons take the same ones."""
    key = f"{law.name} {dtype}"
    tally.offered[key] += 1
    if tally.offered[key] % BRIEF == 1:
        return False
    tally.excuse(law.name, f"one candidate of many is compared in {dtype} on one case of {BRIEF}")
    return True


def _spared(tally: Tally, law: Law, dtype: str) -> bool:
    """Whether a candidate is spared a law on this case, which others of its cases stand for.

    All named cases are compared with the reference, in every dtype; in a brief audit on every third case in all dtypes
    but the first. Relations take many calls: a costly candidate, and one of many in a brief audit, is asked in the
    first dtype, on every fifth or third case; one that is both on every tenth.
    """
    first = (tally.options.dtypes or tally.operation.dtypes)[0]
    if law.name in COMPARISONS:
        return dtype != first and tally.options.brief and _passed_over(tally, law, dtype)
    if not (tally.costly or tally.options.brief):
        return False
    every, whom = (COSTLY, "a costly candidate") if tally.costly else (BRIEF, "one family of many")
    every *= 2 if tally.costly and tally.options.brief else 1
    if dtype == first:
        tally.offered[law.name] += 1
        if tally.offered[law.name] % every == 1:
            return False
    tally.excuse(law.name, f"{whom} is asked in {first}, on one case of {every}")
    return True


def _put(tally: Tally, law: Law, trial: Trial, judged: _Watched) -> Iterable[tuple[str, Evidence]]:
    judged.notes.clear()
    tally.attempted[law.name] += 1
    try:
        found = [(law.name, item) for item in law.check(trial)]
        tally.exercised[law.name] += 1
    except Inexpressible as reason:
        tally.attempted[law.name] -= 1
        tally.excuse(law.name, str(reason))
        found = []
    except Broken as broken:
        found = [ended(broken.outcome)]
        tally.gone = judged.gone or found[0][0] in {"timeout", "unloadable"}
    except Exception as error:  # noqa: BLE001 - a failing checker must not pass or stop the audit
        found = misfit(trial) or [("checker-failed", checker_failed(law.name, error))]
    return _unverified(trial, judged) or [*found, *_seen_beside(tally, law, judged)]


def _unverified(trial: Trial, judged: _Watched) -> list[tuple[str, Evidence]]:
    """Where the machine itself cannot do a dtype's arithmetic, nothing is known of the candidate."""
    reasons = [note.partition(":")[2] for note in judged.notes if note.startswith("unverified:")]
    if reasons or trial.doubted:
        reasons = [trial.once("unverified", lambda: reasons[0])]
    return [
        (
            "unverified",
            Evidence(where="call", measured="not verified", limit="verified", message=reason, verdict=Verdict.UNKNOWN),
        )
        for reason in reasons[:1]
    ]


def _seen_beside(tally: Tally, law: Law, judged: _Watched) -> Iterator[tuple[str, Evidence]]:
    """Side effects of any call of this law's, for the law that judges them, if it takes part."""
    for note in judged.notes:
        kind, _, what = note.partition(":")
        rule, message = NOTES.get(kind, ("", ""))
        if what == "environment":  # importing a library at the first call may set its own: its law compares the second
            continue
        if rule and law.name != rule and rule in {known.name for known in _laws(tally.operation, tally.options)}:
            yield rule, Evidence(where=what, measured="changed", limit="unchanged", message=message)


def _confirmed(tally: Tally, group: list[Broke], again: Callable[[_Command], frozenset[tuple[str, str]]]) -> Broke:
    """The worst evidence of a group that its own command shows again, in a fresh process.

    What a candidate keeps between calls may make a case fail only after others: then the command is the whole audit,
    and the finding says so. Only users' functions are asked again: a model is slow to build, and ours keep nothing.
    """
    first = group[0]
    if not tally.candidate.target.get("public") or first.evidence.verdict != Verdict.FAIL or not first.law:
        return first
    for item in group[:TRIES]:
        if (item.rule, item.evidence.where) in again(_Command.of(item)):
            return item
    message = f"{first.evidence.message}; only after the audit's earlier calls"
    return replace(first, evidence=replace(first.evidence, message=message), alone=False)


@dataclass(frozen=True)
class _Command:
    """What a repro line runs: the same for several findings."""

    asks: tuple[str, ...]
    case: str
    dtype: str
    params: Any = field(compare=False)

    @classmethod
    def of(cls, item: Broke) -> _Command:
        return cls(item.asks, item.case, item.dtype, item.params)


def _shows_again(
    tally: Tally, laws: tuple[Law, ...], server: Server | None, command: _Command
) -> frozenset[tuple[str, str]]:
    """The rules and places that a command finds broken."""
    asked = tuple(law for law in laws if not command.asks or law.name in command.asks)
    options = replace(tally.options, laws=tuple(law.name for law in asked))
    again = Tally(tally.operation, tally.candidate, options)
    judged = _subject(again, server)
    if judged is None:
        return frozenset()
    try:
        found = list(_exercise(again, judged, asked, command.params, command.dtype))
    finally:
        judged.close()
    return frozenset((item.rule, item.evidence.where) for item in found)
