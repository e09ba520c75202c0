"""Families that put features into embeddings: which are found, what a run of one sees, what its laws say."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from fault_checks import WITHOUT_TENSORS, check_convicts, check_laws_have_faults

from assay.audits import registry, sweep
from assay.audits.choose import Request, plan
from assay.audits.components.masked_scatter import deepstack, model, model_faults, tower
from assay.audits.families import scattering
from assay.audits.families.scatter_run import ScatterCall, ScatterModel
from assay.audits.run import Options, audit
from assay.audits.terms import Candidate, Fault, Inexpressible, Verdict

pytestmark = pytest.mark.usefixtures("one_thread")

LOOSE = {"straddles", "unfilled"}
"""What no family of transformers 5.23 has: counts by sample, and an error where there are no media at all."""


def test_families_are_found_without_transformers() -> None:
    code = (
        "import sys; from assay.audits.families import scattering; names = scattering.installed_families();"
        "assert 'llava' in names and len(names) > 30, names; assert scattering.site('llava')[1] == 'LlavaModel';"
        "sys.exit('transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_run_sees_what_the_text_model_is_given() -> None:
    tiny = ScatterModel("llava")
    call = ScatterCall(samples=("t2 i2x3 t1", "t4", "i1x2"), keys=(0, 1, 2))
    out, again = tiny(call), tiny(call)
    assert out["embeddings"].shape == (3, 9, tiny.width)
    assert out["mask:image"].sum(1).tolist() == [6, 0, 2]
    assert torch.equal(out["embeddings"][out["mask:image"]], out["feature:image"])
    assert all(torch.equal(out[name], again[name]) for name in out)
    alone = tiny(ScatterCall(samples=("i1x2",), keys=(2,)))
    assert torch.equal(alone["feature:image"], out["feature:image"][6:])
    with pytest.raises(ValueError, match="do not match"):
        tiny(ScatterCall(samples=call.samples, features="more"))
    with pytest.raises(Inexpressible, match="takes no video"):
        tiny(ScatterCall(samples=("v1x2x2",)))


def test_what_cannot_be_judged_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LookupError, match="blt: scatters bytes"):
        scattering.build("blt")
    with pytest.raises(LookupError, match="has no such family"):
        scattering.build("llama")
    monkeypatch.setattr(scattering, "LARGEST", 100)
    with pytest.raises(LookupError, match=r"llava: no tiny model of it can be made: .*million parameters are left"):
        scattering.build("llava")


def test_any_family_can_be_asked_for_by_name() -> None:
    pairs = plan(Request(targets=("masked_scatter",), families=("paligemma", "qwen3_vl")))
    assert [(operation.name, candidate.name) for operation, candidate in pairs] == [
        (model.NAME, "paligemma"), (deepstack.NAME, "qwen3_vl"), (model.NAME, "qwen3_vl"), (tower.NAME, "qwen3_vl"),
    ]  # fmt: skip


def _broken(name: str) -> set[str]:
    report = sweep.judged(model.NAME, name)
    return {item.rule.rpartition(".")[2] for item in report.findings if item.verdict != Verdict.PASS}


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("qwen3_vl", set()),
        ("gemma3", set()),
        ("idefics3", set()),
        ("paligemma", set()),
        ("llava", {"numbers"}),  # the features' width is counted as features
        ("qwen3_omni_moe", {"numbers", "surplus"}),  # sounds are not counted at all
        ("molmo2", {"numbers"}),  # adds features to the embeddings
        ("gemma3n", {"unloadable"}),
    ],
)
def test_what_transformers_gets_right_and_wrong(name: str, more: set[str]) -> None:
    assert _broken(name) == (more if more == {"unloadable"} else LOOSE | more)


def test_a_sweep_is_a_table() -> None:
    lines = list(sweep.table(model.NAME, ["llava", "blt"]))
    assert lines[2] == "| llava | numbers, straddles, unfilled |"
    assert lines[3].startswith("| blt | UNKNOWN: blt: scatters bytes")
    assert lines[-1] == "1 judged, 1 unknown. Broken: numbers 1, straddles 1, unfilled 1."


def test_the_method_that_adds_deepstack_features_takes_one_for_all() -> None:
    candidate = deepstack.for_family("qwen3_vl", "")
    assert candidate is not None
    trusted = Candidate(operation=deepstack.NAME, name="qwen3_vl", target=candidate.target, trusted=True)
    report = audit(deepstack.OPERATION, trusted, Options(examples=0))
    assert {item.rule.rpartition(".")[2] for item in report.findings} == {"missing", "surplus"}
    assert deepstack.for_family("llava", "") is None


@pytest.mark.parametrize("fault", registry.faults(model.NAME), ids=lambda fault: fault.name)
def test_each_named_law_convicts(fault: Fault) -> None:
    check_convicts(fault)


def test_every_law_of_a_model_must_catch_a_fault() -> None:
    check_laws_have_faults(model.NAME, but=WITHOUT_TENSORS)


def test_the_form_that_faults_are_made_of_is_right() -> None:
    target = {"kind": "import", "ref": f"{model_faults.__name__}:clean", "operation": model.NAME}
    control = Candidate(operation=model.NAME, name="clean", target=target, trusted=True)
    report = audit(registry.operation(model.NAME), control, Options(examples=0))
    assert report.findings == ()
    assert report.verdict == Verdict.PASS
