"""From a command line to the audits it asks for: forms, names, and what is said when something does not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from assay.audits import choose, findings, registry
from assay.audits.choose import Request, UsageError, plan
from assay.audits.families import discovery
from assay.audits.findings import Broke
from assay.audits.options import Options
from assay.audits.terms import Candidate, Evidence

OPERATION = registry.operation("mrope.rotate")
BROKE = Broke(
    rule="parity", law="parity", case="text", dtype="int64",
    evidence=Evidence(where="y", measured=1.0, limit=0.5, message="wrong"),
)  # fmt: skip


def describing(*parameters: str) -> Callable[[str], tuple[str, ...]]:
    """A reader of signatures that always reads the same one."""
    return lambda _ref: parameters


def never(ref: str) -> tuple[str, ...]:
    """A reader of signatures that must not be asked."""
    raise AssertionError(ref)


def only(request: Request, describe: choose.Describe = never) -> Candidate:
    """The one candidate that a request names."""
    ((_, candidate),) = plan(request, describe)
    return candidate


@pytest.mark.parametrize("operation", ["mrope.rotate", "mrope.positions"])
def test_each_form_is_recognised_by_its_own_parameters(operation: str) -> None:
    """A form that no signature leads to could only be asked for by name."""
    for form in registry.operation(operation).forms:
        request = Request(targets=(operation,), candidate="m:f")
        assert only(request, describing(*form.parameters, "unsqueeze_dim")).form == form.name


@pytest.mark.parametrize(
    ("parameters", "form"),
    [
        (("q", "k", "cos", "sin", "unsqueeze_dim"), "hf-5.17"),
        (("q", "k", "cos", "sin", "position_ids", "unsqueeze_dim"), "hf-5.17"),
        (("q", "k", "cos", "sin", "mrope_section", "unsqueeze_dim"), "hf-4.57"),
        (("self", "sin", "cos", "k", "q"), "hf-5.17"),
    ],
)
def test_the_most_particular_form_wins(parameters: tuple[str, ...], form: str) -> None:
    """In whatever order, with whatever else."""
    assert only(Request(targets=("mrope.rotate",), candidate="m:f"), describing(*parameters)).form == form


@pytest.mark.parametrize(
    ("parameters", "why", "names"),
    [
        ((), "fits no call form by its parameter names", "all"),
        (("x", "freqs"), "fits no call form by its parameter names", "all"),
        (
            ("q", "k", "cos", "sin", "mrope_section", "pairing", "rotary_dim"), "fits several call forms",
            ("hf-4.57", "assay"),
        ),
        (("q", "k", "cos", "sin", "positions", "inv_freq"), "fits several call forms", ("hf-5.17", "assay-positions")),
        (None, "has no signature to recognise", "all"),
    ],
)  # fmt: skip
def test_a_doubt_names_the_forms(parameters: tuple[str, ...] | None, why: str, names: Any) -> None:
    """And only those in question."""
    with pytest.raises(UsageError) as caught:
        plan(Request(targets=("mrope.rotate",), candidate="m:f"), lambda _ref: parameters)
    lines = str(caught.value).splitlines()
    assert why in lines[0]
    assert "--form" in lines[0]
    known = tuple(form.name for form in OPERATION.forms) if names == "all" else names
    assert tuple(line.split()[0] for line in lines[1:]) == known
    assert all(len(line.split()) > 2 for line in lines[1:]), "each form says what it is"


def test_a_form_that_is_named_is_not_looked_for() -> None:
    """The candidate is not even imported."""
    candidate = only(Request(targets=("mrope.rotate",), candidate="nowhere.at_all:f", form="hf-4.57"))
    assert (candidate.form, candidate.trusted) == ("hf-4.57", False)
    assert candidate.target["public"]


def test_versions_of_installed_packages_are_kept() -> None:
    """So that a report says whose function it was."""
    request = Request(targets=("mrope.rotate",), candidate="torch:add", form="hf-5.17")
    assert only(request).version.startswith("torch ")
    assert only(Request(targets=("mrope.rotate",), candidate="nowhere:f", form="hf-5.17")).version == ""


@pytest.mark.parametrize(
    ("name", "trusted"), [("reference", True), ("kernel", False), ("kernel-from-positions", False)]
)
def test_what_is_built_in_is_asked_for_by_name(name: str, trusted: bool) -> None:
    """Ours that can harm nobody runs in this process."""
    candidate = only(Request(targets=("mrope.rotate",), candidate=name))
    assert (candidate.name, candidate.trusted) == (name, trusted)


@pytest.mark.parametrize("fault", [fault.name for fault in registry.faults("mrope.rotate")])
def test_faults_are_asked_for_by_name(fault: str) -> None:
    """To see a law at work."""
    candidate = only(Request(targets=("mrope.rotate",), candidate=f"fault:{fault}"))
    assert (candidate.name, candidate.target["name"]) == (f"fault:{fault}", fault)


def test_a_name_shared_by_operations_asks_for_all() -> None:
    """The reference of a whole component."""
    names = [operation.name for operation, _ in plan(Request(targets=("mrope",), candidate="reference"), never)]
    assert {"mrope.rotate", "mrope.positions"} <= set(names)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request(targets=("mrope.rotat",)), ["named 'mrope.rotat' (did you mean mrope.rotate"]),
        (Request(targets=("zzz",)), ["no component or operation named 'zzz'; there are: ", "mrope.positions"]),
        (Request(targets=("mrope.rotate",), candidate="kernels"), ["package.module:function", "kernel-from-positions"]),
        (Request(targets=("mrope.rotate",), candidate="fault:absent"), ["fault"]),
        (Request(targets=("mrope",), candidate="m:f"), ["needs one operation", "mrope.rotate", "mrope.positions"]),
        (Request(candidate="m:f"), ["needs one operation"]),
        (Request(targets=("mrope.model",), candidate="m:f"), ["judges models, not functions"]),
        (Request(targets=("mrope.rotate",), candidate="m:f", form="hf"), ["no call form 'hf'", "hf-5.17", "hf-4.57"]),
        (Request(form="hf-5.17"), ["there is no --candidate"]),
        (Request(patch="m:f"), ["--patch needs --family"]),
        (Request(candidate="m:f", families=("qwen2_vl",), patch="m:p"), ["ask for one or the other"]),
        (Request(targets=("mrope.rotate",), candidate="kernel", families=("qwen9",)), ["no multi-axis family 'qwen9'"]),
        (
            Request(targets=("mrope.positions",), candidate="m:f", form="hf-5.3", families=("qwen2_vl", "glm_image")),
            ["glm_image fixes nothing of mrope.positions: "],
        ),
        (
            Request(targets=("mrope.tables",), candidate="kernel", families=("qwen2_vl",)),
            ["qwen2_vl fixes nothing of mrope.tables"],
        ),
        (Request(families=("qwen9",)), ["no multi-axis family 'qwen9'; it has:", "qwen2_5_vl"]),
    ],
)
def test_what_cannot_be_audited_is_told(request_: Request, words: list[str]) -> None:
    """With what can."""
    with pytest.raises(UsageError) as caught:
        plan(request_, describing())
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("operation", ["mrope.positions", "mrope.rotate"])
def test_a_function_is_judged_by_what_a_family_fixes(operation: str) -> None:
    """The same as for the family's own code, under a name of its own, and its command says so."""
    families = ("qwen2_vl", "ernie4_5_vl_moe")
    form = registry.operation(operation).forms[0]
    request = Request(targets=(operation,), candidate="m:f", families=families)
    pairs = plan(request, describing(*form.parameters))
    assert [candidate.name for _, candidate in pairs] == [f"m:f@{name}" for name in families]
    for (_, candidate), name in zip(pairs, families, strict=True):
        own = registry.family_candidate(operation, name)
        assert own is not None
        assert own.scope
        assert (candidate.scope, candidate.form, candidate.target["ref"]) == (own.scope, form.name, "m:f")
        command = findings.repro(registry.operation(operation), candidate, BROKE, Options())
        assert f"--candidate m:f --form {form.name} --family {name} --law parity" in command


