"""Rows of packed samples by their lengths alone: what boundaries and masks are asked about."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from assay.audits.fields import Size, one_of
from assay.audits.strategies import st
from assay.audits.terms import Operation

SIDES = ("right", "left")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Packed rows.

    ``segments`` int64 [B,T], 1, 2, ... for the samples of a row and 0 for padding; ``position_ids`` int64 [B,T], from 0
    in each sample, and in padding.
    """

    segments: Tensor
    position_ids: Tensor

    @property
    def full(self) -> bool:
        """Whether there is no padding."""
        return bool((self.segments != 0).all())

    def row(self, number: int | slice) -> Inputs:
        """One row alone, or some."""
        own = slice(number, number + 1) if isinstance(number, int) else number
        return dataclasses.replace(self, segments=self.segments[own], position_ids=self.position_ids[own])

    def lengths(self) -> list[int]:
        """Tokens of each sample, row after row."""
        return [stop - start for _, _, start, stop in self.samples()]

    def samples(self) -> Iterator[tuple[int, int, int, int]]:
        """Row, number, first token and end of each sample."""
        for row, numbers in enumerate(self.segments):
            for number in range(1, int(numbers.max()) + 1 if len(numbers) else 0):
                own = (numbers == number).nonzero().flatten()
                yield row, number, int(own[0]), int(own[-1]) + 1


@dataclass(frozen=True, kw_only=True)
class Case:
    """Parameters of a case: the lengths of the samples of each row. Shorter rows are padded on one side."""

    rows: tuple[tuple[Size, ...], ...] = ((3, 1, 4),)
    padding: Annotated[str, one_of(SIDES)] = "right"


def build(case: Case, _dtype: torch.dtype, device: torch.device) -> Inputs:
    """The rows of a case."""
    longest = max((sum(row) for row in case.rows), default=0)
    segments: list[Tensor] = []
    positions: list[Tensor] = []
    for row in case.rows:
        lengths = torch.tensor(row, dtype=torch.int64)
        pad = torch.zeros(longest - sum(row), dtype=torch.int64)
        numbers = torch.arange(1, len(row) + 1).repeat_interleave(lengths)
        places = torch.cat([torch.arange(0), *(torch.arange(n) for n in row)])
        ends = (pad, torch.arange(len(pad)))
        for made, own, end in zip((segments, positions), (numbers, places), ends, strict=True):
            made.append(torch.cat([own, end] if case.padding == "right" else [end, own]))
    return Inputs(segments=_stacked(segments).to(device), position_ids=_stacked(positions).to(device))


def _stacked(rows: list[Tensor]) -> Tensor:
    return torch.stack(rows) if rows else torch.zeros(0, 0, dtype=torch.int64)


CASES = {
    "several": Case(),
    "one": Case(rows=((5,),)),
    "one-token": Case(rows=((1,),)),
    "ones": Case(rows=((1, 1, 1, 2, 1),)),
    "equal": Case(rows=((4, 4, 4),)),
    "falling": Case(rows=((9, 4, 2, 1),)),
    "two-rows": Case(rows=((3, 5), (2, 2, 4))),
    "whole-rows": Case(rows=((6,), (6,), (6,))),
    "padded": Case(rows=((3, 1, 4), (2, 3)), padding="right"),
    "padded-left": Case(rows=((2, 3), (3, 1, 4)), padding="left"),
    "tiles": Case(rows=((37, 101, 3, 150), (64, 128, 2, 97))),  # more than a tile of 64 or 128, cut anywhere
    "hundreds": Case(rows=((1, 2) * 135,)),  # more samples than a byte counts, and ends that bfloat16 rounds
}


def strategy() -> st.SearchStrategy[Case]:
    """One to three rows of one to five samples."""
    row = st.lists(st.integers(1, 6), min_size=1, max_size=5).map(tuple)
    several = st.lists(row, min_size=1, max_size=3).map(tuple)
    return st.one_of(
        st.builds(Case, rows=row.map(lambda one: (one,))),
        st.builds(Case, rows=several, padding=st.sampled_from(SIDES)),
    )


def no_padding(inputs: Inputs) -> str | None:
    """What forms accept that know samples by their positions alone."""
    return None if inputs.full else "the form has no padding"


def several_rows(_operation: Operation, case: Any) -> str | None:
    """For laws about rows."""
    return None if len(case.rows) > 1 else "one row"


def several_samples(_operation: Operation, case: Any) -> str | None:
    """For laws about neighbours."""
    return None if max(map(len, case.rows), default=0) > 1 else "one sample in each row"
