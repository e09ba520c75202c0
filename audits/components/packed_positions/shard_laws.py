"""The laws of pieces: put together they are the whole, and a token keeps what belongs to it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from assay.audits.components.packed_positions.shard import ANY, IGNORED, NAME, Inputs
from assay.audits.laws.parity import exactly
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Law, Operation, Outputs
from assay.reference import packed_positions

TOGETHER = ("position_ids", "segments", "weights")


def once(trial: Trial) -> Iterator[Evidence]:
    """Each token of each row is on one rank, once, and all ranks have as many.

    Why: a token on no rank is not trained on and not attended to; one on two counts twice. Ranks with different
    numbers of tokens wait for each other forever, in a collective call.

    Example: pieces of the size of the quotient, so that what is left over is lost.
    """
    yield from _once(trial.inputs, _pieces(trial.outcome.values, trial.inputs, "input_ids"))


def _once(inputs: Inputs, pieces: list[Tensor]) -> Iterator[Evidence]:
    whole = inputs.batch["input_ids"]
    if len({x.shape for x in pieces}) > 1:
        yield Evidence(
            where="input_ids", measured=f"{[list(x.shape) for x in pieces]}", limit="equal pieces",
            message="ranks have different numbers of tokens",
        )  # fmt: skip
        return
    for row, want in enumerate(whole):
        got = torch.cat([x[row] for x in pieces if len(x) > row] or [want[:0]])
        if not torch.equal(got.sort().values, want.sort().values):
            lost = sorted(set(want.tolist()) - set(got.tolist()))
            more = len(got) - len(set(got.tolist()))
            yield Evidence(
                where="input_ids", measured=f"{len(lost)} lost, {more} more than once", limit="each token once",
                message=f"row {row} of {len(want)} tokens; lost: {lost[:8]}", index=(row,),
            )  # fmt: skip
            return


def together(trial: Trial) -> Iterator[Evidence]:
    """Whatever a token has goes where the token goes: positions on every axis, numbers of samples, weights.

    Why: each tensor has its tokens in another dimension; ids with several axes have them in the last of three. What is
    cut elsewhere is an error for some sizes and wrong in silence for others.

    Example: all tensors cut in dimension 1, which is the batch for ids of several axes.
    """
    inputs, values = trial.inputs, trial.outcome.values
    rows, columns = _places(inputs)
    for rank, ids in enumerate(_pieces(values, inputs, "input_ids")):
        own = ids.long() - 1
        row, column = rows.flatten()[own], columns.flatten()[own]
        for name in TOGETHER:
            want = inputs.batch[name][..., row, column]
            got = values.get(f"{rank}:{name}")
            if got is None or got.shape != want.shape:
                shape = "absent" if got is None else f"shape {list(got.shape)}"
                yield Evidence(
                    where=name, measured=shape, limit=f"shape {list(want.shape)}", index=(rank,),
                    message=f"rank {rank} has its tokens and not what belongs to them",
                )  # fmt: skip
            else:
                yield from exactly(name, got, want, f"rank {rank} has what belongs to other tokens")


def targets(trial: Trial) -> Iterator[Evidence]:
    """A token is to predict the same on its rank as in the whole row.

    Why: the target of a piece's last token is the first label of another piece. Labels that are shifted after the cut
    lose one target for each piece, and in a zigzag they get that of a token far away.

    Example: labels that are cut like the ids, for a loss that shifts them.
    """
    inputs, values = trial.inputs, trial.outcome.values
    rows, columns = _places(inputs)
    for rank, ids in enumerate(_pieces(values, inputs, "input_ids")):
        own = ids.long() - 1
        want = inputs.targets()[rows.flatten()[own], columns.flatten()[own]]
        got = values.get(f"{rank}:targets")
        if got is None or got.shape != want.shape:
            shape = "absent" if got is None else f"shape {list(got.shape)}"
            yield Evidence(
                where="targets", measured=shape, limit=f"shape {list(want.shape)}", message=f"rank {rank}: no targets"
            )
        else:
            yield from exactly("targets", got, want, f"rank {rank} predicts other tokens")


def layout(trial: Trial) -> Iterator[Evidence]:
    """Pieces have the layout that was asked for: put together by it they are the whole, every tensor of it.

    Why: ring attention reckons from the layout which keys come after which queries. With pieces that lie otherwise it
    masks what it should see, and sees what comes later.

    Example: half a zigzag: the second half of each piece in the order of the ranks.
    """
    inputs, values = trial.inputs, trial.outcome.values
    whole = {**{name: inputs.batch[name] for name in ("input_ids", *TOGETHER)}, "targets": inputs.targets()}
    for name, want in whole.items():
        pieces = _pieces(values, inputs, name)
        joined = torch.cat(pieces, -1) if len({x.shape for x in pieces}) == 1 and pieces else want[..., :0]
        if joined.shape != want.shape:
            yield Evidence(
                where=name, measured=f"{list(joined.shape)}", limit=f"{list(want.shape)}", message="pieces do not fit"
            )
        else:
            back = packed_positions.unshard(pieces, layout=inputs.layout)
            yield from exactly(name, back, want, f"not the whole again, put together as {inputs.layout}")


def uneven(trial: Trial) -> Iterator[Evidence]:
    """Tokens that cannot be dealt out equally are an error, or padded with what is not trained on.

    Why: the length of a row is what its samples have together, rarely a multiple of anything. A zigzag asks for a
    multiple of twice the number of ranks.

    Example: a floor division that leaves out the last tokens of each row.
    """
    inputs: Inputs = trial.inputs
    for tokens in sorted({inputs.tokens - 1, inputs.tokens - inputs.world} - {0}):
        short = inputs.cut(tokens)
        outcome = trial.attempt(short)
        if outcome.raised is None:
            yield from _dealt(short, outcome.values)


def _dealt(short: Inputs, values: Outputs) -> Iterator[Evidence]:
    """Evidence unless all tokens are dealt out once with what belongs to them, and what was added is not trained on."""
    known = torch.tensor(sorted(short.batch["input_ids"].flatten().tolist()))
    pieces = _pieces(values, short, "input_ids")
    kept = [ids[torch.isin(ids, known)].flatten() for ids in pieces]
    got = sorted(torch.cat(kept).tolist()) if kept else []
    if got != known.tolist():
        yield Evidence(
            where="input_ids", measured=f"{len(set(got))} tokens", limit=f"{len(known)} tokens",
            message=f"rows of {short.tokens} tokens for {short.world} ranks were accepted and not all dealt out once",
        )  # fmt: skip
        return
    yield from _with_their_own(short, values, pieces)
    for ids, own in zip(pieces, _pieces(values, short, "targets"), strict=True):
        added = ~torch.isin(ids, known)
        if own.shape == ids.shape and bool((own[added] != IGNORED).any()):
            yield Evidence(where="targets", measured="a target", limit="ignored", message="padding is trained on")


def _with_their_own(short: Inputs, values: Outputs, pieces: list[Tensor]) -> Iterator[Evidence]:
    """Evidence where a token of the batch has not what belongs to it, beside tokens that were added."""
    whole = {**{name: short.batch[name] for name in TOGETHER}, "targets": short.targets()}
    known = short.batch["input_ids"].flatten()
    for name, want in whole.items():
        for rank, (ids, own) in enumerate(zip(pieces, _pieces(values, short, name), strict=False)):
            real = torch.isin(ids, known)
            if own.shape[-2:] == ids.shape:
                place = torch.searchsorted(known, ids[real])
                message = f"rows of {short.tokens} tokens: rank {rank} has what belongs to other tokens"
                yield from exactly(name, own[..., real], want.flatten(-2)[..., place], message)


def _pieces(values: Outputs, inputs: Inputs, name: str) -> list[Tensor]:
    return [values[f"{rank}:{name}"] for rank in range(inputs.world) if f"{rank}:{name}" in values]


def _places(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Row and column of each token of the batch."""
    count, tokens = inputs.batch["input_ids"].shape
    rows = torch.arange(count)[:, None].expand(count, tokens)
    return rows, torch.arange(tokens).expand(count, tokens)


def _told(_operation: Operation, case: Any) -> str | None:
    return None if case.layout != ANY else "the form has a layout of its own"


def _cut(_operation: Operation, case: Any) -> str | None:
    return None if case.world > 1 and sum(case.rows[0]) > 1 else "one rank has everything"


_law = partial(Law.of, (NAME,))

LAWS = (_law(once), _law(together), _law(targets), _law(layout, _told), _law(uneven, _cut))
