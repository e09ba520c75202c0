"""What is read in a collator's batch, and audits of packing from the command line."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from assay.audits.choose import Request, UsageError, plan, recognised
from assay.audits.components.packed_positions import collated, pack
from assay.audits.components.packed_positions import plan as packing_plan

CPU = torch.device("cpu")
TEXT = pack.build(pack.Case(samples=("t3", "t1", "t2")), torch.int64, CPU)
IMAGES = pack.build(pack.Case(rule="qwen2_5_vl", samples=("t1 i4x4", "t2")), torch.int64, CPU)


def batch(**more: Any) -> dict[str, Any]:
    ids = torch.cat(TEXT.input_ids)[None]
    return {"input_ids": ids, "labels": ids.clone(), **more}


def numbers(**more: Any) -> list[int]:
    found: list[int] = collated.read(batch(**more), TEXT)["segments"].tolist()
    return found


def test_where_samples_begin() -> None:
    right = [1, 1, 1, 2, 3, 3]
    restarting = torch.tensor([[0, 1, 2, 0, 0, 1]])
    assert numbers(position_ids=restarting) == right
    assert numbers(cu_seqlens=torch.tensor([0, 3, 4, 6])) == right
    assert numbers(seq_idx=torch.tensor([[0, 0, 0, 1, 2, 2]])) == right
    assert numbers(attention_mask=torch.tensor([[1, 1, 1, 2, 3, 3]])) == right
    blocks = torch.block_diag(*(torch.ones(n, n).tril() for n in (3, 1, 2)))
    assert numbers(attention_mask=blocks[None, None].bool()) == right
    assert numbers(attention_mask=torch.where(blocks.bool(), 0.0, -1e9)[None, None]) == right
    assert numbers() == [1] * 6


def test_a_mask_of_ones_stands_before_everything_else() -> None:
    restarting = torch.tensor([[0, 1, 2, 0, 0, 1]])
    out = collated.read(batch(position_ids=restarting, attention_mask=torch.ones(1, 6)), TEXT)
    assert out["segments"].tolist() == [1] * 6
    assert out["told:position_ids"].tolist() == [1, 1, 1, 2, 3, 3]


def test_position_ids_of_any_shape() -> None:
    total = sum(IMAGES.lengths)
    ids = torch.cat(IMAGES.input_ids)[None]
    axes = torch.arange(3 * total).view(3, 1, total)
    text = torch.arange(total)[None]
    four = torch.cat([text[None], axes])
    for given, rows in ((four, axes[:, 0]), (four[:, 0], axes[:, 0]), (axes, axes[:, 0]), (text, text.expand(3, -1))):
        out = collated.read({"input_ids": ids, "labels": ids, "position_ids": given}, IMAGES)
        assert torch.equal(out["positions"], rows)
    with pytest.raises(ValueError, match="position_ids: expected .*, got \\[5, "):
        collated.read({"input_ids": ids, "labels": ids, "position_ids": torch.zeros(5, 1, total)}, IMAGES)
    with pytest.raises(ValueError, match="input_ids: expected one row"):
        collated.read({"input_ids": torch.zeros(2, 3)}, TEXT)


def test_a_tail_that_is_not_trained_on_is_cut_off() -> None:
    grown = {name: torch.cat([x, torch.full((1, 2), -100)], dim=1) for name, x in batch().items()}
    out = collated.read({**grown, "cu_seqlens": torch.tensor([0, 3, 4, 6, 8])}, TEXT)
    assert out["input_ids"].shape == (6,)
    assert out["cu_seqlens"].tolist() == [0, 3, 4, 6]
    grown["labels"][0, -1] = 5
    assert collated.read(grown, TEXT)["input_ids"].shape == (8,)


def test_features_are_those_of_a_processor() -> None:
    first, second = collated.features(IMAGES, as_lists=True)
    assert {"input_ids", "labels", "attention_mask", "mm_token_type_ids", "image_grid_thw", "pixel_values"} <= set(
        first
    )
    assert isinstance(first["input_ids"], list)
    assert first["pixel_values"].shape[0] == int(first["image_grid_thw"].prod(-1).sum())
    assert "image_grid_thw" not in second
    assert collated.features(IMAGES, as_lists=False)[0]["input_ids"] is IMAGES.input_ids[0]


@pytest.mark.parametrize(
    ("operation", "parameters", "form"),
    [
        (pack.OPERATION, ("features",), "collator"),
        (pack.OPERATION, ("examples",), "collator-tensors"),
        (packing_plan.OPERATION, ("lengths", "capacity"), "indices"),
        (packing_plan.OPERATION, ("lengths", "capacity", "overlong"), "assay"),
        (packing_plan.OPERATION, ("seqlens", "pack_size"), "pack-size"),
    ],
)
def test_forms_are_recognised(operation: Any, parameters: tuple[str, ...], form: str) -> None:
    assert [found.name for found in recognised(operation, parameters)] == [form]


def test_a_function_of_position_ids_says_what_it_returns() -> None:
    request = Request(targets=("packed_positions.boundaries",), candidate="packing_rewrites:steps_by_zeros")
    with pytest.raises(UsageError, match="fits several call forms"):
        plan(request, lambda _ref: ("position_ids",))
