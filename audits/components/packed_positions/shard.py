"""``packed_positions.shard``: the piece of a packed batch that each rank of context parallelism works on.

Letters: W ranks, B rows, T tokens of a row, n tokens of a piece, A position axes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from assay.audits.candidates import of_reference
from assay.audits.fields import Count, Size, one_of
from assay.audits.strategies import st
from assay.audits.terms import Form, Operation, Outputs, Relations
from assay.reference import packed_positions

NAME = "packed_positions.shard"
ANY = "any"
"""The layout of a function that is told none."""
IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A packed batch, the number of ranks and the layout of their pieces.

    ``batch``: ``input_ids``, ``labels``, ``segments`` int64 [B,T], ``position_ids`` int64 [A,B,T] or [B,T], ``weights``
    float32 [B,T]. Ids are the numbers of the tokens, so that each can be told.
    """

    batch: Mapping[str, Tensor]
    world: int
    layout: str

    @property
    def tokens(self) -> int:
        """Tokens of a row."""
        return self.batch["input_ids"].shape[1]

    def targets(self) -> Tensor:
        """[B,T]: what each token is to predict, over the whole row."""
        labels = self.batch["labels"]
        return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORED)], dim=1)

    def cut(self, tokens: int) -> Inputs:
        """The same with the first ``tokens`` tokens of each row."""
        return dataclasses.replace(self, batch={name: x[..., :tokens] for name, x in self.batch.items()})


@dataclass(frozen=True, kw_only=True)
class Case:
    """Parameters of a case: the lengths of the samples of each row, which all have as many tokens together."""

    seed: Count = 0
    rows: tuple[tuple[Size, ...], ...] = ((5, 4, 3), (12,))
    world: Size = 2
    layout: Annotated[str, one_of((*packed_positions.LAYOUTS, ANY))] = "contiguous"
    axes: Size = 3


