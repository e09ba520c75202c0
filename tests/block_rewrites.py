"""Samplers of blocks as people write them, right and wrong, each with the call form that it has."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assay.reference.block_masks import sample_block

Rectangle = tuple[int, int, int, int]


def unchecked(height: int, width: int, block_height: int, block_width: int, generator: torch.Generator) -> Any:
    """Nothing is asked of the sizes: an empty range is torch's own error."""
    top = torch.randint(0, height - block_height + 1, (1,), generator=generator)
    left = torch.randint(0, width - block_width + 1, (1,), generator=generator)
    return top.item(), left.item()


def by_fractions(height: int, width: int, block_height: int, block_width: int, generator: torch.Generator) -> Rectangle:
    assert block_height <= height
    assert block_width <= width, "does not fit"
    row, column = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    return int(row * (height - block_height + 1)), int(column * (width - block_width + 1)), block_height, block_width


def one_number_for_both(
    height: int, width: int, block_height: int, block_width: int, generator: torch.Generator
) -> Any:
    """The place among all places, then its row and column; as a tensor."""
    rows, columns = height - block_height + 1, width - block_width + 1
    if rows < 1 or columns < 1:
        raise RuntimeError("no such block")
    place = int(torch.randint(rows * columns, (1,), generator=generator))
    return torch.tensor(divmod(place, columns))


def by_permutation(height: int, width: int, block_height: int, block_width: int, generator: torch.Generator) -> Tensor:
    """A mask, from the first of all places in a random order."""
    if not (block_height <= height and block_width <= width):
        raise ValueError("too large")
    rows, columns = height - block_height + 1, width - block_width + 1
    place = int(torch.randperm(rows * columns, generator=generator)[0])
    mask = torch.zeros(height, width)
    mask[place // columns :, place % columns :][:block_height, :block_width] = 1
    return mask


def numbers_by_numpy(height: int, width: int, block_height: int, block_width: int, generator: torch.Generator) -> Any:
    """Numpy draws, seeded by the generator that was given."""
    draw = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    top, left = draw.integers(0, height - block_height + 1), draw.integers(width - block_width, endpoint=True)
    grid = np.arange(height * width).reshape(height, width)
    return grid[top : top + block_height, left : left + block_width].flatten()


def of_area(height: int, width: int, area: int, aspect: float, generator: torch.Generator) -> Rectangle:
    rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if rows > height or columns > width:
        raise ValueError(f"{rows} x {columns}")
    top, left = (int(torch.randint(n, (1,), generator=generator)) for n in (height - rows + 1, width - columns + 1))
    return top, left, rows, columns


def of_area_in_another_shape(
    height: int, width: int, area: int, aspect: float, generator: torch.Generator
) -> Rectangle:
    """Where a side does not fit, another shape of the same area is taken, if there is one."""
    rows = round(math.sqrt(area * aspect))
    options = [r for r in range(1, height + 1) if area % r == 0 and area // r <= width]
    if not options:
        raise ValueError("the area does not fit")
    rows = min(options, key=lambda r: abs(r - rows))
    top = int(torch.randint(height - rows + 1, (1,), generator=generator))
    return top, int(torch.randint(width - area // rows + 1, (1,), generator=generator)), rows, area // rows


def with_a_context_block(height: int, width: int, block: Any, targets: int, generator: torch.Generator) -> Any:
    """As in I-JEPA, with its ranges mended: the context is a block of its own, without the targets."""
    masks = []
    for _ in range(targets):
        top = torch.randint(0, height - block[0] + 1, (1,), generator=generator)
        left = torch.randint(0, width - block[1] + 1, (1,), generator=generator)
        mask = torch.zeros((height, width), dtype=torch.int32)
        mask[top : top + block[0], left : left + block[1]] = 1
        masks.append(torch.nonzero(mask.flatten()).squeeze(1))
    context = torch.ones((height, width), dtype=torch.int32)
    context[: int(torch.randint(1, height + 1, (1,), generator=generator)) // 4] = 0
    context.flatten()[torch.cat(masks)] = 0
    return masks, torch.nonzero(context.flatten()).squeeze(1)


def named(height: int, width: int, block_height: int, block_width: int, generator: torch.Generator) -> Any:
    top, left = unchecked(height, width, block_height, block_width, generator)
    return {"top": top, "left": left, "height": block_height, "width": block_width}


def of_two_sizes(grid: Any, block: Any, generator: torch.Generator) -> Any:
    """The reference itself, as a user calls it."""
    return sample_block(grid, block, generator)


def by_python(height: int, width: int, block_height: int, block_width: int) -> Any:
    return random.randint(0, height - block_height), random.randrange(width - block_width + 1)


def by_torch(height: int, width: int, block_height: int, block_width: int) -> Any:
    return [int(torch.randint(0, n + 1, ())) for n in (height - block_height, width - block_width)]


def range_made_one(height: int, width: int, block_height: int, block_width: int, generator: torch.Generator) -> Any:
    """Wrong: the first mending of the H-JEPA sampler."""
    top = torch.randint(0, max(1, height - block_height + 1), (1,), generator=generator)
    return int(top), int(torch.randint(0, max(1, width - block_width + 1), (1,), generator=generator))


def range_made_one_masked(height: int, width: int, block_height: int, block_width: int, generator: Any) -> Tensor:
    """Wrong: the same as a mask, which cuts in silence."""
    top, left = range_made_one(height, width, block_height, block_width, generator)
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[top : top + block_height, left : left + block_width] = True
    return mask


def rounded(height: int, width: int, block_height: int, block_width: int, generator: torch.Generator) -> Any:
    """Wrong: the first and the last place half as often as the others."""
    if block_height > height or block_width > width:
        raise ValueError("too large")
    row, column = torch.rand(2, generator=generator).tolist()
    return round(row * (height - block_height)), round(column * (width - block_width))


def sizes_clamped(height: int, width: int, area: int, aspect: float, generator: torch.Generator) -> Rectangle:
    """Wrong: sides that are larger than the grid are cut."""
    rows = min(height, round(math.sqrt(area * aspect)))
    columns = min(width, round(math.sqrt(area / aspect)))
    top, left = (int(torch.randint(n, (1,), generator=generator)) for n in (height - rows + 1, width - columns + 1))
    return top, left, rows, columns


def as_published(height: int, width: int, block: Any, targets: int, generator: torch.Generator) -> Any:
    """Wrong: I-JEPA's ranges, which leave out the last row and column."""
    rows, columns = block
    while rows >= height:
        rows -= 1
    while columns >= width:
        columns -= 1
    masks = []
    for _ in range(targets):
        mask = torch.zeros(height, width, dtype=torch.bool)
        top = int(torch.randint(0, height - rows, (1,), generator=generator))
        left = int(torch.randint(0, width - columns, (1,), generator=generator))
        mask[top : top + rows, left : left + columns] = True
        masks.append(mask)
    return masks, ~torch.stack(masks).any(0)


RIGHT = {
    "unchecked": "corner", "named": "corner", "by_fractions": "corner", "one_number_for_both": "corner",
    "by_permutation": "mask",
    "numbers_by_numpy": "indices", "of_area": "area", "of_area_in_another_shape": "area",
    "of_two_sizes": "grid", "with_a_context_block": "masks", "by_python": "global", "by_torch": "global",
}  # fmt: skip
WRONG = {
    "range_made_one": ("corner", {"larger"}), "range_made_one_masked": ("mask", {"larger"}),
    "rounded": ("corner", {"uniform"}),
    "sizes_clamped": ("area", {"larger"}), "as_published": ("masks", {"ends", "uniform", "larger", "area"}),
}  # fmt: skip
