"""The manual: a page for each rule, law, fault, operation and component, written by their own docstrings."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Iterator, Mapping

from assay.audits import guard_judge, registry
from assay.audits.terms import Component, Exact, Fault, Law, Numeric, Operation, Report
from assay.audits.usage import BadUsage

DOORS = {
    "waiver.expired": """A waiver's date has not passed.

Why: an accepted finding is a debt with a date. When the date has passed somebody must look again: mend what the
waiver covers, or renew it with a reason.""",
    "waiver.stale": """A waiver still matches something.

Why: a waiver for what has been mended accepts the next break of the same law in silence. It is stale when checks of
its rule and candidate were exercised and none of their findings matched; a narrowed run cannot tell.""",
}
"""Pages of the rules that come neither from a law nor from the judge."""


def page(name: str) -> str:
    """The manual page of a rule, law, fault, operation or component. BadUsage names close matches."""
    pages = dict(_everything())
    for wanted in (name, name.rpartition(".")[2]):
        found = [text for key, text in pages.items() if key == wanted or ("." in key and key.endswith(f".{wanted}"))]
        if found:
            return "\n\n".join(_told_once(found))
    close = difflib.get_close_matches(name, list(pages), n=5, cutoff=0.4)
    tail = f"; did you mean {', '.join(close)}?" if close else ""
    message = (
        f"no rule, law, fault, operation or component named {name!r}{tail or ';'} `assay list` shows what there is"
    )
    raise BadUsage(message)


def _told_once(found: list[str]) -> Iterator[str]:
    """Pages that differ in their first line alone, the name, become one page with all the names."""
    names: dict[str, list[str]] = {}
    for text in found:
        name, _, body = text.partition("\n")
        names.setdefault(body, []).append(name)
    yield from (f"{', '.join(heads)}\n{body}".rstrip() for body, heads in names.items())


def pages(report: Report) -> Mapping[str, str]:
    """The pages of a report's rules, as far as there are any."""
    rules = {check.rule for check in report.checks} | {finding.rule for finding in report.findings}
    known = dict(_laws()) | DOORS
    machine = _machine()
    found = {rule: known.get(rule) or machine.get(rule.rpartition(".")[2], "") for rule in sorted(rules)}
    return {rule: text for rule, text in found.items() if text}


def _machine() -> Mapping[str, str]:
    from assay.audits.laws.shared import MACHINE_RULES

    return {name: inspect.cleandoc(text) for name, text in MACHINE_RULES.items()}


def _laws() -> Iterator[tuple[str, str]]:
    for name in registry.operations():
        for law in registry.laws(name):
            yield f"{name}.{law.name}", inspect.cleandoc(law.doc)


def _everything() -> Iterator[tuple[str, str]]:
    """Name to page. Names of two kinds may end alike: then both pages are shown."""
    yield from DOORS.items()
    yield from guard_judge.pages().items()
    for name, text in _machine().items():
        yield name, f"{name}\n\n{text}"
    for room in registry.components():
        yield room.name, _component(room)
        for operation in room.operations:
            yield operation.name, _operation(operation)
            for law in registry.laws(operation.name):
                yield f"{operation.name}.{law.name}", _law(operation, law)
            for fault in registry.faults(operation.name):
                yield f"{operation.name}.{fault.name}", _fault(fault)


def _component(room: Component) -> str:
    return _joined(f"{room.name}: {room.summary}", "Operations", [f"{o.name}  {o.summary}" for o in room.operations])


def _operation(operation: Operation) -> str:
    further = f" (on request: {', '.join(operation.further_dtypes)})" if operation.further_dtypes else ""
    kinds = {Exact: "one right answer", Numeric: "a float64 truth and the ordinary form's error"}
    return _joined(
        f"{operation.name}: {operation.summary}\n\nCompared with: {kinds.get(type(operation.expect), 'laws alone')}."
        f"\nOutputs: {', '.join(operation.outputs)}. Dtypes: {', '.join(operation.dtypes) or 'none'}{further}.",
        "Call forms",
        [f"{form.name}({', '.join(form.parameters)})  {form.summary}" for form in operation.forms],
        "Cases",
        list(operation.cases),
        "Laws",
        [f"{law.name}  {law.summary}" for law in registry.laws(operation.name)],
        *(part for title, lines in operation.manual().items() for part in (title, list(lines))),
    )


def _law(operation: Operation, law: Law) -> str:
    caught = [fault.name for fault in registry.faults(operation.name) if law.name in fault.caught_by]
    return _joined(f"{operation.name}.{law.name}\n\n{inspect.cleandoc(law.doc)}", "Faults it must catch", caught)


def _fault(fault: Fault) -> str:
    parts = (
        f"{fault.operation}.{fault.name}, a known fault",
        f"Why: {fault.why}",
        f"Effect: {fault.effect}",
        f"Where it happened: {', '.join((fault.link, *fault.also))}",
        f"Caught by: {', '.join(fault.caught_by)}",
    )
    return "\n".join(parts)


def _joined(head: str, *parts: str | list[str]) -> str:
    text = head
    for title, lines in zip(parts[::2], parts[1::2], strict=True):
        if lines:
            text += f"\n\n{title}:\n" + "\n".join(f"  {line}" for line in lines)
    return text


Row = tuple[str, str]


def catalogue(kind: str) -> list[Row]:
    """What there is of ``components``, ``operations``, ``laws``, ``faults`` or ``families``, each with what it is."""
    kinds = {
        "components": lambda: ((room.name, room.summary) for room in registry.components()),
        "operations": lambda: ((operation.name, operation.summary) for operation in registry.operations().values()),
        "laws": _law_rows,
        "faults": _fault_rows,
        "families": _family_rows,
    }
    return list(kinds[kind]())


def _law_rows() -> Iterable[Row]:
    for name in registry.operations():
        yield from ((f"{name}.{law.name}", law.summary) for law in registry.laws(name))


def _fault_rows() -> Iterable[Row]:
    for name in registry.operations():
        yield from ((f"{name}.{fault.name}", fault.why.partition("\n")[0]) for fault in registry.faults(name))


def _family_rows() -> Iterable[Row]:
    return registry.families().items()
