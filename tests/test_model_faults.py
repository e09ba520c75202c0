"""Every model that is broken, or whose loss is, is convicted by the laws its fault names; those in order are not."""

from __future__ import annotations

import pytest
from fault_checks import WITHOUT_TENSORS, check_convicts, check_laws_have_faults

from assay.audits import registry
from assay.audits.components.masked_loss import model as loss
from assay.audits.components.masked_loss import model_faults
from assay.audits.components.mrope import model as positions
from assay.audits.families import causal, discovery
from assay.audits.families.loss_run import LossModel, loaded
from assay.audits.run import Options, audit
from assay.audits.terms import Candidate, Fault, Verdict

FAMILIES = {
    positions.NAME: discovery.family(positions.DEFAULT_FAMILY),
    loss.NAME: causal.family(loss.DEFAULT_FAMILY),
}
"""The family that the faults of an operation break, or why this transformers has none."""
NEEDS = {
    name: pytest.mark.skipif(isinstance(family, str), reason=f"no default family of {name}: {family}")
    for name, family in FAMILIES.items()
}
FAULTS = [pytest.param(fault, id=fault.name, marks=NEEDS[name]) for name in FAMILIES for fault in registry.faults(name)]


@pytest.mark.parametrize("fault", FAULTS)
def test_each_named_law_convicts(fault: Fault) -> None:
    check_convicts(fault)


@pytest.mark.parametrize("name", [pytest.param(name, marks=NEEDS[name]) for name in FAMILIES])
def test_every_law_of_a_model_must_catch_a_fault(name: str) -> None:
    check_laws_have_faults(name, but=WITHOUT_TENSORS)


@NEEDS[positions.NAME]
def test_the_model_that_was_not_broken_is_not_convicted() -> None:
    from assay.audits.families.run import implementation

    assert callable(implementation)
    family = positions.DEFAULT_FAMILY
    target = {"kind": "factory", "ref": "assay.audits.families.run:implementation", "family": family}
    clean = Candidate(operation=positions.NAME, name=family, target=target, trusted=True)
    report = audit(registry.operation(positions.NAME), clean, Options(cases=("images", "text"), examples=0))
    assert report.findings == ()
    assert report.verdict == Verdict.PASS


@NEEDS[loss.NAME]
def test_the_form_that_faults_are_made_of_is_right() -> None:
    LossModel(loaded(loss.DEFAULT_FAMILY))  # what is imported with the first model sets variables of its own
    target = {"kind": "import", "ref": f"{model_faults.__name__}:clean", "operation": loss.NAME}
    control = Candidate(operation=loss.NAME, name="clean", target=target, trusted=True)
    report = audit(registry.operation(loss.NAME), control, Options(examples=0))
    assert report.findings == ()
    assert report.verdict == Verdict.PASS
