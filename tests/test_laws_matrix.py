"""Every law convicts at least one fault, and the published table of laws and faults is that of this code."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fault_checks import check_laws_have_faults

from assay.audits import matrix, registry
from assay.audits.terms import Operation

PAGE = Path(__file__).parents[1] / "docs" / "matrix.md"


def _name(operation: Operation) -> str:
    return operation.name


@pytest.mark.parametrize("operation", matrix.audited(), ids=_name)
def test_every_law_that_applies_must_catch_a_fault(operation: Operation) -> None:
    """`test_faults` shows that the laws an entry names do catch it."""
    check_laws_have_faults(operation.name)


@pytest.mark.parametrize("operation", matrix.audited(), ids=_name)
def test_the_published_table_has_every_fault_and_law(operation: Operation) -> None:
    lines = PAGE.read_text(encoding="utf-8").partition(f"## {operation.name}\n")[2].partition("\n## ")[0].splitlines()
    head = next(line for line in lines if line.startswith("| fault |"))
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    rows = {line.split("|")[1].strip(): line.split("|")[1:-1] for line in lines if "●" in line}
    assert {law.name for law in matrix.applicable(operation)} <= set(columns)
    assert set(rows) == {fault.name for fault in registry.faults(operation.name)}
    for fault in registry.faults(operation.name):
        marked = {name for name, cell in zip(columns, rows[fault.name], strict=True) if cell.strip() == "●"}
        assert marked == set(fault.caught_by), fault.name


def test_a_page_says_what_nothing_catches() -> None:
    table = matrix.Table(
        operation="a.b",
        laws=("parity", "norm", "tail"),
        named={"seen": ("norm",), "compared": ("parity",)},
        rows={"seen": frozenset({"norm", "parity"}), "compared": frozenset({"parity"})},
    )
    text = matrix.page([table])
    assert "| seen | ○ | ● |  |" in text
    assert "comparison with the reference: compared." in text
    assert "catch no fault: tail." in text


def test_one_section_is_made_anew_and_the_others_are_kept() -> None:
    text = PAGE.read_text(encoding="utf-8")
    table = matrix.Table(operation="mrope.tables", laws=("x",), named={"f": ("x",)}, rows={"f": frozenset({"x"})})
    changed = matrix.updated(text, [table])
    assert "## mrope.tables\n\n1 faults, 1 laws." in changed
    others = [part for part in text.split("## ") if not part.startswith("mrope.tables")]
    assert [part for part in changed.split("## ") if not part.startswith("mrope.tables")] == others
    assert matrix.updated(text, []) == text


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif("ASSAY_EXAMPLES" not in os.environ, reason="minutes: set ASSAY_EXAMPLES")
def test_the_published_table_is_up_to_date() -> None:
    assert matrix.page(matrix.tables()) == PAGE.read_text(encoding="utf-8")
