"""Transformers' own Trainer: what its step over micro-batches is, and that its faults are seen."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec

import pytest
import torch
from fault_checks import WITHOUT_TENSORS, check_convicts, check_laws_have_faults
from packaging.version import Version

from assay.audits import registry
from assay.audits.choose import Request, plan
from assay.audits.components.masked_loss import trainer, trainer_faults
from assay.audits.families import trainer_run
from assay.audits.families.loss_run import loaded
from assay.audits.run import Options, audit
from assay.audits.terms import Candidate, Fault, Report, Verdict

TRANSFORMERS = Version(version("transformers"))

pytestmark = pytest.mark.skipif(find_spec("accelerate") is None, reason="the Trainer needs accelerate")


@pytest.fixture(scope="module", autouse=True)
def _loaded(one_thread: None) -> None:
    trainer_faults.clean(trainer.build(trainer.Case(), torch.float32, torch.device("cpu")))  # imports set variables


def _report(name: str, target: dict[str, str]) -> Report:
    candidate = Candidate(operation=trainer.NAME, name=name, target=target, trusted=True, scope={"family": name})
    return audit(registry.operation(trainer.NAME), candidate, Options(examples=0))


def _findings(name: str, patch: str = "") -> set[str]:
    report = _report(name, {"kind": "factory", "ref": trainer.FACTORY, "family": name, "patch": patch})
    return {
        f"{item.rule.rpartition('.')[2]} {item.case} {item.where}"
        for item in report.findings
        if item.verdict == Verdict.FAIL
    }


@pytest.mark.parametrize("fault", registry.faults(trainer.NAME), ids=lambda fault: fault.name)
def test_each_named_law_convicts(fault: Fault) -> None:
    check_convicts(fault)


def test_every_law_of_a_step_must_catch_a_fault() -> None:
    check_laws_have_faults(trainer.NAME, but=WITHOUT_TENSORS)


def test_the_trainer_as_it_is_is_not_convicted() -> None:
    target = {"kind": "import", "ref": f"{trainer_faults.__name__}:clean", "operation": trainer.NAME}
    report = _report("llama", target)
    assert report.findings == ()
    assert report.verdict == Verdict.PASS


def test_the_fused_loss_is_right_under_the_trainer() -> None:
    assert _findings("llama", trainer.KERNEL) == set()


def test_what_transformers_gets_wrong() -> None:
    """A forward that ignores the count of the step, smoothing with two shifts."""
    assert {"accumulated accumulated parameters", "reference smoothed parameters"} <= _findings("bart")


@pytest.mark.skipif(not Version("5.0") <= TRANSFORMERS < Version("5.24"), reason="looked at from 5.0 to 5.23 only")
def test_a_class_that_takes_no_count_is_caught() -> None:
    assert "accumulated accumulated parameters" in _findings("qwen2_5_vl")


@pytest.mark.skipif(Version("5.0") > TRANSFORMERS, reason="before 5.0 only flash attention reads packs")
def test_packs_of_the_flattening_collator() -> None:
    """Right in a family of text; one row of ids tells a Qwen-VL nothing of samples."""
    assert not {found for found in _findings("llama") if "packed" in found}
    assert "reference packed parameters (packed)" in _findings("qwen2_5_vl")


def test_without_accelerate_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_run, "find_spec", lambda _name: None)
    with pytest.raises(LookupError, match="accelerate is not installed"):
        trainer_run.Step(loaded("llama"))


def test_other_families_are_asked_for_by_name() -> None:
    every = {candidate.name for op, candidate in plan(Request(targets=(trainer.NAME,)))}
    assert every == {*trainer.FAMILIES, f"llama+{trainer.KERNEL}"}
    named = plan(Request(targets=(trainer.NAME,), families=("glm4v", "olmo2")))
    assert [candidate.name for _, candidate in named] == ["glm4v", "olmo2"]


def test_samples_go_into_the_micro_batches() -> None:
    assert trainer.supports(trainer.Case(micro=3)) == "4 samples do not go into 3 micro-batches"
