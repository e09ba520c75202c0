"""``block_masks.sample``: blocks of patches at random places of a grid.

Letters: N draws, K blocks of one draw, H x W patches of the grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from assay.audits.candidates import of_reference
from assay.audits.components.block_masks.drawn import Sheet
from assay.audits.fields import Count, Size
from assay.audits.generators import seeded
from assay.audits.strategies import st
from assay.audits.terms import Form, Operation, Outputs, Relations
from assay.reference import block_masks

NAME = "block_masks.sample"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A grid and the block to place on it, in rows and columns; how many ``targets`` a draw has, and how many draws.

    ``seed`` int64 [1]: that of the generator, which all draws of a call are made from, one after the other.
    """

    grid: tuple[int, int]
    block: tuple[int, int]
    targets: int
    draws: int
    seed: Tensor

    def generator(self) -> torch.Generator:
        """A generator that nobody else has."""
        return torch.Generator().manual_seed(int(self.seed))

    @property
    def area(self) -> int:
        """Patches of the block."""
        return self.block[0] * self.block[1]

    @property
    def aspect(self) -> float:
        """Its rows, relative to its columns."""
        return self.block[0] / self.block[1]

    @property
    def places(self) -> tuple[int, int]:
        """How many rows, and how many columns, the block can begin at."""
        return self.grid[0] - self.block[0] + 1, self.grid[1] - self.block[1] + 1


@dataclass(frozen=True, kw_only=True)
class Case:
    """Parameters of a case."""

    seed: Count = 0
    grid: tuple[Size, Size] = (6, 8)
    block: tuple[Size, Size] = (3, 2)
    targets: Size = 2
    draws: Size = 150


def build(case: Case, _dtype: torch.dtype, device: torch.device) -> Inputs:
    """The case itself, with its seed as a tensor."""
    seed = torch.tensor([case.seed], device=device)
    return Inputs(grid=case.grid, block=case.block, targets=case.targets, draws=case.draws, seed=seed)


def supports(case: Case) -> str | None:
    """What does not fit is an error, of which a law asks."""
    fits = all(b <= n for b, n in zip(case.block, case.grid, strict=True))
    return None if fits else "the block is larger than the grid"


def reference(inputs: Inputs) -> Outputs:
    """The specification."""
    return _masks(lambda *given: block_masks.sample_masks(tuple(given[:2]), *given[2:]), inputs)


def _drawn(inputs: Inputs, draw: Callable[[torch.Generator], Any], read: Callable[[Sheet], Any]) -> Outputs:
    sheet, generator = Sheet(inputs.grid, inputs.block), inputs.generator()
    for _ in range(inputs.draws):
        read(sheet)(draw(generator))
    return sheet.outputs()


def _corner(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    return _drawn(inputs, lambda g: function(*inputs.grid, *inputs.block, g), lambda sheet: sheet.corner)


def _grid(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    return _drawn(inputs, lambda g: function(inputs.grid, inputs.block, g), lambda sheet: sheet.corner)


def _mask(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    return _drawn(inputs, lambda g: function(*inputs.grid, *inputs.block, g), lambda sheet: sheet.mask)


def _indices(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    return _drawn(inputs, lambda g: function(*inputs.grid, *inputs.block, g), lambda sheet: sheet.numbers)


def _area(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    asked = (*inputs.grid, inputs.area, inputs.aspect)
    return _drawn(inputs, lambda g: function(*asked, g), lambda sheet: sheet.any_of)


def _masks(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    asked = (*inputs.grid, inputs.block, inputs.targets)
    return _drawn(inputs, lambda g: function(*asked, g), lambda sheet: sheet.several)


def _global(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    with seeded(int(inputs.seed)):
        return _drawn(inputs, lambda _: function(*inputs.grid, *inputs.block), lambda sheet: sheet.corner)


SIZES = ("height", "width", "block_height", "block_width")

FORMS = (
    Form(
        name="corner",
        summary="function(height, width, block_height, block_width, generator) -> (top, left), or these with rows and "
        "columns: one block",
        parameters=(*SIZES, "generator"),
        call=_corner,
    ),
    Form(
        name="grid",
        summary="function(grid, block, generator), each size rows and columns -> as corner",
        parameters=("grid", "block", "generator"),
        call=_grid,
    ),
    Form(name="mask", summary="as corner -> bool [height, width]", parameters=(), call=_mask),
    Form(name="indices", summary="as corner -> the numbers of the patches, rising", parameters=(), call=_indices),
    Form(
        name="area",
        summary="function(height, width, area, aspect, generator) -> a mask, or (top, left, rows, columns); aspect is "
        "rows / columns",
        parameters=("height", "width", "area", "aspect", "generator"),
        call=_area,
    ),
    Form(
        name="masks",
        summary="function(height, width, block, targets, generator) -> (targets, context), each block a mask or the "
        "numbers of its patches; the context has no patch of a target",
        parameters=("height", "width", "block", "targets", "generator"),
        call=_masks,
    ),
    Form(
        name="global",
        summary="function(height, width, block_height, block_width) -> as corner, from the generators that all share",
        parameters=SIZES,
        call=_global,
    ),
)

CASES = {
    "ordinary": Case(),
    "square": Case(grid=(5, 5), block=(2, 2), targets=1, seed=1),
    "one-patch": Case(grid=(4, 3), block=(1, 1), targets=4, seed=2),
    "as-large-as-the-grid": Case(grid=(4, 5), block=(4, 5), targets=1, draws=10, seed=3),
    "as-high-as-the-grid": Case(grid=(4, 7), block=(4, 2), seed=4),
    "as-wide-as-the-grid": Case(grid=(7, 4), block=(3, 4), seed=5),
    "one-less": Case(grid=(5, 4), block=(4, 3), targets=1, seed=6),
    "one-patch-grid": Case(grid=(1, 1), block=(1, 1), targets=1, draws=5, seed=7),
    "one-row": Case(grid=(1, 9), block=(1, 3), targets=3, seed=8),
    "one-column": Case(grid=(9, 1), block=(4, 1), targets=1, seed=9),
    "more-than-half": Case(grid=(7, 7), block=(5, 4), targets=1, seed=10),  # fits, though twice does not
    "three-places": Case(grid=(4, 5), block=(2, 3), targets=1, draws=700, seed=12),  # the ends half as often: rounded
    "as-in-papers": Case(grid=(14, 14), block=(6, 5), draws=250, seed=11),
}


def strategy() -> st.SearchStrategy[Case]:
    """Grids of up to 9 x 9, with blocks of all sizes that fit."""

    def case(grid: tuple[int, int]) -> st.SearchStrategy[Case]:
        block = st.tuples(*(st.integers(1, n) for n in grid))
        return st.builds(
            Case, seed=st.integers(0, 2**16), grid=st.just(grid), block=block, targets=st.integers(1, 3),
            draws=st.just(80),
        )  # fmt: skip

    return st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(case)


OPERATION = Operation(
    name=NAME,
    summary="blocks of patches at random places of a grid: whole, within it, each place as likely as any other",
    params=Case,
    build=build,
    outputs=("covered", "stray", "rising"),
    expect=Relations(),
    forms=FORMS,
    cases=CASES,
    strategy=strategy,
    supports=supports,
    dtypes=("int64",),
)

CANDIDATES = (of_reference(NAME, f"{__name__}:reference", origin="assay.reference.block_masks"),)
