"""What faults and laws owe each other: each law that a fault names convicts it, and each law is named by a fault."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from assay.audits import matrix, registry
from assay.audits.terms import Fault


def check_convicts(fault: Fault) -> None:
    """The laws that a fault names catch it, asked for nothing but these."""
    assert set(fault.caught_by) <= matrix.caught(fault, fault.caught_by, enough=set(fault.caught_by).issubset)


WITHOUT_TENSORS = frozenset({"mutates"})
"""Laws that nothing can break where a call is words and numbers: the batch is made of them in the worker."""


def check_laws_have_faults(operation: str, but: AbstractSet[str] = frozenset()) -> None:
    """Every law that applies to an operation is named by one of its faults, but for these laws."""
    named = {law for fault in registry.faults(operation) for law in fault.caught_by}
    assert {law.name for law in matrix.applicable(registry.operation(operation))} - named - but == set()
