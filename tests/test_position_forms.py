"""What a function of ``mrope.positions`` is handed through each call form, and what a form says it cannot express."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from assay.audits import registry, resolve
from assay.audits.components.mrope.positions import Case, Inputs, build
from assay.audits.terms import Inexpressible

CPU = torch.device("cpu")
IMAGE = build(Case(), torch.int64, CPU)
VIDEO = build(Case(samples=("t1 v2x4x4 t1",)), torch.int64, CPU)
TEXT = build(Case(samples=("t3",)), torch.int64, CPU)
BARE = build(Case(samples=("i4x4 t1",), wrap=False), torch.int64, CPU)
AUDIO = build(Case(rule="qwen2_5_omni", samples=("t1 a1 t1",)), torch.int64, CPU)


class Called(Exception):
    """Carries what a function was called with."""


def optional(
    input_ids, mm_token_type_ids, image_grid_thw=None, video_grid_thw=None, second_per_grid_ts=None, attention_mask=None
):
    raise Called({name: value for name, value in locals().items() if value is not None})


def required(input_ids, mm_token_type_ids, image_grid_thw, video_grid_thw, attention_mask):
    raise Called(locals())


def anything(*args, **kwargs):
    raise Called(dict(enumerate(args)) | kwargs)


def handed(form: str, function: Callable[..., Any], inputs: Inputs) -> dict[Any, Any]:
    """The arguments of the one call."""
    with pytest.raises(Called) as caught:
        resolve._through(registry.form("mrope.positions", form), function)(inputs)
    return caught.value.args[0]


@pytest.mark.parametrize(
    ("inputs", "names"),
    [
        (IMAGE, {"image_grid_thw", "attention_mask"}),
        (VIDEO, {"video_grid_thw", "second_per_grid_ts", "attention_mask"}),
        (TEXT, {"attention_mask"}),
        (replace(IMAGE, absent=("attention_mask",)), {"image_grid_thw"}),
        (replace(VIDEO, absent=("seconds_per_grid", "image_grids")), {"video_grid_thw", "attention_mask"}),
        (replace(TEXT, absent=("image_grids", "video_grids", "attention_mask")), set()),
        (replace(TEXT, empty=("image_grids", "video_grids")), {"image_grid_thw", "video_grid_thw", "attention_mask"}),
    ],
)
def test_what_is_there_is_handed_over(inputs: Inputs, names: set[str]) -> None:
    assert set(handed("hf-5.3", optional, inputs)) == {"input_ids", "mm_token_type_ids"} | names


def test_grids_are_handed_over_by_position_so_that_they_may_have_other_names() -> None:
    got = handed("hf-5.3", anything, VIDEO)
    assert (got[2], got[3] is VIDEO.video_grids) == (None, True)
    assert set(got) == {0, 1, 2, 3, "attention_mask", "second_per_grid_ts"}


def test_required_grids_of_what_is_not_there_are_none() -> None:
    got = handed("hf-5.3", required, replace(IMAGE, absent=("video_grids",)))
    assert (got["image_grid_thw"] is IMAGE.image_grids, got["video_grid_thw"]) == (True, None)


def test_seconds_go_to_rules_that_count_them() -> None:
    counted = build(Case(samples=("t1 v2x4x4 t1",), rule="qwen2_vl"), torch.int64, CPU)
    assert "second_per_grid_ts" not in handed("hf-5.3", optional, counted)


@pytest.mark.parametrize(
    ("form", "function", "inputs", "why"),
    [
        ("hf-5.3", required, replace(IMAGE, absent=("attention_mask",)), "the function requires attention_mask"),
        ("hf-5.3", required, replace(VIDEO, absent=("seconds_per_grid",)), "the function takes no second_per_grid_ts"),
        ("hf-5.3", optional, replace(IMAGE, ids_per_second=3.0), "another rate than 4"),
        ("hf-5.3", optional, AUDIO, "the form has no audio"),
        ("hf-4.57", anything, BARE, "by the markers before them"),
    ],
)
def test_what_cannot_be_expressed_is_told(form: str, function: Callable[..., Any], inputs: Inputs, why: str) -> None:
    with pytest.raises(Inexpressible, match=why):
        resolve._through(registry.form("mrope.positions", form), function)(inputs)