def build(case: Case, _dtype: torch.dtype, device: torch.device) -> Inputs:
    """A packed batch; positions differ on all axes, labels are ignored at the first token of samples, and elsewhere."""
    generator = torch.Generator().manual_seed(case.seed)
    lengths = [torch.tensor(row, dtype=torch.int64) for row in case.rows]
    segments = torch.stack([packed_positions.segments_of_lengths(row) for row in lengths])
    ids = torch.arange(segments.numel()).view_as(segments) + 1
    place = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in case.rows])
    first = place == 0
    ignored = first | (torch.rand(ids.shape, generator=generator) < 1 / 5)
    axes = torch.stack([place, *(place // (axis + 1) + 3 * axis for axis in range(1, case.axes))])
    batch = {
        "input_ids": ids,
        "labels": (ids + 500).masked_fill(ignored, IGNORED),
        "segments": segments,
        "position_ids": axes if case.axes > 1 else place,
        "weights": torch.rand(ids.shape, generator=generator),
    }
    return Inputs(batch={name: x.to(device) for name, x in batch.items()}, world=case.world, layout=case.layout)


def supports(case: Case) -> str | None:
    """Rows of one length, which the layout can deal out: what is uneven has a law of its own."""
    sums = {sum(row) for row in case.rows}
    if len(sums) != 1:
        return "rows of different lengths"
    parts = case.world * (1 if case.layout == "contiguous" else 2)
    return None if not sums.pop() % parts else f"not a multiple of {parts} tokens"


def reference(inputs: Inputs) -> Outputs:
    """The specification; ``any`` layout is the contiguous one."""
    layout = "contiguous" if inputs.layout == ANY else inputs.layout
    return read(packed_positions.shard_batch(inputs.batch, inputs.world, layout=layout, ignore_index=IGNORED))


def read(pieces: Sequence[Mapping[str, Any]]) -> Outputs:
    """The outputs: ``R:NAME`` for each rank and tensor, ``R:targets`` for what its tokens are to predict.

    A piece with ``labels`` is shifted by whoever scores it, within the piece; one with ``shift_labels`` is not.
    """
    out: dict[str, Tensor] = {}
    for rank, piece in enumerate(pieces):
        own = {name: x for name, x in piece.items() if isinstance(x, Tensor)}
        labels, targets = own.pop("labels", None), own.pop("shift_labels", None)
        if targets is None and labels is not None:
            targets = torch.cat([labels[..., 1:], torch.full_like(labels[..., :1], IGNORED)], dim=-1)
        if targets is not None:
            own["targets"] = targets
        out |= {f"{rank}:{name}": x for name, x in own.items()}
    return out


def _assay(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    return read(function(dict(inputs.batch), inputs.world, layout=inputs.layout, ignore_index=IGNORED))


def _by_rank(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    return read([function(dict(inputs.batch), rank, inputs.world) for rank in range(inputs.world)])


FORMS = (
    Form(
        name="assay",
        summary="shard_batch(batch, world, layout, ignore_index) -> a dict for each rank, with shift_labels",
        parameters=("batch", "world", "layout", "ignore_index"),
        call=_assay,
    ),
    Form(
        name="rank",
        summary="function(batch, cp_rank, cp_size) -> the dict of that rank, with labels or shift_labels; any layout",
        parameters=("batch", "cp_rank", "cp_size"),
        call=_by_rank,
        fixes={"layout": ANY},
    ),
)

CASES = {
    "contiguous": Case(),
    "zigzag": Case(layout="zigzag"),
    "four-ranks": Case(rows=((7, 1, 8),), world=4),
    "four-ranks-zigzag": Case(rows=((7, 1, 8), (3, 3, 10)), world=4, layout="zigzag"),
    "one-rank": Case(world=1),
    "one-axis": Case(axes=1, layout="zigzag"),
    "rows-as-ranks": Case(rows=((4, 4), (8,), (1, 7), (3, 5)), world=4),  # B, A and W that could be taken for T
    "axes-as-ranks": Case(rows=((4, 2), (6,), (5, 1)), world=3),
    "two-tokens-a-piece": Case(rows=((3, 1),), world=2),
    "eight-ranks": Case(rows=((20, 12),), world=8, layout="zigzag"),
    "three-ranks-zigzag": Case(rows=((5, 7), (12,)), world=3, layout="zigzag"),
    "long": Case(rows=((33001, 6999),)),  # numbers that half precision rounds and two bytes do not hold
    "four-axes": Case(axes=4, rows=((9, 7),), world=2, layout="zigzag"),
}


def strategy() -> st.SearchStrategy[Case]:
    """One to four rows for one to four ranks, cut into samples anywhere."""

    def case(world: int, layout: str, parts: int) -> st.SearchStrategy[Case]:
        total = world * (2 if layout != "contiguous" else 1) * parts
        row = st.integers(0, total - 1).map(lambda cut: (cut, total - cut) if cut else (total,))
        rows = st.lists(row, min_size=1, max_size=4).map(tuple)
        return st.builds(
            Case, seed=st.integers(0, 99), rows=rows, world=st.just(world), layout=st.just(layout),
            axes=st.sampled_from([1, 3, 4]),
        )  # fmt: skip

    sizes = st.tuples(st.integers(1, 4), st.sampled_from(packed_positions.LAYOUTS), st.integers(1, 4))
    return sizes.flatmap(lambda chosen: case(*chosen))


OPERATION = Operation(
    name=NAME,
    summary="the tokens of a packed batch dealt out to the ranks of context parallelism",
    params=Case,
    build=build,
    outputs=("input_ids", "targets", "position_ids", "segments", "weights"),
    expect=Relations(),
    forms=FORMS,
    cases=CASES,
    strategy=strategy,
    supports=supports,
    dtypes=("int64",),
)

CANDIDATES = (of_reference(NAME, f"{__name__}:reference", origin="assay.reference.packed_shards"),)
