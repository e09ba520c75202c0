"""Right packing written otherwise is not accused, whichever call form it comes in."""

from __future__ import annotations

from typing import Any

import packing_rewrites
import pytest

from assay.audits import registry
from assay.audits.components.packed_positions import (
    boundary_faults,
    collated,
    collators,
    mask,
    mask_faults,
    pack,
    plan,
    plan_faults,
    shard,
    shard_faults,
)
from assay.audits.run import Options, audit
from assay.audits.terms import Candidate, Outputs, Verdict

TEXT = {"rule": "text"}
REWRITES = [
    ("plan", "indices", "next_fit", {}),
    ("plan", "indices", "best_fit_decreasing", {}),
    ("plan", "sizes", "knapsacks", {}),
    ("plan", "pack-size", "first_fit", {}),
    ("plan", "assay", "in_order_with_policies", {}),
    ("plan", "indices", "worst_fit", {}),
    ("pack", "collator", "with_restarting_ids", TEXT),
    ("pack", "collator", "with_numbers_in_the_mask", TEXT),
    ("pack", "collator", "with_a_mask_of_four_dimensions", TEXT),
    ("pack", "collator", "with_lengths_and_a_filled_tail", TEXT),
    ("pack", "collator", "with_labels_moved", TEXT),
    ("pack", "collator", "with_axes_of_each", {"rule": "qwen2_5_vl"}),
    ("pack", "collator-tensors", "of_tensors", TEXT),
    ("pack", "collator", "with_a_filled_mask_of_four_dimensions", TEXT),
    ("pack", "collator", "with_labels_twice", TEXT),
    ("pack", "collator", "with_types_and_half_pixels", {"rule": "qwen2_5_vl"}),
    ("boundaries", "assay", "steps_by_padding", {}),
    ("boundaries", "hf-flash", "steps_by_zeros", {}),
    ("boundaries", "unpad", "unpadded", {}),
    ("boundaries", "segments", "numbers_by_loops", {}),
    ("mask", "numbers", "mask_of_numbers", {}),
    ("mask", "cu-seqlens", "mask_of_lengths", {}),
    ("mask", "cu-seqlens", "by_blocks", {}),
    ("mask", "positions", "mask_of_positions", {}),
    ("shard", "rank", "zigzag_of_a_rank", {}),
    ("shard", "rank", "padded_pieces_of_a_rank", {}),
    ("shard", "rank", "padded_zigzag_of_a_rank", {}),
    ("boundaries", "hf-flash", "steps_twice", {}),
    ("boundaries", "unpad", "unpadded_by_bincount", {}),
    ("mask", "numbers", "mask_by_products", {}),
    ("plan", "indices", "sorted_chunks", {}),
]


def _passes(operation: str, ref: str, form: str = "", scope: Any = None) -> None:
    target = {"kind": "import", "ref": ref, "operation": operation}
    candidate = Candidate(operation=operation, name=ref, form=form, target=target, trusted=True, scope=scope or {})
    report = audit(registry.operation(operation), candidate, Options(examples=6))
    assert [(f.rule, f.case, f.message) for f in report.findings] == []
    assert report.verdict == Verdict.PASS


@pytest.mark.parametrize(("room", "form", "name", "scope"), REWRITES, ids=lambda x: x if isinstance(x, str) else "")
def test_a_rewrite_is_not_accused(room: str, form: str, name: str, scope: dict[str, Any]) -> None:
    assert callable(getattr(packing_rewrites, name))
    _passes(f"packed_positions.{room}", f"packing_rewrites:{name}", form, scope)


def nothing_wrong_in_order(inputs: plan.Inputs) -> Outputs:
    """The plan faults' form with nothing changed."""
    return plan_faults.next_fit(inputs)


def nothing_wrong_collated(inputs: pack.Inputs) -> Outputs:
    """The collator faults' form with nothing changed."""
    if inputs.multiple != 1:
        return pack.reference(inputs)
    return collated.read(collators.batch(inputs.of(*(i for i, n in enumerate(inputs.lengths) if n))), inputs)


def nothing_wrong_seen(inputs: Any) -> Outputs:
    """The mask faults' form with nothing changed."""
    return mask.read(mask_faults.seen(inputs), inputs)


def nothing_wrong_by_starts(inputs: Any) -> Outputs:
    """The boundary faults' form with nothing changed."""
    import torch

    flat = (inputs.segments + torch.arange(len(inputs.segments))[:, None] * 100)[inputs.segments != 0]
    return boundary_faults._starts(torch.cat([torch.ones(1, dtype=torch.bool), flat[1:] != flat[:-1]]))


def nothing_wrong_in_pieces(inputs: shard.Inputs) -> Outputs:
    """The shard faults' form with nothing changed."""
    return shard.read(shard_faults.pieces(inputs))


@pytest.mark.parametrize(
    ("room", "name"),
    [
        ("plan", "nothing_wrong_in_order"),
        ("pack", "nothing_wrong_collated"),
        ("mask", "nothing_wrong_seen"),
        ("boundaries", "nothing_wrong_by_starts"),
        ("shard", "nothing_wrong_in_pieces"),
    ],
)
def test_the_forms_that_faults_are_made_of_are_right(room: str, name: str) -> None:
    _passes(f"packed_positions.{room}", f"{__name__}:{name}")


def test_writing_into_the_data_set_is_found() -> None:
    target = {"kind": "import", "ref": "packing_rewrites:written_into", "operation": pack.NAME}
    candidate = Candidate(operation=pack.NAME, name="written", form="collator", target=target, trusted=True, scope=TEXT)
    report = audit(registry.operation(pack.NAME), candidate, Options(examples=0))
    assert {(f.rule.rpartition(".")[2], f.where) for f in report.findings} >= {("mutates", "labels.0")}


def _rules(name: str) -> set[str]:
    candidate = next(c for c in registry.candidates(pack.NAME) if c.name == name)
    from dataclasses import replace

    report = audit(registry.operation(pack.NAME), replace(candidate, trusted=True), Options(examples=0))
    return {f.rule.rpartition(".")[2] for f in report.findings if f.verdict == Verdict.FAIL}


def test_what_transformers_collator_leaves_out() -> None:
    """It takes the ids and labels alone, and writes a label for a sample without tokens."""
    assert _rules("transformers.flattening") == {"carried", "empties"}
    assert _rules("transformers.flattening-seq-idx") == {"carried", "empties"}
    assert _rules("transformers.flattening-images") == {"carried", "empties", "grid", "parity"}
