"""Labels of which a share is not scored, in spans or at random."""

from __future__ import annotations

import torch
from torch import Tensor

from assay.benchmarks.nouns import Shape

IGNORED = -100
SPANS = 8
"""Of how many parts a row is made whose front is a prompt and whose end is its answer."""


def labels(shape: Shape, vocabulary: int, device: torch.device) -> Tensor:
    """[S] int64, on the device; exactly the share of the shape, rounded down, is ``IGNORED``."""
    draw = torch.Generator().manual_seed(shape.tokens)
    made = torch.randint(0, vocabulary, (shape.tokens,), generator=draw)
    ignored = int(shape.masked * shape.tokens)
    if shape.mask == "random":
        made[torch.randperm(shape.tokens, generator=draw)[:ignored]] = IGNORED
    else:
        for number in range(SPANS):
            start = shape.tokens * number // SPANS
            share = ignored * (number + 1) // SPANS - ignored * number // SPANS
            made[start : start + share] = IGNORED
    return made.to(device)


def scored(shape: Shape) -> int:
    """How many labels are scored."""
    return shape.tokens - int(shape.masked * shape.tokens)
