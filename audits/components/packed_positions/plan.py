"""``packed_positions.plan``: which samples share a pack."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from assay.audits.candidates import of_reference
from assay.audits.fields import Count, Size, one_of
from assay.audits.strategies import st
from assay.audits.terms import Form, Operation, Outputs, Relations
from assay.reference import packed_positions

NAME = "packed_positions.plan"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """``lengths`` int64 [N], tokens of each sample; ``capacity`` of a pack; ``overlong``, one of the policies."""

    lengths: Tensor
    capacity: int
    overlong: str

    def sizes(self) -> list[int]:
        """The lengths as a list, new each time."""
        sizes: list[int] = self.lengths.tolist()
        return sizes


@dataclass(frozen=True, kw_only=True)
class Case:
    """Parameters of a case."""

    lengths: tuple[Count, ...] = (3, 8, 5, 2, 7, 1, 4)
    capacity: Size = 10
    overlong: Annotated[str, one_of(packed_positions.POLICIES)] = "error"


def build(case: Case, _dtype: torch.dtype, device: torch.device) -> Inputs:
    """The lengths of a case."""
    lengths = torch.tensor(case.lengths, dtype=torch.int64, device=device)
    return Inputs(lengths=lengths, capacity=case.capacity, overlong=case.overlong)


def supports(case: Case) -> str | None:
    """Without a policy, nothing is over-long: what is then to happen has a law of its own."""
    if case.overlong == "error" and max(case.lengths, default=0) > case.capacity:
        return "a sample is longer than a pack, and nothing says what is to become of it"
    return None


def reference(inputs: Inputs) -> Outputs:
    """The specification."""
    return _assay(packed_positions.plan, inputs)


def pieces(packs: Iterable[Iterable[tuple[int, int, int]]]) -> Outputs:
    """The outputs of a plan: int64 [M, 4], each row a pack, a sample, and the first and last + 1 of its tokens."""
    rows = [(place, *piece) for place, pack in enumerate(packs) for piece in pack]
    return {"pieces": torch.tensor(rows, dtype=torch.int64).reshape(-1, 4)}


def _assay(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    made = _unchanged(functools.partial(function, overlong=inputs.overlong), inputs)
    return pieces([(piece.sample, piece.start, piece.stop) for piece in pack] for pack in made.packs)


def _indices(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    sizes = inputs.sizes()
    made = _unchanged(function, inputs)
    return pieces([(int(i), 0, sizes[int(i)]) for i in pack] for pack in made)


def _sizes(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    """Packs of lengths: each stands for some sample of that length, and for none where no such sample is left."""
    left: dict[int, list[int]] = {}
    for sample, size in reversed(list(enumerate(inputs.sizes()))):
        left.setdefault(size, []).append(sample)
    made = _unchanged(function, inputs)
    return pieces([(left[n].pop() if left.get(n) else -1, 0, n) for n in map(int, pack)] for pack in made)


def _unchanged(function: Callable[..., Any], inputs: Inputs) -> Any:
    """What the function makes of a list of the lengths. Where it changes the list, the tensor is changed too."""
    given = inputs.sizes()
    made = function(given, inputs.capacity)
    if given != inputs.sizes():
        inputs.lengths.fill_(-1)
    return made


def _told_nothing(inputs: Inputs) -> str | None:
    return None if inputs.overlong == "error" else "the form cannot be told what becomes of an over-long sample"


FORMS = (
    Form(
        name="assay",
        summary="function(lengths, capacity, overlong) -> a Plan, whose packs hold pieces (sample, start, stop)",
        parameters=("lengths", "capacity", "overlong"),
        call=_assay,
    ),
    Form(
        name="indices",
        summary="function(lengths, capacity) -> packs, each a list of the numbers of its samples",
        parameters=("lengths", "capacity"),
        call=_indices,
        accepts=_told_nothing,
    ),
    Form(
        name="sizes",
        summary="function(numbers, capacity) -> packs, each a list of the lengths of its samples (LLaMA-Factory's way)",
        parameters=("numbers", "capacity"),
        call=_sizes,
        accepts=_told_nothing,
    ),
    Form(
        name="pack-size",
        summary="function(seqlens, pack_size) -> packs, each a list of the lengths of its samples (NeMo's way)",
        parameters=("seqlens", "pack_size"),
        call=_sizes,
        accepts=_told_nothing,
    ),
)

CASES = {
    "mixed": Case(),
    "equal": Case(lengths=(5, 5, 5, 5, 5)),
    "as-long-as-a-pack": Case(lengths=(10, 3, 10, 7)),
    "one": Case(lengths=(4,)),
    "none": Case(lengths=()),
    "ones": Case(lengths=(1,) * 23, capacity=4),
    "exact-fit": Case(lengths=(6, 4, 7, 3, 9, 1, 5, 5)),
    "empties": Case(lengths=(0, 3, 0, 10, 2)),
    "many": Case(lengths=tuple(1 + (37 * i) % 31 for i in range(60)), capacity=32),
    "thousands": Case(lengths=tuple(1 + (29 * i) % 47 for i in range(2100)), capacity=64),
    "long": Case(lengths=(4097, 4097, 4095, 4095, 8191, 2049, 2047, 2049, 2051, 1), capacity=8192),  # half rounds them
    "longer": Case(lengths=(70000, 62000, 65537, 65535, 40000, 131072), capacity=131072),  # beyond two bytes
    "split": Case(lengths=(3, 25, 10, 7), overlong="split"),
    "truncate": Case(lengths=(3, 25, 10, 7), overlong="truncate"),
    "drop": Case(lengths=(25, 3, 11, 10, 7), overlong="drop"),
}


def strategy() -> st.SearchStrategy[Case]:
    """Up to a dozen lengths of all sizes, those of a whole pack and of none among them; longer ones with a policy."""

    def case(capacity: int) -> st.SearchStrategy[Case]:
        length = st.one_of(st.integers(0, capacity), st.sampled_from([1, capacity]))
        longer = st.one_of(length, st.integers(capacity + 1, 3 * capacity))
        fitting, any_size = (st.lists(size, max_size=12).map(tuple) for size in (length, longer))
        policies = st.sampled_from([name for name in packed_positions.POLICIES if name != "error"])
        return st.one_of(
            st.builds(Case, lengths=fitting, capacity=st.just(capacity)),
            st.builds(Case, lengths=any_size, capacity=st.just(capacity), overlong=policies),
        )

    return st.integers(1, 20).flatmap(case)


OPERATION = Operation(
    name=NAME,
    summary="which samples share a pack, so that none is lost and none is too long",
    params=Case,
    build=build,
    outputs=("pieces",),
    expect=Relations(),
    forms=FORMS,
    cases=CASES,
    strategy=strategy,
    supports=supports,
    dtypes=("int64",),
)

CANDIDATES = (of_reference(NAME, f"{__name__}:reference", origin="assay.reference.packed_plan"),)
