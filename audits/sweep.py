"""Judges every installed family by the laws of one operation of whole models, and writes a table of what was found.

``python -m assay.audits.sweep masked_scatter.model [FAMILY...]``: ``docs/sweeps/masked_scatter.model.md`` for all of
them, which takes minutes, and the table alone for some. One process: what makes a family unbuildable is in its row.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from assay.audits import registry
from assay.audits.run import Options, audit
from assay.audits.terms import Finding, Report, Verdict

FOLDER = Path("docs/sweeps")


def judged(operation: str, name: str) -> Report:
    """The audit of one family as transformers has it, in this process. LookupError where the operation has no such."""
    candidate = registry.family_candidate(operation, name)
    if candidate is None:
        raise LookupError(f"{operation} has no family {name!r}")
    return audit(registry.operation(operation), replace(candidate, trusted=True), Options(examples=0))


def families(operation: str) -> Iterator[str]:
    """The installed families that have something to be judged."""
    return (name for name in registry.families() if registry.family_candidate(operation, name) is not None)


def table(operation: str, names: Iterable[str]) -> Iterator[str]:
    """A line of Markdown for each family, and how often each law was broken."""
    broken: Counter[str] = Counter()
    built = unknown = 0
    yield "| family | broken, or why it is not known |"
    yield "|---|---|"
    for name in names:
        report = judged(operation, name)
        reason = next((item.message for item in report.findings if item.verdict == Verdict.UNKNOWN), "")
        rules = sorted({_law(item) for item in report.findings if item.verdict == Verdict.FAIL})
        unknown += bool(reason)
        built += not reason
        broken.update(rules)
        yield f"| {name} | {f'UNKNOWN: {_short(reason)}' if reason else ', '.join(rules) or 'nothing'} |"
    yield ""
    counts = ", ".join(f"{law} {count}" for law, count in broken.most_common())
    yield f"{built} judged, {unknown} unknown. Broken: {counts or 'nothing'}."


def page(operation: str) -> str:
    """The table of all families with what it is of."""
    release = importlib.metadata.version("transformers")
    head = (
        f"# {operation} in every family",
        f"<!-- Written by `python -m assay.audits.sweep {operation}`. -->",
        f"Of transformers {release}: `assay audit {operation} --family NAME` for each.",
    )
    return "\n\n".join((*head, "\n".join(table(operation, families(operation))))) + "\n"


def _law(finding: Finding) -> str:
    return finding.rule.rpartition(".")[2]


def _short(reason: str) -> str:
    return " ".join(reason.replace("|", "/").split()).removeprefix("LookupError: ")[:140]


if __name__ == "__main__":
    asked, *some = sys.argv[1:]
    if some:
        sys.stdout.write("\n".join(table(asked, some)) + "\n")
    else:
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / f"{asked}.md").write_text(page(asked), encoding="utf-8")
