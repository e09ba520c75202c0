"""transformers: its ``Trainer`` and its collators, and what its multi-axis families do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from assay.audits import peer, registry
from assay.audits.terms import Candidate

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen2_5_omni", "glm4v", "hunyuan_vl", "ernie4_5_vl_moe")
OPERATIONS = ("mrope.positions", "masked_scatter.model", "masked_loss.model", "packed_positions.model")


def _candidates() -> Iterator[Candidate]:
    for operation in ("pipeline.batch", "label_mask.labels", "label_mask.collate"):
        for found in registry.candidates(operation):
            if found.origin == "transformers" or "upstream" in str(found.target.get("pipeline", "")):
                yield replace(found, trusted=False, by_name=False)
    for operation in OPERATIONS:
        for family in FAMILIES:
            if (made := registry.family_candidate(operation, family)) is not None:
                yield made


PEER = peer.Peer(
    name="transformers",
    source="https://github.com/huggingface/transformers",
    requirements=("transformers==5.23.0", "accelerate==1.15.0", "pillow"),
    candidates=_candidates,
    preload=("transformers.trainer",),
)
