"""Every wrong pipeline is convicted by the laws it names, and the right one that they are made from is not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fault_checks import WITHOUT_TENSORS, check_convicts, check_laws_have_faults

from assay.audits import registry
from assay.audits.components.pipeline import wrong
from assay.audits.laws.shared import MACHINE_RULES
from assay.audits.run import Options, audit
from assay.audits.server import Server
from assay.audits.session import MODELS
from assay.audits.terms import Candidate, Fault, Verdict

NAME = "pipeline.batch"
FAULTS = registry.faults(NAME)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_named_law_convicts(fault: Fault, one_thread: None) -> None:
    check_convicts(fault)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_an_entry_is_complete(fault: Fault) -> None:
    known = {law.name for law in registry.laws(NAME)} | set(MACHINE_RULES)
    assert set(fault.caught_by) <= known
    assert fault.why.endswith(".")
    assert fault.effect.endswith(".")
    assert fault.link


def test_every_law_has_a_fault() -> None:
    check_laws_have_faults(NAME, but=WITHOUT_TENSORS)


def test_there_are_enough_and_names_are_unique() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 12


def test_the_form_of_the_faults_is_right(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.setattr("assay.audits.resolve.implementation", lambda _target, _form: wrong.clean)
    clean = Candidate(operation=NAME, name="clean", target={}, trusted=True)
    report = audit(registry.operation(NAME), clean)
    assert report.findings == ()
    assert report.verdict == Verdict.PASS


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One worker for all pipelines of our own."""
    with Server(preload=MODELS) as running:
        yield running


FOUND = {
    "trainer-padded-qwen2-5-vl": {"micro"},
    "trainer-packed-qwen2-5-vl": {"micro"},
    "trainer-smoothed-qwen2-5-vl": {"loss", "micro"},
}
"""Findings of transformers: its Trainer hands Qwen2.5-VL no count of a step, and does not shift smoothed labels."""


@pytest.mark.parametrize("candidate", registry.candidates(NAME), ids=lambda candidate: candidate.name)
def test_own_pipelines_pass(server: Server, candidate: Candidate, one_thread: None) -> None:
    options = Options(cases=("all",), laws=tuple(law.name for law in registry.component("pipeline").laws))
    report = audit(registry.operation(NAME), candidate, options, server=server)
    assert {found.rule.rpartition(".")[2] for found in report.findings} == FOUND.get(candidate.name, set())
    assert report.exercised
