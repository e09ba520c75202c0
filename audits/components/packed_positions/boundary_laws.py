"""The laws of cumulative lengths."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from assay.audits.components.packed_positions import rows
from assay.audits.components.packed_positions.boundaries import NAME
from assay.audits.laws.parity import exactly
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Inexpressible, Law


def counted(trial: Trial) -> Iterator[Evidence]:
    """There is one step for each sample, of its length, from 0 to the number of tokens.

    Why: what begins nowhere belongs to the sample before it, and is attended to with it. Samples of one token and those
    that follow a shorter one are where the rules of thumb for "ids go back" fail.

    Example: boundaries where a position id is smaller than the one before it, which two samples of one token are not.
    """
    ends = trial.outcome.values["cu_seqlens"].long()
    got, want = ends.diff().tolist(), trial.inputs.lengths()
    if got != want or not len(ends) or int(ends[0]):
        yield Evidence(
            where="cu_seqlens", measured=f"{ends[:1].tolist()} and steps {got}", limit=f"[0] and steps {want}",
            message=f"{len(want)} samples, {len(got)} were found",
        )  # fmt: skip


def longest(trial: Trial) -> Iterator[Evidence]:
    """The longest length is the largest step.

    Why: kernels size their grid by it. One that is too small leaves the end of the longest sample uncomputed, one that
    is too large wastes what packing saved.

    Example: the largest position id, which is one less.
    """
    values = trial.outcome.values
    steps = values["cu_seqlens"].long().diff()
    want = int(steps.max()) if len(steps) else 0
    if int(values["max_length"]) != want:
        yield Evidence(
            where="max_length", measured=float(values["max_length"]), limit=float(want), message="not the longest step"
        )


def by_row(trial: Trial) -> Iterator[Evidence]:
    """Rows that are handed over together have the steps that they have alone, one row after the other.

    Why: a batch of several packs is flattened for variable-length attention. A sample ends where its row ends, whatever
    the next one begins with.

    Example: lengths of the first row that are used for all.
    """
    got = trial.outcome.values["cu_seqlens"].long().diff().tolist()
    alone: list[int] = []
    for number in range(len(trial.inputs.segments)):
        alone += trial.run(trial.inputs.row(number))["cu_seqlens"].long().diff().tolist()
    if got != alone:
        yield Evidence(
            where="cu_seqlens", measured=f"steps {got}", limit=f"steps {alone}", message="rows alone have other steps"
        )


def int32(trial: Trial) -> Iterator[Evidence]:
    """Cumulative lengths are int32.

    Why: the kernels that take them read four bytes each. Eight bytes are every second one a zero, if nobody checks.

    Example: what ``cumsum`` gives for a list of integers.
    """
    found = trial.outcome.values["cu_seqlens"].dtype
    if found != torch.int32:
        yield Evidence(where="cu_seqlens", measured=str(found), limit="torch.int32", message="another dtype")


def keys(trial: Trial) -> Iterator[Evidence]:
    """Where lengths are given for queries and for keys, both are the same.

    Why: attention takes two pairs, since queries and keys differ in number when tokens are generated. In training they
    are one. With the keys of a whole row each sample sees all of it, or what stands at the row's start.

    Example: lengths of keys that are kept from before the row was packed.
    """
    values = trial.outcome.values
    names = [name for name in ("cu_seqlens", "max_length") if f"keys:{name}" in values]
    if not names:
        raise Inexpressible("the form has one pair of lengths")
    for name in names:
        got, want = values[f"keys:{name}"], values[name]
        if got.tolist() != want.tolist() or got.dtype != want.dtype:
            yield Evidence(
                where=f"keys:{name}", measured=f"{got.tolist()} ({got.dtype})"[:120],
                limit=f"{want.tolist()} ({want.dtype})"[:120], message="keys have other lengths than queries",
            )  # fmt: skip


def indices(trial: Trial) -> Iterator[Evidence]:
    """The indices of what is no padding are those of all real tokens in the flattened batch, in order.

    Why: by them tokens are taken out of the padded batch for attention, and put back after it. One that is off by a
    row or left out is another token's hidden state, or zero.

    Example: indices of the tokens whose number is 1, which are all where a mask has ones.
    """
    got = trial.outcome.values.get("indices")
    if got is None:
        raise Inexpressible("the form has no indices")
    want = (trial.inputs.segments != 0).flatten().nonzero().flatten()
    if got.shape != want.shape:
        yield Evidence(
            where="indices", measured=f"{list(got.shape)}", limit=f"{list(want.shape)}", message="not as many as tokens"
        )
    else:
        yield from exactly("indices", got.long(), want, "not the real tokens in order")


_law = partial(Law.of, (NAME,))

LAWS = (_law(counted), _law(longest), _law(by_row, rows.several_rows), _law(int32), _law(keys), _law(indices))
