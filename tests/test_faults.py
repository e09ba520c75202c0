"""Every fault is convicted by the laws it names, on the named cases alone, and what was not broken is not."""

from __future__ import annotations

import pytest

from assay.audits import matrix, registry
from assay.audits.components.mrope import position_faults, rotate_faults, rotate_kernel_faults
from assay.audits.components.mrope.positions import Inputs as Batch
from assay.audits.components.mrope.rotate import Inputs as Heads
from assay.audits.laws.shared import MACHINE_RULES
from assay.audits.run import Options, audit
from assay.audits.terms import Candidate, Fault, Outputs, Verdict

FAULTS = [fault for operation in matrix.audited() for fault in registry.faults(operation.name)]
LEAST_BLIND = 0.8
"""Share of the faults that the relations must convict without comparing anything with the reference."""


def _named(fault: Fault) -> str:
    return f"{fault.operation}.{fault.name}"


def _own_laws(fault: Fault) -> list[str]:
    """Laws with power of their own; where the entry names machine rules only, any law makes the calls."""
    return [law.name for law in registry.laws(fault.operation) if law.name not in matrix.BY_COMPARISON]


def _blindly(fault: Fault) -> bool:
    """Whether a law convicts a fault without a look at the reference. The laws that its entry names are asked first."""
    every = _own_laws(fault)
    named = [name for name in fault.caught_by if name in every]
    return any(matrix.caught(fault, laws, enough=bool) - {"checker-failed"} for laws in (named, every) if laws)


@pytest.mark.parametrize("fault", FAULTS, ids=_named)
def test_each_named_law_convicts(fault: Fault) -> None:
    laws = [name for name in fault.caught_by if name not in MACHINE_RULES] or ["returns"]
    found = matrix.caught(fault, laws, enough=set(fault.caught_by).issubset)
    assert set(fault.caught_by) <= found


@pytest.mark.parametrize("fault", FAULTS, ids=_named)
def test_an_entry_is_complete(fault: Fault) -> None:
    known = {law.name for law in registry.laws(fault.operation)} | set(MACHINE_RULES)
    assert fault.caught_by
    assert set(fault.caught_by) <= known
    assert set(fault.caught_by) - {"parity"}, "name a law that tells what kind of fault it is"
    assert fault.why.endswith(".")
    assert fault.effect.endswith(".")
    assert fault.link


def test_names_are_unique() -> None:
    names = [_named(fault) for fault in FAULTS]
    assert len(set(names)) == len(names)


@pytest.mark.slow
def test_relations_convict_without_the_reference() -> None:
    missed = [_named(fault) for fault in FAULTS if not _blindly(fault)]
    print(f"{len(FAULTS)} faults; convicted only by comparison with the reference:", *missed, sep="\n  ")
    assert len(missed) <= (1 - LEAST_BLIND) * len(FAULTS)


def nothing_wrong_by_hand(inputs: Heads) -> Outputs:
    """The kernel faults' form with its right backward."""
    return rotate_kernel_faults.by_hand(inputs)


def nothing_wrong_by_channel(inputs: Heads) -> Outputs:
    """The section faults' form with the list of sections repeated, as it should be."""
    return rotate_faults.by_channel(inputs, list(inputs.sections) * 2)


def nothing_wrong_numbered(inputs: Batch) -> Outputs:
    """The position faults' form with no step replaced."""
    return position_faults.numbered(inputs)


@pytest.mark.parametrize(
    ("operation", "form"),
    [
        ("mrope.rotate", "nothing_wrong_by_hand"),
        ("mrope.rotate", "nothing_wrong_by_channel"),
        ("mrope.positions", "nothing_wrong_numbered"),
    ],
)
def test_the_forms_that_faults_are_made_of_are_right(operation: str, form: str) -> None:
    target = {"kind": "import", "ref": f"{__name__}:{form}", "operation": operation}
    control = Candidate(operation=operation, name=form, target=target, trusted=True)
    report = audit(registry.operation(operation), control, Options(examples=0))
    assert report.findings == ()
    assert report.verdict == Verdict.PASS


@pytest.mark.parametrize("operation", sorted({fault.operation for fault in FAULTS}))
def test_the_reference_is_not_convicted(operation: str) -> None:
    reference = next(item for item in registry.candidates(operation) if item.name == "reference")
    report = audit(registry.operation(operation), reference, Options(examples=0))
    assert report.findings == ()
    assert report.verdict == Verdict.PASS
