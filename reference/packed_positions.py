"""Packing: several samples in one row, each of them treated as if it stood alone.

Which samples go together (`packed_plan`), what a row of them is (`packed_samples`), how a model is told where each
begins and ends (`packed_boundaries`), and how a row is dealt out to ranks (`packed_shards`).
"""

from assay.reference.packed_boundaries import (
    attention_boundaries,
    cumulative_lengths,
    segments_of_lengths,
    segments_of_positions,
)
from assay.reference.packed_plan import POLICIES, Piece, Plan, plan
from assay.reference.packed_samples import Pack, Sample, pack
from assay.reference.packed_shards import LAYOUTS, aligned, shard, shard_batch, shard_map, unshard

__all__ = [
    "LAYOUTS", "POLICIES", "Pack", "Piece", "Plan", "Sample", "aligned", "attention_boundaries", "cumulative_lengths",
    "pack", "plan", "segments_of_lengths", "segments_of_positions", "shard", "shard_batch", "shard_map", "unshard",
]  # fmt: skip
