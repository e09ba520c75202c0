"""What samplers of blocks return, read as one thing: how often each patch of the grid is named.

Letters: N draws, K blocks of one draw, H x W patches of the grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from assay.audits.observe import BadReturn
from assay.audits.terms import Outputs

Grid = tuple[int, int]
Counts = npt.NDArray[np.int64]
PARTS = (("top", "row", "y"), ("left", "column", "col", "x"), ("rows", "height", "h"), ("columns", "width", "w"))
"""What a rectangle's parts are called in a mapping."""


@dataclass(frozen=True)
class Block:
    """How often each patch [H,W] is named, how many numbers name none, and whether they rise."""

    covered: Counts
    stray: int = 0
    rising: bool = True


class Sheet:
    """Draws that are painted one by one onto grids of the same size."""

    def __init__(self, grid: Grid, block: Grid) -> None:
        """Of blocks of this size, where a draw tells no size."""
        self.grid, self.block = grid, block
        self.draws: list[list[Block]] = []
        self.contexts: list[Block] = []

    def corner(self, drawn: Any) -> None:
        """One block, as (top, left) or (top, left, rows, columns), or a mapping with ``top`` and ``left``."""
        if isinstance(drawn, Mapping):
            sides = [next((drawn[key] for key in names if key in drawn), None) for names in PARTS]
            drawn = [side for side in sides if side is not None]
        numbers = _whole(drawn).tolist()
        if len(numbers) not in {2, 4}:
            message = f"expected (top, left) or (top, left, rows, columns), got {len(numbers)} numbers"
            raise BadReturn(message)
        rows, columns = numbers[2:] or self.block
        self.draws.append([self._rectangle(numbers[0], numbers[1], rows, columns)])

    def any_of(self, drawn: Any) -> None:
        """One block, as a mask [H,W] or as a rectangle."""
        if np.ndim(drawn) == 2:
            self.mask(drawn)
        else:
            self.corner(drawn)

    def mask(self, drawn: Any) -> None:
        """One block, as a mask [H,W], or [H * W]."""
        self.draws.append([self._masked(drawn)])

    def numbers(self, drawn: Any) -> None:
        """One block, as the numbers of its patches, row after row."""
        self.draws.append([self._numbered(drawn)])

    def several(self, drawn: Any) -> None:
        """Blocks and context, each a mask or the numbers of its patches."""
        if not isinstance(drawn, Sequence) or len(drawn) != 2:
            message = f"expected (targets, context), got {type(drawn).__name__}"
            raise BadReturn(message)
        self.draws.append([self._any(block) for block in drawn[0]])
        self.contexts.append(self._any(drawn[1]))

    def outputs(self) -> Outputs:
        """``covered`` int64 [N,K,H,W], ``stray`` int64 and ``rising`` bool [N,K]; ``context`` [N,H,W] if told."""
        if len({len(draw) for draw in self.draws}) > 1 or not all(self.draws):
            message = "expected as many blocks in each draw, and at least one"
            raise BadReturn(message)
        found = {
            "covered": torch.from_numpy(np.stack([np.stack([block.covered for block in draw]) for draw in self.draws])),
            "stray": torch.tensor([[block.stray for block in draw] for draw in self.draws]),
            "rising": torch.tensor([[block.rising for block in draw] for draw in self.draws]),
        }
        if self.contexts:
            found["context"] = torch.from_numpy(np.stack([block.covered for block in self.contexts]))
            found["stray"] += torch.tensor([[block.stray] for block in self.contexts])
        return found

    def _rectangle(self, top: int, left: int, rows: int, columns: int) -> Block:
        covered = np.zeros(self.grid, dtype=np.int64)
        covered[max(0, top) : max(0, top + rows), max(0, left) : max(0, left + columns)] = 1
        return Block(covered, stray=max(0, rows) * max(0, columns) - int(covered.sum()))

    def _any(self, block: Any) -> Block:
        boolean = getattr(block, "dtype", None) in (torch.bool, np.dtype(bool))
        return self._masked(block) if boolean or np.ndim(block) == 2 else self._numbered(block)

    def _masked(self, drawn: Any) -> Block:
        mask = np.asarray(drawn)
        if mask.size != self.grid[0] * self.grid[1]:
            message = f"expected a mask of {self.grid[0]} x {self.grid[1]} patches, got the shape {mask.shape}"
            raise BadReturn(message)
        return Block((mask.reshape(self.grid) != 0).astype(np.int64))

    def _numbered(self, drawn: Any) -> Block:
        numbers, count = _whole(drawn), self.grid[0] * self.grid[1]
        inside = numbers[(numbers >= 0) & (numbers < count)]
        covered = np.bincount(inside, minlength=count).reshape(self.grid)
        return Block(covered, len(numbers) - len(inside), bool((np.diff(numbers) > 0).all()))


def _whole(drawn: Any) -> Counts:
    numbers = np.asarray(drawn).reshape(-1)
    if numbers.dtype.kind not in "iub" and not (numbers == np.round(numbers)).all():
        message = f"expected whole numbers, got {numbers.tolist()[:8]}"
        raise BadReturn(message)
    return numbers.astype(np.int64)
