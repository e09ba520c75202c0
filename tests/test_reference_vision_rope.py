"""The vision tower's rotary embedding: known answers and the tower of every family of the installed transformers."""

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from assay.reference.mrope import expand_tables
from assay.reference.vision_rope import (
    VISION_LAYOUTS,
    VISION_TOWERS,
    patch_coordinates,
    rotate_patches,
    vision_lanes,
    vision_tables,
)

FP32 = torch.finfo(torch.float32).eps
HEAD_DIM = 28  # not a multiple of 6, so that the three-coordinate layout leaves a rest
BASE = 300.0


def test_coordinates_in_blocks_by_hand() -> None:
    grids = torch.tensor([[1, 4, 6], [2, 2, 2]])
    assert patch_coordinates(grids, merge=2).tolist() == [
        [0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3, 2, 2, 3, 3] + [0, 0, 1, 1] * 2,
        [0, 1, 0, 1, 2, 3, 2, 3, 4, 5, 4, 5] * 2 + [0, 1, 0, 1] * 2,
    ]


def test_coordinates_in_rows_by_hand() -> None:
    names = ("time", "column", "row")
    assert patch_coordinates(torch.tensor([[2, 1, 3]]), coordinates=names, first=1).tolist() == [
        [0, 0, 0, 1, 1, 1],
        [1, 2, 3, 1, 2, 3],
        [1, 1, 1, 1, 1, 1],
    ]


@pytest.mark.parametrize("merge", [1, 2, 3])
@pytest.mark.parametrize("with_time", [True, False])
def test_coordinates_equal_hugging_face(merge: int, with_time: bool) -> None:
    helper = importlib.import_module("transformers.vision_utils").get_vision_position_ids
    grids = torch.tensor([[1, 6, 12], [3, 12, 6], [1, 6, 6]])
    mine = patch_coordinates(grids, merge=merge, coordinates=("time", "row", "column")[not with_time :])
    assert torch.equal(mine.T, helper(grids, merge, include_temporal=with_time))


@pytest.mark.parametrize(
    ("grids", "message"),
    [([[1, 3, 4]], "multiples of 2"), ([[1, 0, 4]], "positive"), ([1, 2, 2], "shape")],
)
def test_grids_that_do_not_fit_are_errors(grids: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        patch_coordinates(torch.tensor(grids), merge=2)


def tower_module(family: str) -> Any:
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    owners = [value for value in vars(module).values() if hasattr(value, "compute_axial_rope_parameters")]
    assert len(owners) == 1
    config = SimpleNamespace(
        head_dim=HEAD_DIM,
        rope_parameters={"rope_type": "axial", "rope_theta": BASE},
        memory_attention_hidden_size=HEAD_DIM,
        memory_attention_downsample_rate=1,
        memory_attention_num_attention_heads=1,
    )
    return owners[0](config)


@pytest.mark.parametrize("family", sorted(VISION_TOWERS))
def test_tables_equal_hugging_face(family: str) -> None:
    tower = VISION_TOWERS[family]
    places = patch_coordinates(torch.tensor([[2, 6, 10]]), merge=2, coordinates=tower.coordinates, first=tower.first)
    lanes = vision_lanes(tower.layout, HEAD_DIM, base=BASE)
    mine = expand_tables(*vision_tables(places, lanes), lanes.pairing)
    batched = places.T[None] if family == "gemma4" else places.T
    theirs = tower_module(family)(torch.zeros(1), batched)
    # fp32 frequencies (a power, some ulps), angles of at most 11 radians and their cosines.
    limit = 8 * FP32 * float(places.max()) + FP32
    for table, truth in zip(theirs, mine, strict=True):
        assert table.shape[-1] == truth.shape[-1]
        assert float((table.reshape(truth.shape).double() - truth).abs().max()) <= limit


APPLY = {
    "hwhw": "qwen2_vl",
    "whwh": "step3p7",
    "wh_lanes": "kimi_k25",
    "pairs_wh": "inkling2",
    "thwthw": "minimax_m3_vl",
}


@pytest.mark.parametrize("layout", sorted(APPLY))
def test_rotation_equals_hugging_face(layout: str) -> None:
    family = APPLY[layout]
    tower = VISION_TOWERS[family]
    gen = torch.Generator().manual_seed(11)
    x = torch.randn(60, 3, HEAD_DIM, generator=gen)
    places = patch_coordinates(torch.tensor([[1, 6, 10]]), merge=2, coordinates=tower.coordinates, first=tower.first)
    lanes = vision_lanes(layout, HEAD_DIM, base=BASE)
    cos, sin = vision_tables(places, lanes)
    mine = rotate_patches(x.double(), cos, sin, pairing=lanes.pairing)
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    wide = [table.float() for table in expand_tables(cos, sin, lanes.pairing)]
    theirs, _ = module.apply_rotary_pos_emb_vision(x, x, *wide)
    # Two products and a sum in fp32, from tables rounded to fp32.
    assert float((theirs.double() - mine).abs().max()) <= 4 * FP32 * float(x.abs().max()) * 2


def test_gemma4_rotates_each_half_of_the_channels_on_its_own() -> None:
    module = importlib.import_module("transformers.models.gemma4.modeling_gemma4")
    x = torch.randn(60, 3, HEAD_DIM, generator=torch.Generator().manual_seed(12))
    places = patch_coordinates(torch.tensor([[1, 6, 10]]), coordinates=("column", "row"))
    lanes = vision_lanes("hhww", HEAD_DIM, base=BASE)
    cos, sin = vision_tables(places, lanes)
    mine = rotate_patches(x.double(), cos, sin, pairing=lanes.pairing)
    wide = [table.float()[None] for table in expand_tables(cos, sin, lanes.pairing)]
    theirs = module.apply_multidimensional_rope(x[None], *wide, places.T[None])[0]
    assert float((theirs.double() - mine).abs().max()) <= 8 * FP32 * float(x.abs().max())


@pytest.mark.parametrize("layout", sorted(VISION_LAYOUTS))
def test_each_coordinate_turns_its_share_of_the_lanes(layout: str) -> None:
    lanes = vision_lanes(layout, 24)
    counts = lanes.axes.bincount().tolist()
    assert counts == [12 // len(counts)] * len(counts)
    assert len(lanes.inv_freq) == 12


@pytest.mark.parametrize(
    ("layout", "head_dim"), [("hwhw", 6), ("hwhw", 0), ("thwthw", 4), ("thwthw", 7), ("spiral", 8)]
)
def test_heads_that_do_not_fit_are_errors(layout: str, head_dim: int) -> None:
    with pytest.raises(ValueError, match=r"head_dim|layout"):
        vision_lanes(layout, head_dim)
