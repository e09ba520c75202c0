"""Judges every installed family that puts features into text embeddings, and prints a table of what was found.

``python -m assay.audits.components.masked_scatter.sweep [FAMILY...]``: one process, a minute or two for all.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator

from assay.audits.components.masked_scatter import model, model_laws
from assay.audits.families import scattering
from assay.audits.run import Options, audit
from assay.audits.terms import Candidate, Finding, Report, Verdict


def judged(name: str) -> Report:
    """The audit of one family's forward, in this process."""
    target = {"kind": "factory", "ref": model.FACTORY, "family": name}
    candidate = Candidate(operation=model.NAME, name=name, target=target, trusted=True, scope={"family": name})
    return audit(model.OPERATION, candidate, Options(examples=0))


def table(names: Iterable[str]) -> Iterator[str]:
    """A line of Markdown for each family, and how often each law was broken."""
    broken: Counter[str] = Counter()
    built = unknown = 0
    yield "| family | broken, or why it is not known |"
    yield "|---|---|"
    for name in names:
        report = judged(name)
        reason = next((item.message for item in report.findings if item.verdict == Verdict.UNKNOWN), "")
        rules = sorted({_law(item) for item in report.findings if item.verdict == Verdict.FAIL})
        unknown += bool(reason)
        built += not reason
        broken.update(rules)
        yield f"| {name} | {f'UNKNOWN: {_short(reason)}' if reason else ', '.join(rules) or 'nothing'} |"
    yield ""
    counts = ", ".join(f"{law.name} {broken[law.name]}" for law in model_laws.LAWS if broken[law.name])
    yield f"{built} judged, {unknown} unknown. Broken: {counts or 'nothing'}."


def _law(finding: Finding) -> str:
    return finding.rule.rpartition(".")[2]


def _short(reason: str) -> str:
    return " ".join(reason.replace("|", "/").split()).removeprefix("LookupError: ")[:140]


if __name__ == "__main__":
    for line in table(sys.argv[1:] or scattering.installed_families()):
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
