"""The laws of masks of packed rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from assay.audits.components.packed_positions import rows
from assay.audits.components.packed_positions.mask import NAME
from assay.audits.laws.parity import exactly
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Inexpressible, Law

CLOSED = -1e4
"""What is added where nothing is to be seen is at most this: its exponential is zero in every dtype."""


def causal(trial: Trial) -> Iterator[Evidence]:
    """No token sees one that comes after it.

    Why: a token that sees the one it is to predict learns to copy it.

    Example: a block for each sample, without the diagonal cut.
    """
    seen = _seen(trial)
    later = torch.ones_like(seen).triu(1)
    yield from _none(seen & later, "sees a later token")


def isolated(trial: Trial) -> Iterator[Evidence]:
    """No token sees one of another sample, of another row's, or of padding.

    Why: this is what packing rests on. A leak makes the loss better and the model worse: it learns to look up in its
    neighbours what will not be there.

    Example: the plain causal mask.
    """
    numbers = trial.inputs.segments
    own = (numbers[:, :, None] == numbers[:, None, :]) & (numbers != 0)[:, None, :]
    yield from _none(_seen(trial) & ~own, "sees what is not of its sample")


def complete(trial: Trial) -> Iterator[Evidence]:
    """A token sees itself and all tokens of its sample before it.

    Why: what is hidden without need is context that the model is trained without and has at inference.

    Example: a strict comparison, so that a token does not see itself.
    """
    seen = _seen(trial)
    for row, number, start, stop in trial.inputs.samples():
        block = seen[row, start:stop, start:stop]
        if bool((~block).tril().any()):
            query, key = (int(i) + start for i in (~block).tril().nonzero()[0])
            yield Evidence(
                where="seen", measured="hidden", limit="seen", index=(row, query, key),
                message=f"token {query} of sample {number} does not see token {key} of the same sample",
            )  # fmt: skip
            return


def alone(trial: Trial) -> Iterator[Evidence]:
    """A row alone has the mask that it has in the batch.

    Why: rows are packed by lengths that differ; a mask that is made for the first and used for all is wrong for them.

    Example: a mask of the first row, expanded over the batch.
    """
    seen = _seen(trial)
    for number in range(len(seen)):
        single = trial.run(trial.inputs.row(number))["seen"]
        yield from exactly("seen", seen[number : number + 1], single, f"row {number} alone has another mask")


def renumbered(trial: Trial) -> Iterator[Evidence]:
    """Other numbers for the samples make no other mask.

    Why: a number says which sample a token belongs to, and nothing else: not how long it is, and not how often it is
    seen. Packers number by row, by batch, or by place in the data set.

    Example: numbers that are multiplied to find equal ones, so that two and two make the same as four and one.
    """
    numbers = trial.inputs.segments
    prime = 17 if int(numbers.max()) < 17 else 65537  # no two numbers become one
    other = dataclasses.replace(trial.inputs, segments=torch.where(numbers > 0, (numbers * 5) % prime + 1, 0))
    yield from exactly("seen", trial.run(other)["seen"], _seen(trial), "other numbers make another mask")


def added(trial: Trial) -> Iterator[Evidence]:
    """What is added to scores is 0 where something is seen, and low enough to vanish elsewhere, the same as the mask.

    Why: a mask that is added has to say the same as one that is true or false. A little number lets a little through;
    minus infinity in a whole row of padding makes it NaN, and everything after it.

    Example: one minus the mask, added as it is.
    """
    values = trial.outcome.values
    names = [name for name in values if name.partition(":")[0] == "added"]
    if not names:
        raise Inexpressible("the mask is not one that is added")
    for name in names:
        yield from _added(name, trial)


def dtypes(trial: Trial) -> Iterator[Evidence]:
    """A mask that is made for a dtype has that dtype.

    Why: attention refuses a mask of another dtype than its queries, or promotes all scores to it. Whoever converts it
    then rounds the lowest number of float32 to minus infinity, which a row of padding turns into NaN.

    Example: a mask that is made in float32, whatever was asked for.
    """
    asked = {name: x for name, x in trial.outcome.values.items() if name.startswith("added:")}
    if not asked:
        raise Inexpressible("the form cannot be told a dtype")
    for name, x in asked.items():
        want = name.partition(":")[2]
        if str(x.dtype) != f"torch.{want}":
            yield Evidence(where=name, measured=str(x.dtype), limit=f"torch.{want}", message="another dtype")


def _added(name: str, trial: Trial) -> Iterator[Evidence]:
    seen, scores = _seen(trial), trial.outcome.values[name]
    if scores.shape != seen.shape:
        yield Evidence(
            where=name, measured=f"{list(scores.shape)}", limit=f"{list(seen.shape)}", message="another shape"
        )
        return
    closed = torch.tensor(CLOSED, dtype=scores.dtype)  # as the dtype has it
    real = (trial.inputs.segments != 0)[:, :, None]
    low = real & ~seen & ~(scores <= closed)
    for wrong, limit, message in (
        (real & seen & (scores != 0), "0", "is added where the token is seen"),
        (low, f"at most {CLOSED:g}", "is added where the token is not seen"),
        (
            (scores == -torch.inf).all(-1, keepdim=True),
            "a number in each row",
            "stands in a whole row, which makes NaN",
        ),
    ):
        if bool(wrong.any()):
            index = tuple(int(i) for i in wrong.nonzero()[0])
            yield Evidence(where=name, measured=f"{float(scores[index]):g}", limit=limit, message=message, index=index)


def _seen(trial: Trial) -> Tensor:
    return trial.outcome.values["seen"]


def _none(wrong: Tensor, message: str) -> Iterator[Evidence]:
    if bool(wrong.any()):
        row, query, key = (int(i) for i in wrong.nonzero()[0])
        yield Evidence(
            where="seen", measured="seen", limit="hidden", index=(row, query, key),
            message=f"token {query} of row {row} {message}: {key} ({int(wrong.sum())} pairs)",
        )  # fmt: skip


_law = partial(Law.of, (NAME,))

LAWS = (
    _law(causal), _law(isolated), _law(complete), _law(alone, rows.several_rows),
    _law(renumbered, rows.several_samples), _law(added), _law(dtypes),
)  # fmt: skip
