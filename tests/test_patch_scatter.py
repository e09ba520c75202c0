"""The scatter in a model: it runs, changes nothing but what is refused, comes out again; and a wrong one is caught."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import assay
from assay.audits import registry
from assay.audits.components.masked_scatter import deepstack, model
from assay.audits.families import scattering
from assay.audits.families.scatter_run import ScatterCall, ScatterModel
from assay.audits.patch_calls import Calls
from assay.audits.patch_scatter import ScatterPatch
from assay.audits.run import Options, audit
from assay.audits.terms import Candidate, Verdict

pytestmark = pytest.mark.usefixtures("one_thread")

CALL = ScatterCall(samples=("t2 i2x2 t1", "t4", "i1x4"), keys=(0, 1, 2))
SILENT = "blip_2"
"""A family that counts nothing: it drops what is left over."""
PATCHED = functools.partial(ScatterModel, patch="assay.audits.patch_scatter:reference")


@functools.lru_cache(maxsize=2)
def _plain(name: str) -> ScatterModel:
    return ScatterModel(name)


def _only(patch: Any) -> Calls:
    (calls,) = patch.calls.values()
    found: Calls = calls
    return found


@pytest.mark.parametrize("name", ["llava", SILENT, "qwen3_vl", "gemma3"])
def test_it_runs_and_changes_no_bit(name: str) -> None:
    tiny = _plain(name)
    before, forward = tiny(CALL), type(tiny.model).forward
    with assay.patch(tiny.model, masked_scatter="reference") as patch:
        out = tiny(CALL)
        assert _only(patch) == Calls(forward=1, backward=1)
    assert all(torch.equal(out[key], before[key]) for key in before)
    assert type(tiny.model).forward is forward


def test_what_is_left_over_is_an_error() -> None:
    tiny, more = _plain(SILENT), ScatterCall(samples=CALL.samples, features="more")
    tiny(more)
    with assay.patch(tiny.model, masked_scatter="reference"), pytest.raises(ValueError, match="expected 8, .* got 1"):
        tiny(more)


def test_a_live_model_is_patched_alone_and_a_family_whole() -> None:
    one, other = _plain(SILENT), ScatterModel(SILENT)
    with assay.patch(one.model, masked_scatter="reference") as patch:
        other(CALL)
        assert _only(patch) == Calls()
    with assay.patch(SILENT, masked_scatter="reference") as patch:
        one(CALL), other(CALL)
        assert _only(patch).forward == 2


def test_a_head_around_it_is_no_matter() -> None:
    whole = scattering._with_head("llava", 0)
    assert type(whole).__name__ == "LlavaForConditionalGeneration"
    assert ScatterPatch(whole, "reference").site.endswith("LlavaModel.forward:masked_scatter")


def test_other_scatters_are_left_alone() -> None:
    class Mixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            elements = torch.zeros(x.shape, dtype=torch.bool)
            elements[0, 0, 0] = True
            x = x.masked_scatter(elements, torch.tensor([7.0]))
            return x[0].masked_scatter(elements[0], torch.tensor([8.0]))

    mixed = Mixed()
    with assay.patch(mixed, masked_scatter="reference") as patch:
        assert mixed(torch.zeros(1, 2, 3)).flatten().tolist() == [8, 0, 0, 0, 0, 0]
        assert _only(patch) == Calls()


def test_what_cannot_be_patched_says_why() -> None:
    with pytest.raises(ValueError, match="masked_scatter: expected 'reference' or a callable, got 'kernel'"):
        assay.patch("llava", masked_scatter="kernel")
    with pytest.raises(LookupError, match="Linear: no class in it calls masked_scatter"):
        assay.patch(nn.Linear(1, 1), masked_scatter="reference")
    with pytest.raises(LookupError, match="has no such family"):
        assay.patch("llama", masked_scatter="reference")


def backwards(whole: nn.Module) -> None:
    """A user's patch with a mistake: the features come in the reverse order."""
    assay.patch(whole, masked_scatter=lambda x, mask, rows: x.index_put((mask,), rows.flip(0))).apply()


def halved(whole: nn.Module) -> None:
    """A user's patch with a mistake in what is added inside: half of it."""
    text = next(part for part in whole.modules() if hasattr(part, deepstack.SITE))
    below = getattr(text, deepstack.SITE)
    setattr(text, deepstack.SITE, lambda hidden, mask, rows: below(hidden, mask, rows / 2))


def _found(operation: str, family: str, patch: str) -> set[str]:
    candidate = registry.family_candidate(operation, family, f"{__name__}:{patch}")
    assert isinstance(candidate, Candidate)
    report = audit(registry.operation(operation), candidate, Options(examples=0))
    return {item.rule.rpartition(".")[2] for item in report.findings if item.verdict == Verdict.FAIL}


def test_a_patch_that_misplaces_is_caught() -> None:
    assert "placement" in _found(model.NAME, "qwen3_vl", "backwards")


def test_a_patch_that_adds_something_else_is_caught() -> None:
    assert "parity" in _found(deepstack.NAME, "qwen3_vl", "halved")


def test_a_model_without_memory_is_patched_too() -> None:
    assert PATCHED("emu3")(CALL)["embeddings"].shape[:2] == (3, 7)
