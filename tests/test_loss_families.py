"""Tiny models of every kind of family, and what the laws of their losses say of them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from assay.audits import registry
from assay.audits.choose import Request, plan
from assay.audits.components.masked_loss import model
from assay.audits.families import causal, discovery
from assay.audits.families.loss_run import IGNORED, LossCall, LossModel, loaded, trained
from assay.audits.run import Options, audit
from assay.audits.terms import Candidate, Family, Verdict

KINDS = ("llama", "gemma2", "gpt2", "mixtral", "mamba", "jamba", "deepseek_v3", "gemma4", "gpt_neo", "llava", "bart")

pytestmark = pytest.mark.usefixtures("one_thread")


def test_families_are_found_without_transformers() -> None:
    code = (
        "import sys; from assay.audits.families import causal; assert 'llama' in causal.classes();"
        "assert causal.family('llama'); sys.exit('transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_family_is_one_or_says_why_not() -> None:
    found = {name: causal.family(name) for name in causal.classes()}
    assert len(found) > 100
    for name, item in found.items():
        assert isinstance(item, Family) or item.startswith(name)
    assert causal.family("qwen2_5_vl") is discovery.family("qwen2_5_vl")
    assert "no causal language model" in str(causal.family("vit"))


@pytest.mark.parametrize("name", KINDS)
def test_a_tiny_model_trains_on_text(name: str) -> None:
    built = LossModel(loaded(name))
    out = built(LossCall(samples=("t9", "t4"), keys=(0, 1)))
    again = built(LossCall(samples=("t9", "t4"), keys=(0, 1)))
    assert torch.isfinite(out["loss"])
    assert out["logits"].shape[:2] == (2, 9)
    assert out["logits"].shape[2] <= 128
    assert any(value.abs().max() > 0 for name, value in out.items() if name.startswith("grad:"))
    assert all(torch.equal(out[name], again[name]) for name in out)


def test_what_cannot_be_made_tiny_says_why() -> None:
    with pytest.raises(LookupError, match="blt: no tiny model of it can be made: .*million parameters"):
        loaded("blt").build(0)
    with pytest.raises(LookupError, match="blip-2: .*its forward asks for pixel_values"):
        loaded("blip-2").build(0)
    with pytest.raises(LookupError, match="reformer: trains on sequences of one length"):
        loaded("reformer")


def test_samples_are_what_their_keys_say() -> None:
    family = loaded("llama")
    tiny = family.build(0)
    right, left = (family.batch(tiny, ("t9", "t4"), padding=side, seed=3) for side in ("right", "left"))
    alone = family.batch(tiny, ("t4",), seed=3, keys=(1,))
    assert torch.equal(right["input_ids"][1, :4], left["input_ids"][1, -4:])
    assert torch.equal(right["input_ids"][1, :4], alone["input_ids"][0])
    assert left["position_ids"][1].tolist() == [0, 0, 0, 0, 0, 0, 1, 2, 3]
    with pytest.raises(ValueError, match="expected text alone"):
        family.batch(tiny, ("t2 i4x4",))


def test_labels_of_a_call() -> None:
    """Whole samples, answers, padding, placeholders."""
    batch = {"input_ids": torch.arange(12).view(2, 6), "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2])}

    def labels(**options: Any) -> list[list[int]]:
        return trained(batch, LossCall(samples=("", ""), keys=(0, 1), **options), [3]).tolist()

    x = IGNORED
    assert labels() == [[0, 1, 2, x, 4, 5], [x, x, 8, 9, x, x]]
    assert labels(labels="one") == [[x, x, x, x, 4, x], [x, x, 8, x, x, x]]
    assert labels(labels="none") == [[x] * 6] * 2


def test_any_family_can_be_asked_for_by_name() -> None:
    pairs = plan(Request(targets=("masked_loss",), families=("olmo3", "qwen2_5_vl")))
    assert [(operation.name, candidate.name) for operation, candidate in pairs if operation.name == model.NAME] == [
        (model.NAME, "olmo3"), (model.NAME, "qwen2_5_vl"),
    ]  # fmt: skip
    rooms = {operation.component for operation, _ in plan(Request(families=("olmo3",)))}
    assert rooms == {"masked_loss", "packed_positions"}


def _findings(name: str, patch: str = "") -> set[str]:
    target = {"kind": "factory", "ref": model.FACTORY, "family": name, "patch": patch}
    candidate = Candidate(operation=model.NAME, name=name, target=target, trusted=True, scope={"family": name})
    report = audit(registry.operation(model.NAME), candidate, Options(cases=("text",), examples=0))
    return {f"{item.rule.rpartition('.')[2]} {item.where}" for item in report.findings if item.verdict == Verdict.FAIL}


def test_what_transformers_gets_right_and_wrong() -> None:
    """NaN where nothing is trained on; a hand-made cross-entropy that does not hear of the count of the step."""
    LossModel(loaded("llama"))  # what is imported with the first model sets variables of its own
    assert _findings("llama") == {"empty loss"}
    assert {"items loss", "items gradients", "micro gradients", "empty loss"} <= _findings("bart")


def test_a_family_that_counts_positions_by_the_padding_is_not_accused() -> None:
    """RoBERTa's start after its padding token, wherever that stands."""
    LossModel(loaded("camembert"))
    assert _findings("camembert") == {"empty loss"}


@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere", "qwen3_vl"])
def test_the_patched_model_is_right(name: str) -> None:
    LossModel(loaded(name))
    assert _findings(name, model.KERNEL) == set()
