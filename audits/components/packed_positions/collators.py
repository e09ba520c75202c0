"""A right collator that packs, and its parts: what wrong ones depart from."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from assay.audits.components.packed_positions import collated
from assay.audits.components.packed_positions.pack import Inputs, reference
from assay.audits.terms import Implementation, Outputs
from assay.reference import packed_positions

Batch = dict[str, Any]


def batch(inputs: Inputs) -> Batch:
    """A right collator's batch: the row, four rows of ids where there are axes, cumulative lengths, all the rest."""
    pack = packed_positions.pack(
        [inputs.sample(number) for number in range(len(inputs.input_ids))],
        rule=inputs.position_rule, ignore_index=inputs.ignore_index,
    )  # fmt: skip
    ids = pack.position_ids[None] if pack.axis_ids is None else pack.text_and_axes
    made: Batch = {
        "input_ids": pack.input_ids[None], "labels": pack.labels[None], "position_ids": ids,
        "cu_seq_lens_q": pack.cu_seqlens, "cu_seq_lens_k": pack.cu_seqlens, "max_length_q": pack.max_length,
        "weights": pack.further["weights"][None],
    }  # fmt: skip
    grids = {"image_grid_thw": pack.image_grids, "video_grid_thw": pack.video_grids}
    features = {collated.THEIRS[name]: value for name, value in pack.features.items()}
    return made | features | {name: value for name, value in grids.items() if value is not None}


def collates(wrong: Callable[[Inputs], Batch]) -> Implementation:
    """A collator as an implementation. Rows that are to be aligned are not its business: they come out right."""

    @functools.wraps(wrong)
    def run(inputs: Inputs) -> Outputs:
        return collated.read(wrong(inputs), inputs) if inputs.multiple == 1 else reference(inputs)

    return run


def with_lengths(made: Batch, ends: Tensor) -> Batch:
    """The batch with these cumulative lengths."""
    longest = int(ends.diff().max()) if len(ends) > 1 else int(ends.max())
    return {**made, "cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest}


def without_lengths(made: Batch) -> Batch:
    """The batch without cumulative lengths."""
    return {name: value for name, value in made.items() if not name.startswith(("cu_", "max_"))}
