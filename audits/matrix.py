"""Which law catches which fault: every fault put to every law, on the named cases, as a table.

``python -m assay.audits.matrix`` prints the page; ``python -m assay.audits.matrix docs/matrix.md`` writes it. Names of
operations after the file make the sections of these anew and keep the others.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from assay.audits import registry
from assay.audits.laws.shared import COMPARISONS, MACHINE_RULES
from assay.audits.run import Options, audit
from assay.audits.terms import Candidate, Fault, Law, Operation, Report, Verdict

BY_COMPARISON = COMPARISONS

Row = frozenset[str]
"""The rules by which one fault was convicted."""


@dataclass(frozen=True)
class Table:
    """One operation: the laws that can be exercised on it, and what convicts each of its faults."""

    operation: str
    laws: tuple[str, ...]
    named: Mapping[str, Collection[str]]
    rows: Mapping[str, Row]


def candidate(fault: Fault) -> Candidate:
    """A fault as a candidate."""
    target = {"kind": "fault", "operation": fault.operation, "name": fault.name}
    return Candidate(operation=fault.operation, name=f"fault:{fault.name}", target=target, trusted=True)


def convicted(report: Report) -> Row:
    """The last part of each rule that failed."""
    return frozenset(item.rule.rpartition(".")[2] for item in report.findings if item.verdict == Verdict.FAIL)


def caught(fault: Fault, laws: Collection[str], enough: Callable[[Row], bool]) -> Row:
    """Put named cases to a fault one by one until ``enough`` says so: the rules that have convicted it by then."""
    operation, found = registry.operation(fault.operation), Row()
    for case in operation.cases:
        for dtype in operation.dtypes:
            left = tuple(sorted(set(laws) - found)) or tuple(sorted(laws))
            options = Options(laws=left, cases=(case,), dtypes=(dtype,), examples=0)
            found |= convicted(audit(operation, candidate(fault), options))
            if enough(found):
                return found
    return found


def applicable(operation: Operation) -> tuple[Law, ...]:
    """The laws that say something about at least one named case."""
    cases = [case for case in operation.cases.values() if operation.supports(case) is None]
    laws = registry.laws(operation.name)
    return tuple(law for law in laws if any(law.applies(operation, case) is None for case in cases))


def convicts_by(fault: Fault) -> Row:
    """All rules that convict a fault on the named cases."""
    return convicted(audit(registry.operation(fault.operation), candidate(fault), Options(examples=0)))


def audited() -> tuple[Operation, ...]:
    """The operations of functions that have faults. Faults of whole models change the process: they have own tests."""
    known = registry.operations().values()
    return tuple(found for found in known if found.level == "function" and registry.faults(found.name))


def tables(names: Collection[str] = ()) -> tuple[Table, ...]:
    """Operations that have faults, all unless named. Faults keep state: each row is made once, in fresh processes."""
    wanted = [operation for operation in audited() if not names or operation.name in names]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        return tuple(_table(operation, pool.map(_row, _keys(operation))) for operation in wanted)


def _keys(operation: Operation) -> list[tuple[str, str]]:
    return [(operation.name, fault.name) for fault in registry.faults(operation.name)]


def _row(key: tuple[str, str]) -> Row:
    return convicts_by(registry.fault(*key))


def _table(operation: Operation, rows: Iterable[Row]) -> Table:
    faults = registry.faults(operation.name)
    return Table(
        operation=operation.name,
        laws=tuple(law.name for law in applicable(operation)),
        named={fault.name: fault.caught_by for fault in faults},
        rows=dict(zip((fault.name for fault in faults), rows, strict=True)),
    )


MARK = "## "
HEAD = """# Which law catches which fault

Made by `python -m assay.audits.matrix docs/matrix.md` from the named cases alone. `●`: the fault's entry names the law,
which must catch it. `○`: the law catches it too. `assay explain NAME` shows the page of a law or a fault.
"""


def page(found: Sequence[Table]) -> str:
    """The tables as Markdown."""
    return "\n".join([HEAD, *(_section(table) for table in found)])


def updated(text: str, found: Sequence[Table]) -> str:
    """A page with these operations' sections made anew, in the order of the operations."""
    parts = [f"{MARK}{part.rstrip()}\n" for part in text.split(MARK)[1:]]
    sections = {part.removeprefix(MARK).partition("\n")[0]: part for part in parts}
    sections |= {table.operation: _section(table) for table in found}
    return "\n".join([HEAD, *(sections[operation.name] for operation in audited() if operation.name in sections)])


def _section(table: Table) -> str:
    machine = sorted(set().union(*table.rows.values()) & set(MACHINE_RULES) - {"checker-failed"})
    columns = [*table.laws, *machine]
    lines = [
        f"{MARK}{table.operation}",
        "",
        f"{len(table.rows)} faults, {len(table.laws)} laws.",
        "",
        f"| fault | {' | '.join(columns)} |",
        f"|---|{':-:|' * len(columns)}",
        *(f"| {name} | {' | '.join(_cell(table, name, law) for law in columns)} |" for name in table.rows),
        "",
        f"Caught only by comparison with the reference: {_listed(only_compared(table))}.",
        "",
        f"Laws that catch no fault: {_listed(idle(table))}.",
        "",
    ]
    return "\n".join(lines)


def _cell(table: Table, fault: str, law: str) -> str:
    if law not in table.rows[fault]:
        return ""
    return "●" if law in table.named[fault] else "○"


def only_compared(table: Table) -> list[str]:
    """Faults that nothing but a comparison with the reference convicts."""
    return [name for name, row in table.rows.items() if row <= BY_COMPARISON]


def idle(table: Table) -> list[str]:
    """Laws that convict no fault."""
    return [law for law in table.laws if not any(law in row for row in table.rows.values())]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def main(arguments: Sequence[str]) -> None:
    """Print the page, or write it to the path given; of the operations named alone, if some are."""
    if not arguments:
        sys.stdout.write(page(tables()))
        return
    path, names = Path(arguments[0]), arguments[1:]
    found = tables(names)
    text = updated(path.read_text(encoding="utf-8"), found) if names else page(found)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
