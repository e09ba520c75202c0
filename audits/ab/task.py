"""A task whose answer depends on where something is in an image: two marked patches in a grid, and one question.

An image is a grid of patches, each with features of its own and none that tell its place. The number of patches does
not tell the grid: as many make two rows of six, three of four, four of three or six of two. A model that knows the
order of the tokens and nothing else therefore cannot know for certain in which column a mark is;
:func:`order_alone` is the best that it can do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

AREAS = (12, 18)
"""Patches of an image. Each number is that of four grids."""
QUESTIONS = ("row", "column", "left", "above")
"""In which row, in which column is the first mark; which mark is further left, which is further up."""
FEATURES = 8
"""Numbers that describe a patch. The first is large at the first mark, the second at the second."""
NOISE, MARK = 0.5, 3.0
LONGEST_LEAD = 3
"""Most ordinary text tokens in front of an image."""

Grid = tuple[int, int]
Marks = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image and one question. ``marks`` are places in reading order; ``features`` is [rows * columns, FEATURES]."""

    grid: Grid
    marks: Marks
    question: int
    lead: tuple[int, ...]
    features: Tensor

    @property
    def answer(self) -> int:
        """A row or a column counted from 0, or 0 for the first mark and 1 for the second."""
        return answer(self.question, self.grid, self.marks)


def grids(area: int) -> list[Grid]:
    """All grids of ``area`` patches with at least two rows and two columns."""
    return [(rows, area // rows) for rows in range(2, area // 2 + 1) if area % rows == 0]


def answer(question: int, grid: Grid, marks: Marks) -> int:
    """The answer to question number ``question`` about two marks in a grid."""
    (row, column), (other_row, other_column) = (divmod(place, grid[1]) for place in marks)
    return (row, column, int(other_column < column), int(other_row < row))[question]


def _apart(grid: Grid, marks: Marks) -> bool:
    """Whether two marks share neither row nor column: every question then has one answer."""
    (row, column), (other_row, other_column) = (divmod(place, grid[1]) for place in marks)
    return row != other_row and column != other_column


def draw(random: torch.Generator, question: int) -> Sample:
    """One sample with that question. Areas, grids of an area, and places of the marks are equally likely."""
    area = AREAS[_below(len(AREAS), random)]
    grid = grids(area)[_below(len(grids(area)), random)]
    marks = (0, 0)
    while not _apart(grid, marks):
        marks = (_below(area, random), _below(area, random))
    features = NOISE * torch.randn(area, FEATURES, generator=random)
    features[marks[0], 0] += MARK
    features[marks[1], 1] += MARK
    return Sample(
        grid=grid,
        marks=marks,
        question=question,
        lead=tuple(_below(50, random) for _ in range(_below(LONGEST_LEAD + 1, random))),
        features=features,
    )


def _below(limit: int, random: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=random))


def order_alone(question: int) -> float:
    """The largest share of right answers that anything can give that sees the tokens in their order, and no positions.

    It knows the number of patches and the places of both marks in reading order. For each such sight it gives the
    answer that most of the grids behind it have. Exact: all images are counted.
    """
    return sum(max(shares.values()) for shares in _sights(question).values())


def one_answer(question: int) -> float:
    """The share of right answers of whoever always gives the most frequent one."""
    total: dict[int, float] = defaultdict(float)
    for shares in _sights(question).values():
        for given, share in shares.items():
            total[given] += share
    return max(total.values())


def _sights(question: int) -> dict[tuple[int, Marks], dict[int, float]]:
    """What can be seen in the order of tokens, and how probable each answer is together with it."""
    found: dict[tuple[int, Marks], dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for area, grid, marks, share in _images():
        found[area, marks][answer(question, grid, marks)] += share
    return found


def _images() -> Iterator[tuple[int, Grid, Marks, float]]:
    """Every area, grid and pair of marks that :func:`draw` draws, with its probability."""
    for area in AREAS:
        for grid in grids(area):
            places = ((first, second) for first in range(area) for second in range(area))
            pairs = [marks for marks in places if _apart(grid, marks)]
            yield from ((area, grid, marks, 1 / (len(AREAS) * len(grids(area)) * len(pairs))) for marks in pairs)
