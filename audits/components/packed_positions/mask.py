"""``packed_positions.mask``: which tokens see which in packed rows, as a mask [B,1,T,T]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from assay.audits.candidates import of_function, of_reference
from assay.audits.components.packed_positions import rows
from assay.audits.components.packed_positions.rows import Inputs
from assay.audits.terms import Exact, Form, Operation, Outputs
from assay.reference import packed_positions

NAME = "packed_positions.mask"
ADDED = torch.float32
"""The dtype of masks that are added to scores."""
FURTHER = (torch.bfloat16, torch.float16)
"""Other dtypes that those are asked for who make a mask for a dtype."""
WIDEST = 500
"""Tokens of the longest rows for which they are: what a dtype breaks, it breaks in short rows too."""


def reference(inputs: Inputs) -> Outputs:
    """The specification."""
    return _assay(packed_positions.attention_boundaries, inputs)


def read(mask: Tensor | None, inputs: Inputs) -> Outputs:
    """The outputs of a mask [B,1,T,T], [B,T,T] or [T,T]: bool, 0 and 1, or what is added to scores.

    ``seen`` bool [B,T,T]; what padding sees is left out, since nobody reads it. ``added`` as it came, where it is
    added. None is the mask of attention that is told to be causal and nothing else.
    """
    batch, tokens = inputs.segments.shape
    if mask is None:
        mask = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    mask = mask[:, 0] if mask.ndim == 4 else mask
    seen = (mask == 0 if mask.is_floating_point() else mask.bool()).expand(batch, tokens, tokens)
    out = {"seen": seen & (inputs.segments != 0)[:, :, None]}
    return {**out, "added": mask.expand(batch, tokens, tokens)} if mask.is_floating_point() else out


def _assay(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    plain = read(function(inputs.segments), inputs)
    return {**plain, "added": function(inputs.segments, ADDED)[:, 0], **_further(function, inputs)}


def _numbers(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    return {**read(function(inputs.segments, ADDED), inputs), **_further(function, inputs)}


def _further(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    """What is added to scores of other dtypes, ``added:DTYPE``, for masks that are added at all."""
    if inputs.segments.shape[1] > WIDEST:
        return {}
    made = {str(dtype).rpartition(".")[2]: read(function(inputs.segments, dtype), inputs) for dtype in FURTHER}
    return {f"added:{dtype}": out["added"] for dtype, out in made.items() if "added" in out}


def _lengths(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    return read(function(packed_positions.cumulative_lengths(inputs.segments)[0]), inputs)


def _positions(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    return read(function(inputs.position_ids), inputs)


def _one_row(inputs: Inputs) -> str | None:
    return rows.no_padding(inputs) or (None if len(inputs.segments) == 1 else "the form has one row")


FORMS = (
    Form(
        name="assay",
        summary="function(segments [B,T], dtype=None) -> bool [B,1,T,T], or what is added to scores for a dtype",
        parameters=("segments", "dtype"),
        call=_assay,
    ),
    Form(
        name="numbers",
        summary="function(attention_mask [B,T] of sample numbers, dtype) -> [B,1,T,T] (LLaMA-Factory's way)",
        parameters=("attention_mask", "dtype"),
        call=_numbers,
    ),
    Form(
        name="cu-seqlens",
        summary="function(cu_seqlens) -> the mask [T,T] or [1,1,T,T] of one row",
        parameters=("cu_seqlens",),
        call=_lengths,
        accepts=_one_row,
    ),
    Form(
        name="positions",
        summary="function(position_ids [B,T]) -> [B,1,T,T], or None for plain causal attention (Hugging Face's way)",
        parameters=("position_ids",),
        call=_positions,
        accepts=rows.no_padding,
    ),
)

OPERATION = Operation(
    name=NAME,
    summary="which tokens of packed rows see which: their own sample, up to themselves",
    params=rows.Case,
    build=rows.build,
    outputs=("seen",),
    expect=Exact(reference),
    forms=FORMS,
    cases=rows.CASES,
    strategy=rows.strategy,
    dtypes=("int64",),
)

_UPSTREAM = "assay.audits.components.packed_positions.upstream"

CANDIDATES = (
    of_reference(NAME, f"{__name__}:reference", origin="assay.reference.packed_boundaries"),
    of_function(NAME, "transformers.eager", f"{_UPSTREAM}:eager_mask", origin="transformers", form="positions"),
    of_function(NAME, "transformers.sdpa", f"{_UPSTREAM}:sdpa_mask", origin="transformers", form="positions"),
)
