"""Lists the folders: components with their operations, laws and faults; families; outputs. A new one is a new file."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType

from assay.audits import components as _components
from assay.audits.terms import Candidate, Component, Fault, Form, Law, Operation


class Unknown(LookupError):
    """No such component, operation, law, fault or form; the message names those that exist."""


def _missing(what: str, name: str, known: list[str]) -> Unknown:
    return Unknown(f"no {what} named {name!r}; there are: {', '.join(sorted(known)) or 'none'}")


def _load(component: str, part: str) -> ModuleType:
    return importlib.import_module(f"assay.audits.components.{component}.{part}")


@functools.cache
def component_names() -> tuple[str, ...]:
    """The rooms of the house, by folder."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(_components.__path__) if m.ispkg))


@functools.cache
def component(name: str) -> Component:
    """One room, loaded."""
    if name not in component_names():
        raise _missing("component", name, list(component_names()))
    operations = _load(name, "operations")
    return Component(
        name=name,
        summary=str(operations.__doc__).partition("\n")[0],
        operations=tuple(operations.OPERATIONS),
        laws=tuple(_load(name, "laws").LAWS),
        faults=tuple(_load(name, "faults").FAULTS),
    )


def components() -> tuple[Component, ...]:
    """Every room."""
    return tuple(component(name) for name in component_names())


def operations() -> Mapping[str, Operation]:
    """Every operation by name."""
    return {operation.name: operation for room in components() for operation in room.operations}


def operation(name: str) -> Operation:
    """One operation. :class:`Unknown` names those that exist."""
    room = name.partition(".")[0]
    known = {op.name: op for op in component(room).operations} if room in component_names() else operations()
    if name not in known:
        raise _missing("operation", name, list(operations()))
    return known[name]


def laws(operation_name: str) -> tuple[Law, ...]:
    """The laws that judge an operation: shared ones first, then its component's own."""
    from assay.audits.laws import shared

    found = operation(operation_name)
    own = component(found.component).laws
    return tuple(law for law in (*shared.laws(found), *own) if operation_name in law.operations)


def faults(operation_name: str) -> tuple[Fault, ...]:
    """The known wrong forms of an operation."""
    found = operation(operation_name)
    return tuple(fault for fault in component(found.component).faults if fault.operation == operation_name)


def fault(operation_name: str, name: str) -> Fault:
    """One fault by name."""
    known = {item.name: item for item in faults(operation_name)}
    if name not in known:
        raise _missing("fault", name, list(known))
    return known[name]


def form(operation_name: str, name: str) -> Form:
    """One call form of an operation."""
    known = {item.name: item for item in operation(operation_name).forms}
    if name not in known:
        raise _missing("call form", name, list(known))
    return known[name]


def candidates(operation_name: str) -> tuple[Candidate, ...]:
    """What the project itself offers for an operation: its reference and its kernels."""
    found = operation(operation_name)
    offered = getattr(_load(found.component, "operations"), "CANDIDATES", ())
    return tuple(item for item in offered if item.operation == operation_name)


def family_candidate(operation_name: str, family: str, patch: str = "") -> Candidate | None:
    """What a family of the installed transformers offers for an operation; None where that is nothing.

    ``patch`` is ``package.module:apply`` of a user's patch, empty for the model as it is.
    """
    found = operation(operation_name)
    offered = getattr(_load(found.component, "operations"), "family_candidate", None)
    candidate: Candidate | None = offered(operation_name, family, patch) if offered else None
    return candidate


def pipeline_candidate(operation_name: str, ref: str) -> Candidate | None:
    """What an operation judges of the pipeline that ``package.module:make`` returns; None where that is nothing."""
    found = operation(operation_name)
    offered = getattr(_load(found.component, "operations"), "pipeline_candidate", None)
    candidate: Candidate | None = offered(operation_name, ref) if offered else None
    return candidate


def on_request(candidate: Candidate) -> bool:
    """Whether a family's candidate is audited only where the family is asked for by name."""
    offered = getattr(_load(operation(candidate.operation).component, "operations"), "on_request", None)
    return bool(offered and offered(candidate))


def families() -> Mapping[str, str]:
    """Every family of the installed transformers that a component knows: which components audit it, and why others not.

    A family that a component audits may still turn out not to have a tiny model: it is UNKNOWN then, with the reason.
    """
    known: dict[str, dict[str, str]] = {}
    for room in component_names():
        for name, reason in getattr(_load(room, "operations"), "families", dict)().items():
            known.setdefault(name, {})[room] = reason.removeprefix(f"{name}: ")
    return {name: _audited_by(rooms) for name, rooms in sorted(known.items())}


def _audited_by(rooms: Mapping[str, str]) -> str:
    judged = ", ".join(room for room, reason in rooms.items() if not reason)
    return "; ".join([*filter(None, [judged]), *(f"{room}: UNKNOWN, {why}" for room, why in rooms.items() if why)])
