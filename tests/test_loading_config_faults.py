"""Every wrong way of loading and every wrong configuration is convicted by the laws it names; ours are not."""

from __future__ import annotations

import dataclasses

import pytest
from fault_checks import WITHOUT_TENSORS, check_convicts, check_laws_have_faults

from assay.audits import registry
from assay.audits.laws.shared import MACHINE_RULES
from assay.audits.run import Options, audit
from assay.audits.terms import Candidate, Fault, Verdict

NAMES = ("loading.paths", "loading.quantisation", "config.tasks", "config.knobs")
FAULTS = [fault for name in NAMES for fault in registry.faults(name)]
OWN = [item for name in NAMES for item in registry.candidates(name) if not item.by_name]


def _named(fault: Fault) -> str:
    return f"{fault.operation}.{fault.name}"


@pytest.mark.parametrize("fault", FAULTS, ids=_named)
def test_each_named_law_convicts(fault: Fault, one_thread: None) -> None:
    check_convicts(fault)


@pytest.mark.parametrize("fault", FAULTS, ids=_named)
def test_an_entry_is_complete(fault: Fault) -> None:
    known = {law.name for law in registry.laws(fault.operation)} | set(MACHINE_RULES)
    assert set(fault.caught_by) <= known
    assert fault.why.endswith(".")
    assert fault.effect.endswith(".")
    assert fault.link


@pytest.mark.parametrize("name", NAMES)
def test_every_law_has_a_fault(name: str) -> None:
    check_laws_have_faults(name, but=WITHOUT_TENSORS)


def test_names_are_unique() -> None:
    assert len({_named(fault) for fault in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize("candidate", OWN, ids=lambda candidate: f"{candidate.operation}.{candidate.name}")
def test_ours_pass(candidate: Candidate, one_thread: None) -> None:
    report = audit(registry.operation(candidate.operation), dataclasses.replace(candidate, trusted=True), Options())
    assert report.findings == ()
    assert report.verdict == Verdict.PASS


@pytest.mark.parametrize(
    ("package", "name"),
    [("bitsandbytes", "bitsandbytes-nf4"), ("bitsandbytes", "bitsandbytes-int8"), ("torchao", "torchao-int8")],
)
def test_libraries_quantise_as_requested(package: str, name: str, one_thread: None) -> None:
    """Where they are installed; the default environment has none of them."""
    pytest.importorskip(package)
    candidate = next(item for item in registry.candidates("loading.quantisation") if item.name == name)
    report = audit(registry.operation("loading.quantisation"), dataclasses.replace(candidate, trusted=True), Options())
    assert report.findings == ()
