"""Who may be timed: installed, able to run here, and with a green audit of the very function that is timed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import torch

from assay.audits import registry
from assay.audits.run import Options, audit
from assay.audits.terms import Candidate, Finding, Verdict
from assay.benchmarks import machine, operations
from assay.benchmarks.nouns import Offer, Provider

LAWS = ("returns", "parity", "gradients")
"""What a function must pass before it is timed; the other laws cost more time than the comparison has.

An operation's ``NOTHING`` names cases in which there is nothing to do. Who fails there alone is timed, and it is said.
"""


def reason_absent(provider: Provider, offer: Offer) -> str:
    """Why a provider cannot answer here at all; empty where it can."""
    lacking = [name for name in provider.packages if not machine.version(name)]
    if lacking:
        return f"not installed: {', '.join(lacking)}"
    return "" if machine.place() in offer.devices else f"does not run on {machine.place()}"


def red(operation: str, provider: Provider, offer: Offer) -> tuple[str, str]:
    """What the audit of an offer says: why it is not timed, and what is wrong where there is nothing to do."""
    module = import_module(f"{operations.__name__}.{operation}")
    ordinary = tuple(case for case in registry.operation(module.AUDITED).cases if case not in module.NOTHING)
    ordinary = (*ordinary[: offer.cases or None], *offer.asked)
    if found := _said(module.AUDITED, provider, offer, ordinary, ordinary=True):
        return f"not timed, its audit is not green: {found}"[:300], ""
    found = "" if offer.cases else _said(module.AUDITED, provider, offer, module.NOTHING, ordinary=False)
    return "", f"timed, but wrong where there is nothing to do: {found}"[:300] if found else ""


def _said(name: str, provider: Provider, offer: Offer, cases: Sequence[str], *, ordinary: bool) -> str:
    """The first finding of the laws on some cases; empty where there is none. Each asks something of ordinary ones."""
    if not cases:
        return ""
    candidate = Candidate(
        operation=name, name=provider.name, form=offer.form, trusted=True,
        target={"kind": "import", "ref": offer.ref, "operation": name},
    )  # fmt: skip
    device = torch.device("cuda" if machine.place() == "cuda" else "cpu")
    dtype = str(machine.dtype_on(device)).removeprefix("torch.")
    options = Options(laws=LAWS, cases=tuple(cases), examples=0, device=device.type, dtypes=(dtype,))
    try:
        report = audit(registry.operation(name), candidate, options)
    except Exception as error:  # noqa: BLE001 - one that cannot be judged is not timed, and the others are
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    idle = [check.rule.rpartition(".")[2] for check in report.checks if not check.exercised]
    if idle and ordinary and not report.findings:
        return f"it took no case on which these could be asked: {', '.join(idle)}"
    if report.verdict <= Verdict.WAIVED:
        return ""
    return _told(report.findings[0]) if report.findings else report.verdict.name


def _told(finding: Finding) -> str:
    """In one line: the law, what it says, and by how much."""
    much = f"{finding.measured:.2g}" if isinstance(finding.measured, float) else finding.measured
    return f"{finding.rule.rpartition('.')[2]}: {finding.message}, {much}"
