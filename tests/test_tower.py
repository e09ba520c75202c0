"""What a family's vision tower makes its features of: the run, its laws, and towers that are broken."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from fault_checks import WITHOUT_TENSORS, check_convicts, check_laws_have_faults

from assay.audits import registry, sweep
from assay.audits.components.masked_scatter import tower, tower_laws
from assay.audits.families import discovery
from assay.audits.families.tower_run import LEVELS, TowerCall, TowerModel
from assay.audits.run import Options, audit
from assay.audits.terms import Candidate, Fault, Inexpressible, Report, Verdict

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(isinstance(discovery.family("qwen3_vl"), str), reason="this transformers has no qwen3_vl"),
]


def test_a_feature_is_made_of_its_own_patches() -> None:
    out = TowerModel("qwen3_vl")(TowerCall(samples=("t2 i4x6", "i2x2 t1"), keys=(0, 1)))
    assert out["features"].shape[0] == out["reach"].shape[0] == 7
    assert (out["reach"] != 0).sum(-1).tolist() == [4] * 7
    assert (out["reach"][1] != 0).nonzero().flatten().tolist() == [2, 3, 8, 9]
    assert out["cell"].tolist()[:12] == [0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2]
    torch.testing.assert_close(out["weight"].sum(-1), torch.ones(28, dtype=torch.float64))
    assert {"deepstack:0", "reach:1"} <= set(out)


def test_samples_without_one_kind_of_media_are_refused() -> None:
    for samples in (("t3",), ("i2x2", "v1x2x2")):
        with pytest.raises(ValueError, match="samples: expected images or videos, not both"):
            _ = TowerCall(samples=samples, keys=(0,)).media


def test_more_patches_than_shades_are_refused() -> None:
    with pytest.raises(ValueError, match=f"at most {LEVELS} patches"):
        TowerModel("qwen3_vl")(TowerCall(samples=("i16x16",), keys=(0,)))


@pytest.mark.parametrize("name", ["ernie4_5_vl_moe", "hunyuan_vl", "paddleocr_vl", "glm4v", "qwen2_5_vl"])
def test_families_of_transformers_are_right(name: str) -> None:
    """Steps that are merged, newlines behind each row, patches of four dimensions, convolutions, windows."""
    if isinstance(reason := discovery.family(name), str):
        pytest.skip(reason)
    assert sweep.judged(tower.NAME, name).verdict == Verdict.PASS


def test_a_family_without_videos_says_so() -> None:
    if isinstance(reason := discovery.family("hunyuan_vl"), str):
        pytest.skip(reason)
    with pytest.raises(Inexpressible, match="has no get_video_features"):
        TowerModel("hunyuan_vl")(TowerCall(samples=("v2x2x2",), keys=(0,)))


def _renamed(model: Any) -> None:
    """Attention of another name, as a patch may put it there."""
    for module in model.modules():
        if type(module).__name__.endswith("VisionAttention"):
            module.__class__ = type("Mixer", (type(module),), {})


def _no_module(model: Any) -> None:
    """Attention as a function over parameters that the layer holds."""
    for layer in (m for m in model.modules() if hasattr(m, "attn")):
        held = layer.attn
        del layer.attn
        layer.qkv, layer.proj = held.qkv, held.proj
        object.__setattr__(layer, "attn", partial(type(held).forward, held))


class _Opaque(torch.autograd.Function):
    """Attention that nobody can look into."""

    @staticmethod
    def forward(ctx: Any, states: Any) -> Any:
        return states + states.mean(0, keepdim=True)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return grad + grad.mean(0, keepdim=True)


def _opaque(model: Any) -> None:
    for layer in (m for m in model.modules() if hasattr(m, "attn")):
        del layer.attn
        object.__setattr__(layer, "attn", lambda states, **_: _Opaque.apply(states))


def _computed_again(model: Any) -> None:
    model.gradient_checkpointing_enable()


def _one_tensor(model: Any) -> None:
    """Features of all pictures in one tensor."""
    holder = next(m for m in reversed(list(model.modules())) if hasattr(m, "get_image_features"))
    inner = holder.get_image_features
    holder.get_image_features = lambda *args, **kwargs: torch.cat(list(inner(*args, **kwargs).pooler_output))


def _model(family: str, change: Callable[[Any], None]) -> TowerModel:
    class Other(TowerModel):
        def _made(self) -> Any:
            made = super()._made()
            change(made)
            return made

    return Other(family)


def _audited(monkeypatch: pytest.MonkeyPatch, model: Any, *laws: str) -> Report:
    monkeypatch.setattr("assay.audits.resolve.implementation", lambda _target, _form: model)
    candidate = Candidate(operation=tower.NAME, name="other", target={}, trusted=True)
    return audit(registry.operation(tower.NAME), candidate, Options(examples=0, laws=laws))


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("change", [_renamed, _no_module, _computed_again, _one_tensor])
def test_a_right_tower_is_not_accused(
    change: Callable[[Any], None], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = _audited(monkeypatch, _model(family, change))
    assert report.findings == ()
    assert report.verdict == Verdict.PASS


def test_attention_that_cannot_be_turned_off_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    report = _audited(monkeypatch, _model("qwen3_vl", _opaque), "cells")
    assert report.findings == ()
    assert any("attention cannot be turned off" in str(check) for check in report.checks)


def test_a_picture_of_more_lines_than_the_table_may_have_several_at_its_border() -> None:
    lines = (torch.arange(40) + 0.5) * 8 / 40 - 0.5
    place = torch.stack([torch.zeros(40), torch.arange(40), torch.zeros(40)], -1).long()
    assert not list(tower_laws._ascending("row", lines.clamp(0, 7).double(), place, 1, 8))
    assert list(tower_laws._ascending("row", lines.clamp(0, 3).double(), place, 1, 8))
    assert list(tower_laws._ascending("row", torch.zeros(40), place, 1, 8))


@pytest.mark.parametrize("fault", registry.faults(tower.NAME), ids=lambda fault: fault.name)
def test_each_named_law_convicts(fault: Fault) -> None:
    check_convicts(fault)


def test_every_law_of_a_tower_must_catch_a_fault() -> None:
    check_laws_have_faults(tower.NAME, but=WITHOUT_TENSORS)


def test_a_form_that_breaks_nothing_is_right() -> None:
    """What the faults depart from."""
    target = {"kind": "factory", "ref": tower.FACTORY, "operation": tower.NAME, "family": tower.DEFAULT_FAMILY}
    clean = Candidate(operation=tower.NAME, name="clean", target=target, trusted=True)
    assert audit(registry.operation(tower.NAME), clean, Options(examples=0)).verdict == Verdict.PASS
