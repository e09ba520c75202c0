"""Patches: put in, counted, taken out; what a user's patch changed and whether it ran; the laws of a patch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import assay
from assay.audits.families import discovery, sites
from assay.audits.families.adapt import loaded
from assay.audits.patch_calls import Calls, Meter
from assay.audits.patch_runs import Training, _batch
from assay.audits.patch_users import apply_users, needs_model

FAMILY = "qwen2_vl"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model() -> nn.Module:
    built: nn.Module = loaded(FAMILY).build(0)
    return built


@pytest.fixture
def site(model: nn.Module) -> tuple[ModuleType, str]:
    """The module and the name that a patch replaces."""
    module, _, name = sites.resolve(model, loaded(FAMILY).sites).text_apply_name.partition(":")
    return sys.modules[module], name


def _step(model: nn.Module, family: str = FAMILY) -> tuple[Tensor, dict[str, Tensor]]:
    batch = _batch(model, loaded(family), Training(), ("t3 i4x6 t4", "t2 i4x4 t3"))
    model.zero_grad()
    out = model(**batch, use_cache=False)
    out.loss.backward()
    return out.logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def _only(calls: Mapping[str, Calls]) -> Calls:
    (counted,) = calls.values()
    return counted


def test_import_is_light() -> None:
    """The public names are found without torch; only using one imports it."""
    code = "import sys, assay; assert 'patch' in dir(assay); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'pach'"):
        _ = assay.pach


def test_applied_counted_undone(model: nn.Module, site: tuple[ModuleType, str]) -> None:
    """The replacement runs in both layers, forward and backward; afterwards the module holds the same object."""
    module, name = site
    original = getattr(module, name)
    logits, grads = _step(model)
    with assay.patch(model, mrope="reference") as handle:
        assert getattr(module, name) is not original
        patched_logits, patched_grads = _step(model)
    assert getattr(module, name) is original
    assert handle.calls == {f"{module.__name__}.{name}": Calls(forward=2, backward=2)}
    assert torch.equal(logits, patched_logits)
    assert all(torch.equal(grads[key], patched_grads[key]) for key in grads)


def test_forward_alone_counts_no_backward(model: nn.Module) -> None:
    """Without gradients there is nothing to count in the backward."""
    handle = assay.patch(model, mrope="reference").apply()
    with torch.no_grad():
        model(**_batch(model, loaded(FAMILY), Training(), ("t4",)))
    handle.undo()
    handle.undo()
    assert _only(handle.calls) == Calls(forward=2, backward=0)
    _step(model)
    assert _only(handle.calls) == Calls(forward=2, backward=0), "counts nothing once it is out"


def test_undone_after_exceptions(model: nn.Module, site: tuple[ModuleType, str]) -> None:
    """An exception in the block, or in the replacement, leaves nothing behind."""
    original = getattr(*site)

    def broken(*_args: Any, **_kwargs: Any) -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), assay.patch(model, mrope=broken):
        _step(model)
    assert getattr(*site) is original
    _step(model)


def _recording(seen: list[str], mark: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def rotate(*args: Any, **kwargs: Any) -> Any:
        seen.append(mark)
        return original(*args, **kwargs)

    return rotate


def test_several_models(model: nn.Module, site: tuple[ModuleType, str]) -> None:
    """A patch of one model leaves others alone; a patch of the family changes all."""
    original, other = getattr(*site), loaded(FAMILY).build(1)
    seen: list[str] = []
    with assay.patch(model, mrope=_recording(seen, "one", original)) as one:
        _step(other)
        assert seen == []
        with assay.patch(other, mrope=_recording(seen, "other", original)) as two:
            _step(model)
            _step(other)
        assert seen == ["one", "one", "other", "other"]
    assert (_only(one.calls), _only(two.calls)) == (Calls(2, 2), Calls(2, 2))
    with assay.patch(FAMILY, mrope="reference") as everyone:
        _step(model)
        _step(other)
    assert _only(everyone.calls) == Calls(4, 4)
    assert getattr(*site) is original


def test_nested_and_undone_in_any_order(model: nn.Module, site: tuple[ModuleType, str]) -> None:
    """The newest patch is in effect, whichever of the others has been undone."""
    original = getattr(*site)
    seen: list[str] = []
    outer = assay.patch(FAMILY, mrope=_recording(seen, "outer", original)).apply()
    inner = assay.patch(model, mrope=_recording(seen, "inner", original)).apply()
    outer.undo()
    _step(model)
    assert seen == ["inner", "inner"]
    with pytest.raises(RuntimeError, match="already patched"):
        inner.apply()
    inner.undo()
    assert getattr(*site) is original


def test_refuses_to_undo_what_others_replaced(model: nn.Module, site: tuple[ModuleType, str]) -> None:
    """Another's replacement on top is neither lost nor made permanent."""
    original = getattr(*site)
    handle = assay.patch(model, mrope="reference").apply()
    mine = getattr(*site)
    setattr(*site, original)
    with pytest.raises(RuntimeError, match="replaced by other code"):
        handle.undo()
    setattr(*site, mine)
    handle.undo()
    assert getattr(*site) is original


