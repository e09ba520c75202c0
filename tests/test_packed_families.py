"""Whole models on packed samples: what breaks them is found, what transformers gets right is not accused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from fault_checks import WITHOUT_TENSORS, check_convicts, check_laws_have_faults

from assay.audits import registry
from assay.audits.choose import Request, plan
from assay.audits.components.packed_positions import model, model_faults
from assay.audits.families import causal
from assay.audits.families.packed_run import PackedCall, PackedModel, joined
from assay.audits.run import Options, audit
from assay.audits.terms import Candidate, Fault, Inexpressible, Verdict

pytestmark = pytest.mark.skipif(
    isinstance(causal.family(model.DEFAULT_FAMILY), str), reason="the installed transformers lacks the default family"
)


@pytest.fixture(autouse=True, scope="module")
def _imported() -> None:
    """What is imported with the first model sets variables of its own, which is not the first candidate's doing."""
    if not isinstance(causal.family(model.DEFAULT_FAMILY), str):
        PackedModel(causal.loaded(model.DEFAULT_FAMILY))


@pytest.mark.parametrize("fault", registry.faults(model.NAME), ids=lambda fault: fault.name)
def test_each_named_law_convicts(fault: Fault) -> None:
    check_convicts(fault)


def test_every_law_must_catch_a_fault() -> None:
    check_laws_have_faults(model.NAME, but=WITHOUT_TENSORS)


def _audited(target: dict[str, Any], *cases: str, **scope: Any) -> list[tuple[str, str]]:
    candidate = Candidate(operation=model.NAME, name="it", target=target, trusted=True, scope=scope)
    report = audit(registry.operation(model.NAME), candidate, Options(cases=cases, examples=0))
    return [(item.rule.rpartition(".")[2], item.where) for item in report.findings if item.verdict == Verdict.FAIL]


def test_the_form_that_faults_are_made_of_is_right() -> None:
    target = {"kind": "import", "ref": f"{model_faults.__name__}:clean", "operation": model.NAME}
    assert _audited(target) == []


def _family(name: str, *cases: str) -> list[tuple[str, str]]:
    PackedModel(causal.loaded(name))
    return _audited({"kind": "factory", "ref": model.FACTORY, "family": name}, *cases, family=name)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_restarting_ids_and_masks_keep_samples_apart(name: str) -> None:
    assert _family(name, "ids", "ids-eager", "one", "lengths", "mask", "mask-eager") == []


def test_flex_attention_is_told_by_restarting_ids() -> None:
    assert _family("llama", "ids-flex") == []


def test_a_mask_of_ones_hides_the_samples() -> None:
    found = _family("llama", "mask-of-ones")
    assert {"isolated", "separate", "unpacked"} <= {rule for rule, _ in found}
    assert all(where.endswith("(told by ones)") for _, where in found)


def test_a_cache_hides_the_samples() -> None:
    """An empty one, which a forward makes itself unless it is told not to, in training too."""
    assert {"isolated", "separate", "unpacked"} <= {rule for rule, _ in _family("llama", "cached")}


def test_the_trainers_switch_does_not_reach_the_text_model() -> None:
    """It is set in the model's configuration; that of the text model inside keeps its cache on."""
    assert _family("llama", "trainer") == []
    assert ("separate", "leaks (told by trainer)") in _family("qwen3_vl", "trainer")


def test_several_rows_are_told_apart() -> None:
    assert _family("llama", "two-rows") == []
    assert _family("qwen3_vl", "two-rows", "images-two-rows") == []
    with pytest.raises(Inexpressible, match="do not make rows of equal length"):
        PackedModel(causal.loaded("llama"))(PackedCall(samples=("t3", "t2"), keys=(0, 1), told="ids", rows=2))


def test_what_does_not_hear_of_positions_leaks() -> None:
    assert ("separate", "leaks (told by ids)") in _family("opt", "ids")
    assert _family("opt", "mask") == []


def test_one_row_of_ids_loses_the_axes() -> None:
    assert {rule for rule, _ in _family("qwen3_vl", "images-flat")} >= {"unpacked"}
    assert _family("qwen3_vl", "images") == []


def test_what_a_family_cannot_be_asked_is_told() -> None:
    llama = PackedModel(causal.loaded("llama"))
    with pytest.raises(Inexpressible, match="one axis: nothing is flattened"):
        llama(PackedCall(samples=("t3", "t2"), keys=(0, 1), told="flat"))
    gpt2 = PackedModel(causal.loaded("gpt2"))
    with pytest.raises(Inexpressible, match="has no flex_attention attention"):
        gpt2(PackedCall(samples=("t3", "t2"), keys=(0, 1), told="ids", attention="flex_attention"))


def test_probes_of_a_row_and_of_a_sample() -> None:
    out = PackedModel(causal.loaded("llama"))(PackedCall(samples=("t3", "t2"), keys=(0, 1), told="ids"))
    assert (out["probe:0"] != 0).tolist() == [True, True, True, False, False]
    assert (out["probe:1"] != 0).tolist() == [False, False, False, True, True]
    assert out["logits:1"].shape[0] == 2
    flex = PackedCall(samples=("t3", "t2"), keys=(0, 1), told="ids", attention="flex_attention")
    assert not any(name.startswith(("grad:", "probe:")) for name in PackedModel(causal.loaded("llama"))(flex))


def test_rows_are_joined_by_what_has_tokens() -> None:
    one = {"input_ids": torch.zeros(1, 3), "mm_token_type_ids": torch.zeros(1, 3), "pixel_values": torch.zeros(8, 4)}
    two = {"input_ids": torch.ones(1, 2), "mm_token_type_ids": torch.ones(1, 2), "attention_mask": torch.ones(1, 2)}
    made = joined([one, two])
    assert {name: tuple(x.shape) for name, x in made.items()} == {
        "input_ids": (1, 5), "mm_token_type_ids": (1, 5), "pixel_values": (8, 4),
    }  # fmt: skip


def test_any_family_can_be_asked_for_by_name() -> None:
    pairs = plan(Request(targets=("packed_positions",), families=("olmo3", "glm4v")))
    assert [(op.name, candidate.name) for op, candidate in pairs] == [(model.NAME, "olmo3"), (model.NAME, "glm4v")]
    default = {candidate.name for op, candidate in plan(Request(targets=(model.NAME,)))}
    assert default == {*model.TEXT_FAMILIES, *model.IMAGE_FAMILIES}


def refuse_positions(model: Any) -> None:
    """A patch whose model takes no position ids any more, and fails with whatever comes of it."""

    def refuses(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs.get("position_ids") is not None:
            raise IndexError("index 7 is out of bounds")

    model.register_forward_pre_hook(refuses, with_kwargs=True)


def test_what_a_patch_alone_refuses_is_no_refusal_of_the_family() -> None:
    ids = PackedCall(samples=("t3", "t2"), keys=(0, 1), told="ids")
    patched = PackedModel(causal.loaded("llama"), f"{__name__}:refuse_positions")
    with pytest.raises(IndexError, match="out of bounds"):
        patched(ids)
    opt = PackedModel(causal.loaded("gpt2"), f"{__name__}:refuse_positions")
    with pytest.raises(Inexpressible, match="has no flex_attention"):
        opt(dataclasses.replace(ids, attention="flex_attention"))
