"""Puts what a checked step showed to the guard's laws, live or from a file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from assay.audits import guard_batch_laws, guard_step_laws
from assay.audits.guard_terms import Found, Live
from assay.audits.terms import Evidence, Inexpressible

NAME = "guard"
LAWS: Mapping[str, Callable[[Live], Iterable[Evidence]]] = {
    f"{NAME}.{law.__name__}": law
    for law in (
        guard_batch_laws.features,
        guard_batch_laws.positions,
        guard_batch_laws.targets,
        guard_batch_laws.share,
        guard_batch_laws.boundaries,
        guard_step_laws.items,
        guard_step_laws.loss,
        guard_step_laws.reached,
        guard_step_laws.stepped,
    )
}
"""By rule."""


@dataclass(frozen=True)
class Judgement:
    """What was found, and by rule why a law had nothing to ask. ``failed``: laws that broke down themselves."""

    findings: tuple[Found, ...]
    unasked: Mapping[str, str]
    failed: Mapping[str, str]


def judged(live: Live) -> Judgement:
    """Every law, each at most with its first few findings. Nothing is raised: a broken law is no broken training."""
    found: list[Found] = []
    unasked, failed = {}, {}
    for rule, law in LAWS.items():
        try:
            found += [_found(rule, evidence) for evidence in law(live)]
        except Inexpressible as reason:
            unasked[rule] = str(reason)
        except Exception as error:  # noqa: BLE001 - a batch of a kind that nobody thought of must not end a training
            failed[rule] = f"{type(error).__name__}: {error}"
    return Judgement(tuple(found), unasked, failed)


def _found(rule: str, evidence: Evidence) -> Found:
    return Found(
        rule=rule, message=evidence.message, where=evidence.where, measured=evidence.measured, limit=evidence.limit,
        index=evidence.index,
    )  # fmt: skip


def pages() -> dict[str, str]:
    """The manual page of each rule."""
    return {rule: f"{rule}\n\n{inspect.cleandoc(law.__doc__ or '')}" for rule, law in LAWS.items()}
