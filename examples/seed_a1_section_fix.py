"""A fix from a real training run for "split_with_sizes expects 128, gets 288", as a patch to be audited.

Its author read the doubling of ``mrope_section`` in transformers as a mistake and took it out. The doubling repeats the
list of sections, which is right for tables that repeat the lanes; what had been wrong was a collator that repeated the
list for every sample. So this form of the fix:

* keeps the sections as they are, or their first half when the list is long and says the same twice;
* wants them to fill the whole width of the tables;
* gives chunk ``i`` the angles of axis ``i mod 3`` and turns halves, which is what the original does.

Run it, from the folder that holds this file::

    assay audit patch mrope.rotate --patch seed_a1_section_fix:apply --family qwen2_5_vl

Expect FAIL with transformers before 5.17 (``patch.raises``: a stock section fills half the width), and UNKNOWN from
5.17 on (``patch.never-ran``: the function that it replaces is gone, and the assignment succeeds all the same).
"""

from __future__ import annotations

import torch
from torch import Tensor

LONGEST = 6


def rotate(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, mrope_section: list[int], unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """Turn q and k by tables [3, B, S, D], with sections that must fill D."""
    sections = list(mrope_section)
    half = len(sections) // 2
    if len(sections) > LONGEST and sections[:half] == sections[half:]:
        sections = sections[:half]
    if sum(sections) != cos.shape[-1]:
        message = f"mrope_section {sections} sums to {sum(sections)}, the tables are {cos.shape[-1]} wide"
        raise ValueError(message)
    merged = [
        torch.cat([chunk[i % 3] for i, chunk in enumerate(table.split(sections, dim=-1))], dim=-1).unsqueeze(
            unsqueeze_dim
        )
        for table in (cos, sin)
    ]
    return _turned(q, *merged), _turned(k, *merged)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def apply() -> None:
    """Put the fix where its author put it, whether or not the installed release reads that name."""
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl

    modeling_qwen2_5_vl.apply_multimodal_rotary_pos_emb = rotate
