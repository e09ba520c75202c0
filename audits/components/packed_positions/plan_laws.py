"""The laws of a packing plan: many plans are right, so all of them are relations."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from assay.audits.components.packed_positions.plan import NAME, Inputs
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Law, Operation


def once(trial: Trial) -> Iterator[Evidence]:
    """Every token of every sample stands in one pack, once.

    Why: a plan decides what is trained on. A sample that is in no pack is never seen, one that is in two counts twice,
    and neither shows in a loss.

    Example: the last pack, which is not full, is not returned.
    """
    inputs: Inputs = trial.inputs
    packed: dict[int, list[tuple[int, int]]] = {}
    for _, sample, start, stop in trial.outcome.values["pieces"].tolist():
        packed.setdefault(sample, []).append((start, stop))
    sizes = dict(enumerate(inputs.sizes()))
    for sample in (*sizes, *(packed.keys() - sizes.keys())):
        size = sizes.get(sample, 0)
        found = _first_wrong(packed.get(sample, []), _kept(size, inputs))
        if found is not None:
            token, count, want = found
            said = "" if want else ", and there is no such token to pack"
            yield Evidence(
                where="pieces", measured=f"{count} times", limit="once" if want else "never", index=(sample,),
                message=f"token {token} of sample {sample}, which has {size} tokens, is packed {count} times{said}",
            )  # fmt: skip
            return


def _first_wrong(pieces: list[tuple[int, int]], kept: int) -> tuple[int, int, int] | None:
    """The first token that is not packed as often as it should, how often it is, and should; None if all are right."""
    steps: Counter[int] = Counter()
    for start, stop in pieces:
        if start < stop:
            steps.update({start: 1})
            steps.subtract({stop: 1})
    count = 0
    for token, end in itertools.pairwise(sorted({0, kept, *steps})):
        count += steps[token]
        want = int(0 <= token < end <= kept)
        if count != want:
            return token, count, want
    return None


def _kept(size: int, inputs: Inputs) -> int:
    """How many of a sample's tokens are to be packed."""
    if size <= inputs.capacity:
        return size
    return {"split": size, "truncate": inputs.capacity, "drop": 0, "error": 0}[inputs.overlong]


def fits(trial: Trial) -> Iterator[Evidence]:
    """No pack has more tokens than its capacity.

    Why: what is too long is cut by whoever builds the rows, in the middle of a sample or of an image, or it ends the
    run by memory, days later.

    Example: room that is counted without the sample that is about to be added.
    """
    totals = _totals(trial)
    for place, total in enumerate(totals):
        if total > trial.inputs.capacity:
            yield Evidence(
                where="pieces", measured=float(total), limit=float(trial.inputs.capacity), index=(place,),
                message=f"pack {place} has {total} tokens",
            )  # fmt: skip
            return


def whole(trial: Trial) -> Iterator[Evidence]:
    """A sample that fits into a pack is in one pack, as a whole.

    Why: the second part of a sample that is cut is trained on without what it answers, and an image that is cut has
    tokens without features.

    Example: packs that are filled to the brim from one long stream of tokens.
    """
    inputs: Inputs = trial.inputs
    sizes = inputs.sizes()
    for place, sample, start, stop in trial.outcome.values["pieces"].tolist():
        if 0 <= sample < len(sizes) and sizes[sample] <= inputs.capacity and (start, stop) != (0, sizes[sample]):
            yield Evidence(
                where="pieces", measured=f"{start} to {stop}", limit=f"0 to {sizes[sample]}", index=(place, sample),
                message=f"sample {sample} would have fitted and was cut",
            )  # fmt: skip
            return


def fills(trial: Trial) -> Iterator[Evidence]:
    """There are at most 2 T / C + 1 packs for T tokens in packs of C, which the simplest packer achieves.

    Why: packing is there to waste nothing. A packer that opens a new pack whenever a sample does not fit into the last
    one needs no more than that; who needs more does not pack.

    Example: a comparison the wrong way round, so that every sample has a pack of its own.
    """
    totals = [total for total in _totals(trial) if total]
    limit = 2 * sum(totals) / trial.inputs.capacity + 1
    if len(totals) > limit:
        yield Evidence(
            where="pieces", measured=float(len(totals)), limit=limit,
            message=f"{len(totals)} packs for {sum(totals)} tokens in packs of {trial.inputs.capacity}",
        )  # fmt: skip


def overlong(trial: Trial) -> Iterator[Evidence]:
    """A sample longer than a pack is an error where no policy says what is to become of it.

    Why: it can be dropped, cut or put into a pack that is too long. Each is right for somebody, and none may happen
    without being asked for: the longest samples are those with the most images.

    Example: a filter in the data pipeline that skips what is too long, and says so at debug level.
    """
    inputs: Inputs = trial.inputs
    long = torch.cat([inputs.lengths, inputs.lengths.new_tensor([inputs.capacity + 1])])
    asked = dataclasses.replace(inputs, lengths=long, overlong="error")
    outcome = trial.attempt(asked)
    if outcome.raised is None:
        placed = [row for row in outcome.values["pieces"].tolist() if row[1] == len(inputs.lengths)]
        yield Evidence(
            where="lengths", measured=f"{sum(row[3] - row[2] for row in placed)} tokens packed", limit="an error",
            message=f"a sample of {inputs.capacity + 1} tokens was accepted for packs of {inputs.capacity}",
        )  # fmt: skip


def later(trial: Trial) -> Iterator[Evidence]:
    """The same samples in another order are all packed too, in packs that fit.

    Why: a data set is shuffled anew for each epoch; a packer that relies on sorted lengths loses samples then.

    Example: a binary search for room in lengths that were sorted once, elsewhere.
    """
    inputs: Inputs = trial.inputs
    sizes = inputs.sizes()
    for order in (sorted(sizes), sorted(sizes, reverse=True), sizes[::-1]):
        again = dataclasses.replace(inputs, lengths=torch.tensor(order, dtype=torch.int64))
        turned = dataclasses.replace(trial, inputs=again, _memo={})
        for law in (once, fits):
            yield from (dataclasses.replace(item, message=f"in another order: {item.message}") for item in law(turned))


def _totals(trial: Trial) -> list[int]:
    """Tokens of each pack."""
    totals: Counter[int] = Counter()
    for place, _, start, stop in trial.outcome.values["pieces"].tolist():
        totals[place] += stop - start
    return [totals[place] for place in sorted(totals)]


def _several(_operation: Operation, case: Any) -> str | None:
    return None if len(set(case.lengths)) > 1 else "all samples are alike"


_law = partial(Law.of, (NAME,))

LAWS = (_law(once), _law(fits), _law(whole), _law(fills), _law(overlong), _law(later, _several))
