"""What the wrong forms of both operations are made of: rows dealt out to places, with nothing checked."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from assay.audits.components.masked_scatter import deepstack, scatter
from assay.audits.components.masked_scatter.batch import MODALITIES, Inputs
from assay.audits.fault import CONSTRUCTED, fault
from assay.audits.terms import Fault, Outputs

Deal = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Rows [B,S,H], a mask [B,S] and features to rows with as many features put in, or added, as there are places."""
Wrong = Callable[[Inputs, Deal], Tensor]


def places(mask: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first ``count`` places of a mask, row by row."""
    row, column = mask.nonzero(as_tuple=True)
    return row[:count], column[:count]


def put(x: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
    """Features in the place of what stood there."""
    return x.index_put(places(mask, len(rows)), rows[: int(mask.sum())])


def add(x: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
    """Features on top of what stands there."""
    return x.index_put(places(mask, len(rows)), rows[: int(mask.sum())], accumulate=True)


_ROOMS: Mapping[str, tuple[str, Deal]] = {
    scatter.NAME: (scatter.OUTPUT, put),
    deepstack.NAME: (deepstack.OUTPUT, add),
}


def both(*caught_by: str, link: str = CONSTRUCTED) -> Callable[[Wrong], tuple[Fault, ...]]:
    """A wrong form of both operations, with the laws that catch it in both."""

    def entry(wrong: Wrong) -> tuple[Fault, ...]:
        return tuple(_entry(operation, wrong, caught_by, link) for operation in _ROOMS)

    return entry


def _entry(operation: str, wrong: Wrong, caught_by: tuple[str, ...], link: str) -> Fault:
    output, deal = _ROOMS[operation]

    @functools.wraps(wrong)
    def form(inputs: Inputs) -> Outputs:
        return {output: wrong(inputs, deal)}

    del form.__wrapped__  # a fault is its own function
    assert inspect.getdoc(form)
    return fault(operation, *caught_by, link=link)(form)


def pairs(names: Mapping[str, Any]) -> tuple[Fault, ...]:
    """The faults of both operations among a module's names."""
    return tuple(item for value in names.values() if isinstance(value, tuple) for item in value if _is_fault(item))


def _is_fault(item: object) -> bool:
    return isinstance(item, Fault)


def each(inputs: Inputs, deal: Deal, rows: Callable[[str, Tensor], Tensor] = lambda _name, x: x) -> Tensor:
    """Modality after modality, with ``rows`` of each modality's features."""
    x = inputs.embeddings.clone()
    for name, features in inputs.flat().items():
        x = deal(x, inputs.mask(name), rows(name, features))
    return x


def counts(inputs: Inputs) -> dict[str, tuple[int, int]]:
    """Placeholders and features of each modality."""
    given = inputs.flat()
    return {name: (int(inputs.mask(name).sum()), len(given.get(name, ()))) for name in MODALITIES}


def check(inputs: Inputs) -> None:
    """ValueError unless the counts of each modality are equal."""
    for name, (tokens, features) in counts(inputs).items():
        if tokens != features:
            message = f"{name} features and tokens do not match, tokens: {tokens}, features: {features}"
            raise ValueError(message)


def concatenated(inputs: Inputs) -> Tensor:
    """All features, one modality after the other."""
    return torch.cat([inputs.embeddings.new_zeros(0, inputs.width), *inputs.flat().values()])