def test_inside_wrappers_and_without_head(model: nn.Module) -> None:
    """A model is found inside a wrapper, and by its body alone."""
    for target in (nn.Sequential(model), model.model):
        assert isinstance(target, nn.Module)
        with assay.patch(target, mrope="reference") as handle:
            _step(model)
        assert _only(handle.calls) == Calls(2, 2)


def test_counts_under_gradient_checkpointing(model: nn.Module) -> None:
    """A layer that is run again in the backward runs the replacement again."""
    model.train()
    newer = hasattr(model, "activation_checkpointing_enable")
    getattr(model, "activation_checkpointing_enable" if newer else "gradient_checkpointing_enable")()
    with assay.patch(model, mrope="reference") as handle:
        _step(model)
    assert _only(handle.calls) == Calls(forward=4, backward=2)


@pytest.mark.parametrize("target", ["gpt2", "samples", nn.Linear(2, 2)], ids=["family", "module", "model"])
def test_unknown_family(target: str | nn.Module) -> None:
    """The error names what there is."""
    with pytest.raises(LookupError, match=r"famil.*families of the installed transformers: .*qwen2_vl"):
        assay.patch(target, mrope="reference")


def test_bad_implementation_name() -> None:
    """The error names what is possible."""
    with pytest.raises(ValueError, match="'kernel', 'reference' or a callable, got 'fast'"):
        assay.patch(FAMILY, mrope="fast")


UNINTERPRETED = f"""
import torch
import assay
from assay.audits.families import discovery

family = discovery.family({FAMILY!r})
model = family.build(0)
with assay.patch(model, mrope="kernel"), torch.no_grad():
    model(**family.batch(model, ["t3 i4x6 t2"]))
"""


def test_kernel_on_the_cpu_says_what_it_needs() -> None:
    """Outside Triton's interpreter the kernel's own error comes through; a process decides once where it is."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, "-c", UNINTERPRETED]
    told = subprocess.run(command, capture_output=True, text=True, check=False, env=environment).stderr
    assert "TRITON_INTERPRET" in told.splitlines()[-1], told


@pytest.mark.parametrize("name", ["qwen3_5", "glm4v", "qwen4_exp", "ernie4_5_vl_moe"])
def test_reference_fits_every_kind_of_site(name: str) -> None:
    """Partial rotary, adjacent pairing, a query without key, tables of another dtype."""
    family = discovery.family(name)
    if isinstance(family, str) or name not in discovery.installed_families():
        pytest.skip(f"not in the installed transformers: {name}")
    model = family.build(0)
    logits, _ = _step(model, name)
    with assay.patch(model, mrope="reference") as handle:
        patched, _ = _step(model, name)
    assert _only(handle.calls).forward
    assert torch.equal(logits, patched)


def test_doubled_tables_are_refused() -> None:
    """What is no rotation cannot be replaced by one."""
    if isinstance(discovery.family("hunyuan_vl"), str):
        pytest.skip("not in the installed transformers")
    with pytest.raises(ValueError, match=r"hunyuan_vl: .*no rotation"):
        assay.patch("hunyuan_vl", mrope="reference")


# What users' patches changed


def takes_nothing() -> None:
    """Stands for a patch of code."""


def takes_a_model(model: Any) -> None:
    """Changes a live model in four ways."""
    head = model.lm_head
    head.forward = lambda x: nn.functional.linear(x, head.weight)
    layer = model.model.language_model.layers[0]
    layer.mlp = nn.Sequential(layer.mlp)
    layer.input_layernorm.weight.data.mul_(2)
    model.never_asked = lambda: None


def takes_two(_model: nn.Module, _other: int) -> None:
    """Asks for too much."""


def test_when_a_patch_is_applied() -> None:
    """By its required parameters."""
    assert not needs_model(f"{__name__}:takes_nothing")
    assert needs_model(f"{__name__}:takes_a_model")
    with pytest.raises(TypeError, match=r"no required parameter or one, the model; got \(_model"):
        needs_model(f"{__name__}:takes_two")


def test_changes_of_a_model_are_seen_and_counted() -> None:
    """Overridden methods, swapped modules, changed tensors: each named, each counted; the unused one stays at zero."""
    family = loaded(FAMILY)
    applied = apply_users(f"{__name__}:takes_a_model", family)
    with applied.counted() as model:
        _step(model)
    layer = "model.language_model.layers.0"
    assert {change.site: change.kind for change in applied.changes} == {
        "lm_head.forward": "attribute",
        "model.never_asked": "attribute",
        f"{layer}.input_layernorm.weight": "tensor",
        f"{layer}.mlp": "submodule",
    }
    assert applied.meter.calls["lm_head.forward"] == Calls(1, 1)
    assert applied.meter.calls[f"{layer}.mlp"] == Calls(1, 1)
    assert applied.meter.calls["model.never_asked"] == Calls(0, 0)


def test_the_meter_changes_nothing() -> None:
    """Signature, value and gradient are those of what is counted."""
    meter = Meter()

    def double(x: Tensor, *, by: float = 2.0) -> dict[str, Tensor]:
        return {"y": x * by}

    counted = meter.wrap("double", double)
    x = torch.ones(3, requires_grad=True)
    counted(x, by=3.0)["y"].sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [3.0, 3.0, 3.0]
    assert counted.__name__ == "double"
    assert meter.calls == {"double": Calls(1, 1)}
