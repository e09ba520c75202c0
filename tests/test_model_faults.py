"""Every broken model is convicted by the laws its fault names; the model that was not broken is not."""

from __future__ import annotations

import pytest

from assay.audits import matrix, registry
from assay.audits.components.mrope.model import DEFAULT_FAMILY, NAME
from assay.audits.families import discovery
from assay.audits.terms import Fault

FAULTS = registry.faults(NAME)

pytestmark = pytest.mark.skipif(
    isinstance(discovery.family(DEFAULT_FAMILY), str), reason=f"this transformers has no {DEFAULT_FAMILY}"
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_named_law_convicts(fault: Fault) -> None:
    assert set(fault.caught_by) <= matrix.caught(fault, fault.caught_by, enough=set(fault.caught_by).issubset)


def test_every_law_of_a_model_must_catch_a_fault() -> None:
    named = {law for fault in FAULTS for law in fault.caught_by}
    assert {law.name for law in matrix.applicable(registry.operation(NAME))} - named - {"mutates"} == set()


def test_the_model_that_was_not_broken_is_not_convicted() -> None:
    from assay.audits.families.run import implementation
    from assay.audits.run import Options, audit
    from assay.audits.terms import Candidate, Verdict

    assert callable(implementation)
    target = {"kind": "factory", "ref": "assay.audits.families.run:implementation", "family": DEFAULT_FAMILY}
    clean = Candidate(operation=NAME, name=DEFAULT_FAMILY, target=target, trusted=True)
    report = audit(registry.operation(NAME), clean, Options(cases=("images", "text"), examples=0))
    assert report.findings == ()
    assert report.verdict == Verdict.PASS
