"""Every model with a broken loss is convicted by the laws its fault names; the one with a right loss is not."""

from __future__ import annotations

import pytest

from assay.audits import matrix, registry
from assay.audits.components.masked_loss import model_faults
from assay.audits.components.masked_loss.model import DEFAULT_FAMILY, NAME
from assay.audits.families import causal
from assay.audits.families.loss_run import LossModel, loaded
from assay.audits.run import Options, audit
from assay.audits.terms import Candidate, Fault, Verdict

FAULTS = registry.faults(NAME)

pytestmark = pytest.mark.skipif(
    isinstance(causal.family(DEFAULT_FAMILY), str), reason=f"this transformers has no {DEFAULT_FAMILY}"
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_named_law_convicts(fault: Fault) -> None:
    assert set(fault.caught_by) <= matrix.caught(fault, fault.caught_by, enough=set(fault.caught_by).issubset)


def test_every_law_of_a_model_must_catch_a_fault() -> None:
    named = {law for fault in FAULTS for law in fault.caught_by}
    assert {law.name for law in matrix.applicable(registry.operation(NAME))} - named - {"mutates"} == set()


def test_the_form_that_faults_are_made_of_is_right() -> None:
    LossModel(loaded(DEFAULT_FAMILY))  # what is imported with the first model sets variables of its own
    target = {"kind": "import", "ref": f"{model_faults.__name__}:clean", "operation": NAME}
    control = Candidate(operation=NAME, name="clean", target=target, trusted=True)
    report = audit(registry.operation(NAME), control, Options(examples=0))
    assert report.findings == ()
    assert report.verdict == Verdict.PASS
