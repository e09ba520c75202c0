"""The same audit in two environments: verdicts beside each other, and what the candidates return beside each other.

A report tells what is right. This tells what changed: positions, labels, losses of two releases of a package, bit for
bit, whether a law cares or not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from assay.audits import cases, session
from assay.audits.choose import Request
from assay.audits.gate import GateResult, gate
from assay.audits.options import Options
from assay.audits.server import Server
from assay.audits.subject import subject
from assay.audits.terms import Candidate, Inexpressible, Operation, Outcome, Report


@dataclass(frozen=True, order=True)
class Key:
    """Which call: ``output`` is empty where all of it is meant."""

    operation: str
    candidate: str
    case: str
    output: str = ""


PACKAGES = re.compile(r"/[^\s'\"()]*/site-packages/")
"""Where an environment is: no difference between two of them, and nothing to store."""
Values = Mapping[Key, Tensor | str]
"""What each call returned, or in words how it ended."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One output that is another one: the first place where it differs, and both values there."""

    key: Key
    before: str
    after: str
    where: str
    largest: float | None = None
    """The largest difference of all elements; None where there is none to take."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """``verdicts`` are of findings, ``changes`` of what was returned; ``same`` counts outputs that are bit for bit."""

    verdicts: GateResult
    changes: tuple[Change, ...]
    same: int


def compare(base: Report, head: Report, before: Values | None = None, after: Values | None = None) -> Comparison:
    """Two reports, and what was returned in both if that is known."""
    changes = tuple(differences(before or {}, after or {}))
    shared = set(before or {}) & set(after or {})
    keys = {key for key in shared if not _inexpressible((before or {})[key])}  # what neither was asked is not the same
    return Comparison(verdicts=gate(base, head), changes=changes, same=len(keys - {change.key for change in changes}))


def differences(before: Values, after: Values) -> Iterator[Change]:
    """In the order of the keys. What only one side has differs too; what one could not be asked, does not."""
    mute = {replace(key, output="") for values in (before, after) for key in values if _inexpressible(values[key])}
    for key in sorted({*before, *after}):
        if replace(key, output="") in mute:
            continue
        change = _change(key, before.get(key, "absent"), after.get(key, "absent"))
        if change is not None:
            yield change


def _inexpressible(value: Tensor | str) -> bool:
    return isinstance(value, str) and value.startswith(f"{Inexpressible.__name__}: ")


def _change(key: Key, before: Tensor | str, after: Tensor | str) -> Change | None:
    if isinstance(before, str) or isinstance(after, str):
        told = before if isinstance(before, str) else _shape(before), after if isinstance(after, str) else _shape(after)
        return None if told[0] == told[1] else Change(key=key, before=told[0], after=told[1], where="")
    if before.shape != after.shape or before.dtype != after.dtype:
        return Change(key=key, before=_shape(before), after=_shape(after), where="")
    differs = (before != after) & ~(before.isnan() & after.isnan())  # a NaN is itself
    if not differs.any():
        return None
    first = tuple(int(i) for i in differs.nonzero()[0])
    values = (_number(before[first]), _number(after[first]))
    gap = float((before.double() - after.double()).abs()[differs].nan_to_num(torch.inf).max())
    where = f"[{', '.join(map(str, first))}]"
    return Change(key=key, before=values[0], after=values[1], where=where, largest=gap)


def _shape(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


def _number(value: Tensor) -> str:
    return f"{value.item():.6g}" if value.is_floating_point() else str(value.item())


def observed(request: Request, options: Options) -> Values:
    """What every foreign candidate of a request returns for its named cases, in the first dtype.

    Where ``options.python`` says. Our own are the same in every environment. BadUsage as for an audit.
    """
    found: dict[Key, Tensor | str] = {}
    with session.workers(request, options) as pool:
        work = session.planned(request, options, pool.describe)
        all_of_it = ((operation, session.elsewhere_too(candidate)) for operation, candidate, _ in work)
        foreign = [(operation, candidate) for operation, candidate in all_of_it if not candidate.trusted]
        parts: dict[int, dict[Key, Tensor | str]] = {}

        def one(place: int, server: Server) -> None:
            operation, candidate = foreign[place]
            parts[place] = dict(_returned(operation, candidate, options, server))

        pool.each(range(len(foreign)), one, (*session.MODELS, *session.preloaded(request)))
        for place in range(len(foreign)):
            found |= parts[place]
    return found


def _returned(
    operation: Operation, candidate: Candidate, options: Options, server: Server
) -> Iterator[tuple[Key, Tensor | str]]:
    dtype = getattr(torch, (options.dtypes or operation.dtypes)[0])
    chosen: Sequence[str] = options.cases or tuple(operation.cases)
    asked = subject(candidate, operation.differentiable, server, options.time_limit, operation.level)
    for name in chosen:
        params = replace(cases.parse(operation, name), **candidate.scope)
        if operation.supports(params) is not None:
            continue
        key = Key(operation.name, candidate.name, name)
        yield from _told(key, asked.call(operation.build(params, dtype, torch.device("cpu"))))
    if hasattr(asked, "close"):
        asked.close()


def _told(key: Key, outcome: Outcome) -> Iterator[tuple[Key, Tensor | str]]:
    if outcome.raised is not None:
        yield key, PACKAGES.sub("", f"{outcome.raised.kind}: {outcome.raised.message}")[:200]
    for name, value in outcome.values.items():
        yield replace(key, output=name), value
