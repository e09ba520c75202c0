"""Every family of the installed transformers builds, takes a realistic batch, and shows where its parts live."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch

from assay.audits.families import discovery, samples, sites
from assay.audits.terms import Family

MIXED = ("t5 i4x6 t3 v2x4x6@3 t0 i6x2 t7", "t2 i2x8 t4")
VIDEOS = ("t5 v2x4x6@3 t3 v3x6x2@3 t4", "t2 v1x2x8@3")
FOUND = discovery.families()
BUILT = sorted(name for name, found in FOUND.items() if isinstance(found, Family))


def batches(family: Family) -> list[tuple[str, ...]]:
    """The mixed batch as far as the family can take it, and one of videos where it cannot take both at once."""
    if "video" in family.modalities and not family.exclusive:
        mixed = MIXED
    else:
        mixed = tuple(" ".join(word for word in sample.split() if word[0] != "v") for sample in MIXED)
    if "audio" in family.modalities:
        mixed = (mixed[0] + " a1.3 t2", mixed[1] + " a0.7")
    if not (family.exclusive and "video" in family.modalities):
        return [mixed]
    return [mixed, VIDEOS]


@lru_cache(maxsize=4)
def built(name: str) -> tuple[Family, Any]:
    """A family with one model, shared by the tests of this process."""
    family = FOUND[name]
    assert isinstance(family, Family)
    return family, family.build(0)


def test_known_families_are_found() -> None:
    assert {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v"} <= set(BUILT)


def test_families_without_a_model_say_why() -> None:
    for name, found in FOUND.items():
        assert isinstance(found, Family) or found.startswith(name)


def test_listing_imports_no_transformers() -> None:
    code = (
        "import sys; from assay.audits.families import discovery; discovery.families();"
        "sys.exit('transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", BUILT)
def test_forward_and_backward(name: str) -> None:
    family, model = built(name)
    for batch_samples in batches(family):
        received: dict[str, Any] = {}
        where = sites.resolve(model, family.sites)
        hook = where.text_model.register_forward_pre_hook(
            lambda _module, _args, kwargs, received=received: received.update(kwargs), with_kwargs=True
        )
        inputs = family.batch(model, batch_samples, seed=1)
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        hook.remove()
        assert torch.isfinite(loss)
        assert received["position_ids"].dim() == 3
        assert received["position_ids"].shape[1:] == inputs["input_ids"].shape
        loss.backward()
        reached = [parameter.grad is not None for parameter in model.parameters()]
        model.zero_grad(set_to_none=True)
        assert sum(reached) > len(reached) / 2


@pytest.mark.parametrize("name", BUILT)
def test_sites_resolve(name: str) -> None:
    family, model = built(name)
    where = sites.resolve(model, family.sites)
    assert where.missing == ()
    parameters = sites.rotary_parameters(model, family.sites)
    assert parameters.rotary_dim == 2 * len(parameters.inv_freq)
    assert sum(parameters.sections) in (len(parameters.inv_freq), parameters.rotary_dim)


@pytest.mark.parametrize("name", BUILT)
def test_padding_side_and_seed(name: str) -> None:
    family, model = built(name)
    chosen = batches(family)[0]
    right, again, left = (
        family.batch(model, chosen, padding=side, seed=3)["input_ids"] for side in ("right", "right", "left")
    )
    assert torch.equal(right, again)
    mask = family.batch(model, chosen, padding="left", seed=3)["attention_mask"]
    assert mask[1, 0] == 0
    short = int(mask[1].sum())
    assert torch.equal(right[1, :short], left[1, -short:])
    assert not torch.equal(right, family.batch(model, chosen, seed=4)["input_ids"])


@pytest.mark.parametrize("name", BUILT)
def test_float64(name: str) -> None:
    family, model = built(name)
    if not family.float64:
        pytest.skip(f"{name} does not run in float64: {family.notes}")
    chosen = batches(family)[0]
    with torch.no_grad():
        single = model(**family.batch(model, chosen)).logits
        try:
            double = model.double()(**family.batch(model, chosen)).logits
        finally:
            model.float()
    assert double.dtype == torch.float64
    assert (double - single).abs().max() < 1e-3 * double.abs().max()


@pytest.mark.parametrize("name", BUILT)
def test_text_has_the_asked_length(name: str) -> None:
    family, model = built(name)
    without = family.batch(model, ["t1 i2x4"])["input_ids"].shape[1]
    assert family.batch(model, ["t8 i2x4 t5"])["input_ids"].shape[1] == without + 12


@pytest.mark.parametrize("name", BUILT)
def test_videos_are_prepared_as_the_family_does(name: str) -> None:
    recipe = importlib.import_module(f"assay.audits.families.{name}").RECIPE
    if not recipe.video:
        pytest.skip(f"{name} takes no videos")
    try:
        real_class = getattr(importlib.import_module("transformers"), recipe.video_processor)
        settings = {"draw_on_frames": False} if hasattr(real_class, "draw_on_frames") else {}
        sizes = (recipe.patch_size, recipe.merge_size, recipe.temporal_patch_size)
        patch, merge, step = sizes
        real = real_class(do_resize=False, patch_size=patch, merge_size=merge, temporal_patch_size=step, **settings)
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"the video processors of transformers need a torchvision that loads: {error}".splitlines()[0])
    draw = np.random.default_rng(0)
    videos = [draw.integers(0, 256, (frames, 16, 24, 3), dtype=np.uint8) for frames in (4, 8)]
    metadata = [
        {"total_num_frames": len(video), "fps": 2.0, "frames_indices": list(range(len(video)))} for video in videos
    ]
    want = real(videos, video_metadata=metadata, do_sample_frames=False, return_tensors="pt")
    have = recipe.frame_processor()(videos, video_metadata=metadata)
    assert torch.equal(have["video_grid_thw"], want["video_grid_thw"])
    assert torch.allclose(have["pixel_values_videos"], want["pixel_values_videos"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("sample", ["t5 i4x6 t3 v2x4x6@3 a1.5", "i2x2 i2x2", "v1x2x2@2", ""])
def test_notation_round_trip(sample: str) -> None:
    assert str(samples.parse(sample)) == sample


@pytest.mark.parametrize("sample", ["t", "i4", "i0x2", "v2x2", "v1x2x2@0", "a0", "x3", "t-1", "i4x6@2"])
def test_notation_errors_quote_the_segment(sample: str) -> None:
    with pytest.raises(ValueError, match=sample):
        samples.parse(f"t2 {sample}")


def test_a_grid_that_cannot_merge_is_refused() -> None:
    family, model = built("qwen2_vl")
    with pytest.raises(ValueError, match="multiples of 2"):
        family.batch(model, ["i3x4"])


def test_public_functions_have_docstrings() -> None:
    for module in (samples, sites, discovery):
        for name, value in inspect.getmembers(module, inspect.isfunction):
            assert name.startswith("_") or value.__doc__, name
