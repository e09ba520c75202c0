"""The judge: one operation, one candidate, all laws that apply, on named cases and on searched ones."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from assay.audits import cases, registry
from assay.audits.environment import environment
from assay.audits.findings import Broke, finding
from assay.audits.laws.trial import Broken, Trial
from assay.audits.search import search
from assay.audits.subject import Foreign, InProcess, Server, subject
from assay.audits.terms import (
    Candidate,
    Check,
    Evidence,
    Finding,
    Form,
    Law,
    Operation,
    Outcome,
    Report,
    Verdict,
)


@dataclass(frozen=True)
class Options:
    """How much to audit. Amounts may differ between a laptop and CI; limits never do."""

    laws: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()
    seed: int = 0
    examples: int = 20
    device: str = "cpu"
    dtypes: tuple[str, ...] = ()
    time_limit: float = 20.0

    @property
    def filtered(self) -> bool:
        """Whether something that a full audit would exercise was left out on purpose."""
        return bool(self.laws or self.cases or self.dtypes)


@dataclass
class _Tally:
    """What has been seen of one candidate so far: evidence by law, and how often each law was exercised."""

    operation: Operation
    candidate: Candidate
    options: Options
    broke: list[Broke] = field(default_factory=list)
    exercised: Counter[str] = field(default_factory=Counter)
    inapplicable: dict[str, Counter[str]] = field(default_factory=dict)
    gone: bool = False


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
    tally = _Tally(operation, candidate, options)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        tally.broke.append(_machine("device", operation, candidate, "no CUDA device is available", options))
        return _report(tally, laws)
    own = Server() if server is None and not candidate.trusted else None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        judged = subject(candidate, operation.differentiable, server or own, options.time_limit, operation.level)
        for dtype in options.dtypes or operation.dtypes:
            progress(f"{operation.name} {candidate.name} {dtype}")
            _judge(tally, judged, laws, dtype)
        if isinstance(judged, Foreign):
            judged.close()
    finally:
        torch.set_num_threads(threads)
        if own:
            own.close()
    return _report(tally, laws)


def _laws(operation: Operation, options: Options) -> tuple[Law, ...]:
    known = registry.laws(operation.name)
    wanted = {name.rpartition(".")[2] for name in options.laws}
    missing = wanted - {law.name for law in known}
    if missing:
        names = ", ".join(law.name for law in known)
        message = f"{operation.name} has no law {', '.join(sorted(missing))}; it has: {names}"
        raise LookupError(message)
    return tuple(law for law in known if not wanted or law.name in wanted)


def _judge(tally: _Tally, judged: InProcess | Foreign, laws: tuple[Law, ...], dtype: str) -> None:
    operation, options = tally.operation, tally.options
    chosen = [cases.parse(operation, name) for name in options.cases] or list(operation.cases.values())
    for params in (replace(case, **tally.candidate.scope) for case in chosen):
        for law, broken in _exercise(tally, judged, laws, params, dtype):
            tally.broke.extend(replace(item, rule=item.rule or law.name) for item in broken)
        if tally.gone:
            return
    if options.cases:
        return
    while not tally.gone:
        hit = _hunt(tally, judged, laws, dtype)
        if not hit:
            return
        tally.broke.extend(hit)


def _hunt(tally: _Tally, judged: InProcess | Foreign, laws: tuple[Law, ...], dtype: str) -> list[Broke]:
    """Search for a case that breaks a law not yet known to be broken in this dtype."""
    known = {item.rule for item in tally.broke if item.dtype == dtype}
    open_laws = tuple(law for law in laws if law.name not in known)
    best: dict[str, list[Broke]] = {}

    def breaks(params: Any) -> bool:
        scoped = replace(params, **tally.candidate.scope)
        found = [
            replace(item, rule=item.rule or law.name)
            for law, broken in _exercise(tally, judged, open_laws, scoped, dtype)
            for item in broken
        ]
        fresh = [item for item in found if item.rule not in known]
        if fresh:
            best[repr(params)] = fresh
        return bool(fresh)

    smallest = search(tally.operation, breaks, examples=tally.options.examples, seed=tally.options.seed)
    return best[repr(smallest)] if smallest is not None else []


def _exercise(
    tally: _Tally, judged: InProcess | Foreign, laws: tuple[Law, ...], params: Any, dtype: str
) -> Iterable[tuple[Law, list[Broke]]]:
    """Put one case to each law. Stops when the candidate no longer answers."""
    operation = tally.operation
    reason = operation.supports(params)
    if reason is None:
        inputs = operation.build(params, getattr(torch, dtype), torch.device(tally.options.device))
        reason = _refused_by_form(tally, inputs)
        trial = Trial(
            operation=operation, params=params, inputs=inputs, dtype=getattr(torch, dtype), subject=judged,
            seed=tally.options.seed,
        )  # fmt: skip
    for law in laws:
        if tally.gone:
            return
        why_not = reason or law.applies(operation, params)
        if why_not:
            tally.inapplicable.setdefault(law.name, Counter())[why_not] += 1
            continue
        yield law, list(_put(tally, law, trial, dtype))


def _refused_by_form(tally: _Tally, inputs: Any) -> str | None:
    form = _form(tally)
    return form.accepts(inputs) if form else None


def _form(tally: _Tally) -> Form | None:
    name = tally.candidate.form
    return registry.form(tally.operation.name, name) if name else None


def _put(tally: _Tally, law: Law, trial: Trial, dtype: str) -> Iterable[Broke]:
    case = cases.text(tally.operation, trial.params, tally.candidate.scope)
    rule = ""
    try:
        evidence = list(law.check(trial))
        tally.exercised[law.name] += 1
    except Broken as broken:
        rule, evidence = _ended(broken.outcome)
        tally.gone = rule in {"timeout", "unloadable"}
    except Exception as error:  # noqa: BLE001 - a failing checker must not pass or stop the audit
        rule = "checker-failed"
        text = f"{law.name}: {type(error).__name__}: {error}"[:500]
        evidence = [Evidence(where=law.name, measured=text, limit="no error", message="the checker failed", verdict=Verdict.UNKNOWN)]
    for item in evidence:
        yield Broke(rule=rule, case=case, dtype=dtype, evidence=item)


def _ended(outcome: Outcome) -> tuple[str, list[Evidence]]:
    raised = outcome.raised
    assert raised is not None
    rule = raised.kind if raised.kind in {"timeout", "unloadable"} else "raises"
    verdict = Verdict.FAIL if rule == "raises" else Verdict.UNKNOWN
    last = raised.traceback.strip().splitlines()[-3:-1]
    message = f"{raised.message} {' '.join(line.strip() for line in last)}".strip()
    return rule, [Evidence(where="call", measured=raised.kind, limit="returns", message=message[:600], verdict=verdict)]


def _machine(rule: str, operation: Operation, candidate: Candidate, message: str, options: Options) -> Broke:
    evidence = Evidence(where=operation.name, measured="absent", limit="present", message=message, verdict=Verdict.UNKNOWN)
    dtype = (options.dtypes or operation.dtypes)[0]
    return Broke(rule=rule, case="", dtype=dtype, evidence=evidence)


def _report(tally: _Tally, laws: tuple[Law, ...]) -> Report:
    tally.broke.extend(_silent(tally, laws))
    findings = _worst_of_each(tally)
    checks = []
    for law in laws:
        rule = f"{tally.operation.name}.{law.name}"
        worst = max((f.verdict for f in findings if f.rule == rule), default=Verdict.PASS)
        if not tally.exercised[law.name] and law.name not in tally.inapplicable:
            worst = max(worst, Verdict.UNKNOWN)
        checks.append(
            Check(
                rule=rule, candidate=tally.candidate.name, exercised=tally.exercised[law.name],
                inapplicable=dict(sorted(tally.inapplicable.get(law.name, Counter()).items())), verdict=worst,
            )
        )  # fmt: skip
    return Report(
        findings=tuple(findings), checks=tuple(checks), environment=environment(tally.options.device),
        filtered=tally.options.filtered,
    )  # fmt: skip


def _silent(tally: _Tally, laws: tuple[Law, ...]) -> Iterable[Broke]:
    """Laws that neither ran nor declared themselves inapplicable, unless a finding already says why."""
    if any(item.rule in {"raises", "timeout", "unloadable", "device"} for item in tally.broke):
        return
    for law in laws:
        if not tally.exercised[law.name] and law.name not in tally.inapplicable:
            message = "the law applied and was never exercised to its end"
            yield replace(_machine("not-exercised", tally.operation, tally.candidate, message, tally.options),
                          evidence=Evidence(where=law.name, measured="0 cases", limit="at least 1 case",
                                            message=message, verdict=Verdict.UNKNOWN))  # fmt: skip


def _worst_of_each(tally: _Tally) -> list[Finding]:
    """One finding per rule, dtype and place: the case that breaks it worst, with the number of cases that do."""
    groups: dict[tuple[str, str, str], list[Broke]] = {}
    for item in tally.broke:
        groups.setdefault((item.rule, item.dtype, item.evidence.where), []).append(item)
    found = [
        finding(tally.operation, tally.candidate, max(group, key=_severity), len({i.case for i in group}), tally.options)
        for group in groups.values()
    ]
    return sorted(found, key=lambda f: (-f.verdict, f.rule, f.dtype, f.where))


def _severity(item: Broke) -> tuple[int, float, int]:
    measured, limit = item.evidence.measured, item.evidence.limit
    ratio = 0.0
    if isinstance(measured, float) and isinstance(limit, float) and limit:
        ratio = measured / limit if not math.isnan(measured) else math.inf
    named = 0 if item.case.startswith("{") else 1
    return int(item.evidence.verdict), ratio, named


def merge(reports: Iterable[Report]) -> Report:
    """Several reports as one."""
    parts = list(reports)
    return Report(
        findings=tuple(f for part in parts for f in part.findings),
        checks=tuple(c for part in parts for c in part.checks),
        environment=parts[0].environment if parts else {},
        filtered=any(part.filtered for part in parts),
    )
