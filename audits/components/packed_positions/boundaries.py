"""``packed_positions.boundaries``: the cumulative lengths that follow from position ids, or from numbers of samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from assay.audits.candidates import of_function, of_reference
from assay.audits.components.packed_positions import rows
from assay.audits.components.packed_positions.rows import Inputs
from assay.audits.terms import Exact, Form, Operation, Outputs

NAME = "packed_positions.boundaries"


def reference(inputs: Inputs) -> Outputs:
    """The specification."""
    return answer(torch.tensor([0, *inputs.lengths()]).cumsum(0).int(), max(inputs.lengths(), default=0))


def answer(cu_seqlens: Tensor, longest: int | Tensor) -> Outputs:
    """The outputs: the cumulative lengths of the samples, row after row without padding, and the longest length."""
    return {"cu_seqlens": cu_seqlens, "max_length": torch.as_tensor(int(longest))}


def of_segments(segments: Tensor, inputs: Inputs) -> Outputs:
    """The outputs by the runs of equal numbers in each row, at tokens that are no padding."""
    lengths: list[int] = []
    for own, real in zip(segments, inputs.segments != 0, strict=True):
        runs = own[real]
        lengths += runs.unique_consecutive(return_counts=True)[1].tolist() if len(runs) else []
    return answer(torch.tensor([0, *lengths]).cumsum(0).int(), max(lengths, default=0))


def _segments(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    made = function(inputs.position_ids)
    one_each = torch.ones_like(inputs.position_ids)
    return of_segments(one_each if made is None else made.reshape(inputs.position_ids.shape), inputs)


def _flash(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    ends, longest = function(inputs.position_ids)
    if not isinstance(ends, (tuple, list)):
        return answer(ends, longest)
    own, keys = (answer(*pair) for pair in zip(ends, longest, strict=True))
    return {**own, **{f"keys:{name}": value for name, value in keys.items()}}


def _lengths(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    """Padding, which counts as a sample there, is taken out again."""
    ends, longest = function(inputs.segments)
    if inputs.full:
        return answer(ends, longest)
    numbers = torch.arange(len(ends) - 1).repeat_interleave(ends.diff().long())
    return of_segments(numbers.reshape(inputs.segments.shape), inputs)


def _unpadded(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    made = function(inputs.segments)
    return {**answer(made[-2], made[-1]), "indices": made[-3]} if len(made) > 2 else answer(*made)


FORMS = (
    Form(
        name="hf-flash",
        summary="function(position_ids [B,T]) -> ((cu_seqlens_q, cu_seqlens_k), (max_q, max_k)), or (cu_seqlens, max)",
        parameters=("position_ids",),
        call=_flash,
        accepts=rows.no_padding,
    ),
    Form(
        name="segments",
        summary="function(position_ids [B,T]) -> the number of each token's sample [B,T]; None: one sample a row",
        parameters=("position_ids",),
        call=_segments,
        accepts=rows.no_padding,
    ),
    Form(
        name="assay",
        summary="function(segments [B,T]) -> (cu_seqlens, longest), with padding (0) as a sample of its own",
        parameters=("segments",),
        call=_lengths,
    ),
    Form(
        name="unpad",
        summary="function(attention_mask [B,T] of sample numbers, 0 at padding) -> (indices, cu_seqlens, longest)",
        parameters=("attention_mask",),
        call=_unpadded,
    ),
)

LONG = {
    "long": rows.Case(rows=((3001, 1, 40000, 2049),)),  # sums that half precision rounds and two bytes do not hold
    "long-padded": rows.Case(rows=((2049, 3), (4099, 35000)), padding="left"),
}
"""Rows for which a mask would be too large."""

OPERATION = Operation(
    name=NAME,
    summary="the cumulative lengths of packed rows, as variable-length attention takes them",
    params=rows.Case,
    build=rows.build,
    outputs=("cu_seqlens", "max_length"),
    expect=Exact(reference),
    forms=FORMS,
    cases={**rows.CASES, **LONG},
    strategy=rows.strategy,
    dtypes=("int64",),
)

_UPSTREAM = "assay.audits.components.packed_positions.upstream"
_OURS = "assay.reference.packed_boundaries"

CANDIDATES = (
    of_reference(NAME, f"{_OURS}:cumulative_lengths", origin=_OURS, form="assay"),
    of_function(NAME, "by-positions", f"{_OURS}:segments_of_positions", origin=_OURS, form="segments"),
    of_function(NAME, "transformers.flash", f"{_UPSTREAM}:flash_lengths", origin="transformers", form="hf-flash"),
    of_function(NAME, "transformers.masks", f"{_UPSTREAM}:mask_segments", origin="transformers", form="segments"),
)