def test_what_is_built_in_is_judged_by_what_a_family_fixes() -> None:
    """Of the operations for which a family fixes something; others are left out."""
    pairs = plan(Request(targets=("mrope",), candidate="reference", families=("qwen3_vl",)), never)
    assert [operation.name for operation, _ in pairs] == ["mrope.rotate", "mrope.positions"]
    command = findings.repro(*pairs[0], BROKE, Options())
    assert command.startswith("assay audit mrope.rotate --candidate reference --family qwen3_vl --law parity")


def test_a_candidate_that_cannot_be_imported_is_bad_usage() -> None:
    """Its form cannot be known."""

    def fails(_ref: str) -> tuple[str, ...]:
        message = "cannot import m:f: ModuleNotFoundError"
        raise ValueError(message)

    with pytest.raises(UsageError, match="--candidate: cannot import m:f"):
        plan(Request(targets=("mrope.rotate",), candidate="m:f"), fails)


def test_everything_is_ours_and_every_family() -> None:
    """In an order that stays."""
    pairs = plan(Request(), never)
    assert pairs == plan(Request(), never)
    names = {candidate.name for _, candidate in pairs}
    assert {"reference", "kernel"} <= names
    assert set(discovery.installed_families()) <= names
    assert {operation.name for operation, _ in pairs} >= {"mrope.rotate", "mrope.positions", "mrope.model"}


def test_a_patch_goes_to_each_operation_of_its_family() -> None:
    """And the candidates carry it in their names."""
    pairs = plan(Request(families=("qwen2_5_vl",), patch="m:apply"), never)
    assert pairs
    assert {candidate.name for _, candidate in pairs} == {"qwen2_5_vl+m:apply"}


def test_forms_without_parameters_alone_are_no_shorter_list() -> None:
    """Of (preds, gts) nothing is known: the form that it has is named too."""
    with pytest.raises(UsageError, match="fits no call form by its parameter names") as caught:
        plan(Request(targets=("grounding.metrics",), candidate="m:f"), lambda _ref: ("preds", "gts"))
    assert "\n  metrics  " in str(caught.value)
