"""Blocks of patches on a grid, chosen at random: what a joint-embedding model predicts, and what it may see.

A block has the size that was asked for and lies within the grid; each place where it fits is as likely as any other. A
block that fits nowhere is an error: one that is cut at the edge hides fewer patches than the loss, and whoever reads
the configuration, assumes. Along an axis of N patches a block of n has N - n + 1 places, the last of them included:
`randint` leaves its upper end out, so that end is one more.
"""

import math

import torch
from torch import Tensor

__all__ = ["block_of_area", "context_mask", "sample_block", "sample_masks"]


def sample_block(grid: tuple[int, int], block: tuple[int, int], generator: torch.Generator) -> tuple[int, int]:
    """The row and column of the first patch of a block, uniform over all places where it fits.

    Args:
        grid: rows and columns of patches, each above 0.
        block: rows and columns of the block, each above 0.
        generator: on the CPU; two numbers are drawn from it.

    Raises:
        TypeError, ValueError: sizes that are no whole numbers above 0; a block that is larger than the grid.
    """
    for name, sizes in (("grid", grid), ("block", block)):
        for size in sizes:
            if isinstance(size, bool) or not isinstance(size, int):
                raise TypeError(f"{name}: expected two whole numbers, got {sizes!r}")
            if size < 1:
                raise ValueError(f"{name}: expected two numbers above 0, got {sizes!r}")
    if block[0] > grid[0] or block[1] > grid[1]:
        raise ValueError(f"block: expected at most {grid[0]} x {grid[1]} patches, got {block[0]} x {block[1]}")
    top, left = (int(torch.randint(0, n - b + 1, (), generator=generator)) for n, b in zip(grid, block, strict=True))
    return top, left


def block_of_area(area: int, aspect: float) -> tuple[int, int]:
    """Rows and columns of the block of about `area` patches whose rows are `aspect` times its columns.

    Both sides are rounded to the nearest whole number: cut, a side of 3 that is computed as 2.9999999999999996 is 2.

    Raises:
        ValueError: an area below 1, or an aspect that is not above 0 and finite.
    """
    if area < 1:
        raise ValueError(f"area: expected a number of patches above 0, got {area!r}")
    if not 0 < aspect < math.inf:
        raise ValueError(f"aspect: expected a finite number above 0, got {aspect!r}")
    return max(1, round(math.sqrt(area * aspect))), max(1, round(math.sqrt(area / aspect)))


def sample_masks(
    grid: tuple[int, int], block: tuple[int, int], targets: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Target blocks and what is left of the grid: bool [K,H,W] and [H,W], drawn one after the other; they may overlap.

    Raises:
        TypeError, ValueError: as :func:`sample_block`.
    """
    masks = torch.zeros(targets, *grid, dtype=torch.bool)
    for mask in masks:
        top, left = sample_block(grid, block, generator)
        mask[top : top + block[0], left : left + block[1]] = True
    return masks, context_mask(masks)


def context_mask(targets: Tensor) -> Tensor:
    """The patches [H,W] that are in none of the targets [K,H,W], bool."""
    return ~targets.any(0)
