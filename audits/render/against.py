"""Two environments beside each other for a reader, in lines that are good Markdown and good text alike."""

from __future__ import annotations

from collections.abc import Iterator

from assay.audits.against import Change, Comparison
from assay.audits.render import comparison


def render(compared: Comparison) -> str:
    """What the gate says of both reports, then what was returned otherwise."""
    return comparison.render(compared.verdicts) + "\n" + "\n".join(_lines(compared)) + "\n"


def _lines(compared: Comparison) -> Iterator[str]:
    changes = compared.changes
    if not changes and not compared.same:
        yield "Only reports were compared: what was returned is not in them."
        return
    yield f"{compared.same} outputs are the same, bit for bit; {len(changes)} are not{':' if changes else '.'}"
    yield from ("", *(f"* {told(change)}" for change in changes)) if changes else ()


def told(change: Change) -> str:
    """One change in a line."""
    key = change.key
    name = " ".join(filter(None, (key.operation, key.candidate, key.case, key.output + change.where)))
    largest = "" if change.largest is None else f"; largest difference {change.largest:.3g}"
    return f"{name}: {change.before} became {change.after}{largest}"
