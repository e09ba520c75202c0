"""The laws of a patch: each fault is caught, right patches pass, and the seed's fix is judged."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from assay.audits import registry
from assay.audits.patch_runs import Training, from_bytes, implementation
from assay.audits.run import Options, audit
from assay.audits.subject import Server
from assay.audits.terms import Candidate, Report, Verdict

FAULTS = "assay.audits.components.patch.faults"
FAMILY = "qwen2_vl"
OWN = ("never-ran", "changed-nothing", "equal", "backward", "steps")
"""The laws of the component: those that all operations share run everything a second time."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One worker for all audits of this file."""
    running = Server(preload=("transformers", "assay.audits.patch_runs"))
    yield running
    running.close()


def _judged(server: Server, patch: str, family: str = FAMILY) -> Report:
    operation = registry.operation("patch")
    target = {"kind": "factory", "ref": "assay.audits.patches:implementation", "family": family, "patch": patch}
    candidate = Candidate(operation="patch", name=patch, target=target)
    return audit(operation, candidate, Options(laws=OWN, cases=("all",), time_limit=60.0), server=server)


@pytest.mark.parametrize("fault", registry.faults("patch"), ids=lambda fault: fault.name)
def test_every_fault_is_caught(server: Server, fault: Any) -> None:
    """By the laws it names, with the verdict that follows from them."""
    report = _judged(server, f"{FAULTS}:{fault.name.replace('-', '_')}")
    caught = {finding.rule.removeprefix("patch.") for finding in report.findings}
    assert set(fault.caught_by) <= caught
    silent = caught <= {"never-ran", "changed-nothing"}
    assert report.verdict == (Verdict.UNKNOWN if silent else Verdict.FAIL)


@pytest.mark.parametrize("name", ["reference", "kernel"])
def test_right_patches_pass(server: Server, name: str) -> None:
    """The controls: no finding, every law exercised, the site called."""
    report = _judged(server, f"{FAULTS}:{name}", "qwen2_5_vl")
    assert report.findings == ()
    assert report.verdict is Verdict.PASS


def test_dead_attribute_says_why(server: Server) -> None:
    """The finding names the attribute, and what the model calls in its place."""
    (finding,) = _judged(server, f"{FAULTS}:dead_attribute").findings
    assert finding.rule == "patch.never-ran"
    assert finding.where.endswith("_fused")
    assert "reads this name; the attention of the installed release calls apply_" in finding.message


def test_unimportable_patch_is_unknown(server: Server) -> None:
    """Nothing is known of a patch that is not there."""
    report = _judged(server, "no_such_module:apply")
    assert [finding.rule for finding in report.findings] == ["patch.unloadable"]
    assert report.verdict is Verdict.UNKNOWN


def test_the_seed_fix(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong on stock sections where it runs, and without effect where the function it replaces is gone."""
    monkeypatch.chdir(Path(__file__).parents[1] / "examples")
    report = _judged(server, "seed_a1_section_fix:apply", "qwen2_5_vl")
    module = importlib.import_module("transformers.models.qwen2_5_vl.modeling_qwen2_5_vl")
    if hasattr(module, "apply_multimodal_rotary_pos_emb"):
        assert [finding.rule for finding in report.findings] == ["patch.raises"]
        assert "sums to 16, the tables are 32 wide" in report.findings[0].message
    else:
        assert [finding.rule for finding in report.findings] == ["patch.never-ran"]


def test_a_comparison_leaves_this_process_alone() -> None:
    """Patches run in children: afterwards the module is as it was, and the record names what they changed there."""
    module = importlib.import_module("transformers.models.qwen2_vl.modeling_qwen2_vl")
    before = dict(vars(module))
    compare = implementation({"family": FAMILY, "patch": f"{FAULTS}:scaled"})
    record = from_bytes(compare(Training(steps=1))["record"])
    assert all(vars(module)[name] is value for name, value in before.items())
    assert [change["forward"] for change in record["changes"]] == [2]
    assert list(compare.sites.values()) == [2]
