"""What a packed batch says in several ways, read as it came: numbers, masks of four dimensions, lengths, labels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from assay.audits.components.packed_positions.mask_laws import CLOSED
from assay.audits.components.packed_positions.pack import NAME, Inputs
from assay.audits.laws.parity import exactly
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Inexpressible, Law

LENGTHS = (("cu_seq_lens_q", "max_length_q"), ("cu_seq_lens_k", "max_length_k"), ("cu_seqlens", "max_seqlen"))


def numbered(trial: Trial) -> Iterator[Evidence]:
    """Each sample has a number of its own in a row of numbers, and in a mask none has that of padding, 0.

    Why: masks and scans compare numbers, also those of tokens that are far apart. Two samples with one number see each
    other over the one between them; the sample with the number 0 is padding to whoever reads a mask.

    Example: numbers that count from 0 in ``attention_mask``, or that take turns between 1 and 2.
    """
    inputs: Inputs = trial.inputs
    names = [name for name in ("attention_mask", "seq_idx") if _is_row(trial, name)]
    if not names:
        raise Inexpressible("the batch has no numbers of samples")
    for name in names:
        numbers = trial.outcome.values[f"raw:{name}"].reshape(-1).long()
        firsts = [int(numbers[start]) for start in inputs.starts[:-1]]
        twice = sorted({number for number in firsts if firsts.count(number) > 1})
        if twice:
            yield Evidence(
                where=name, measured=f"{firsts[:12]}", limit="a number for each", message=f"{twice[0]} stands twice"
            )
        if name == "attention_mask" and 0 in firsts:
            yield Evidence(where=name, measured="0", limit="1 or more", message="a sample has the number of padding")


def _is_row(trial: Trial, name: str) -> bool:
    found = trial.outcome.values.get(f"raw:{name}")
    return found is not None and found.ndim < 3


def hidden(trial: Trial) -> Iterator[Evidence]:
    """A mask of four dimensions shows each token its own sample up to itself, and nothing else, however far away.

    Why: such a mask is the last word: nothing that a model finds out for itself is asked any more. One that is right
    beside the boundaries may be open further back, and numbers that are added must be low enough to close.

    Example: minus one added where nothing is to be seen.
    """
    mask = trial.outcome.values.get("raw:attention_mask")
    if mask is None or mask.ndim != 4:
        raise Inexpressible("the batch has no mask of four dimensions")
    own = mask[0, 0][: sum(trial.inputs.lengths)]
    seen = own == 0 if own.is_floating_point() else own.bool()
    numbers = torch.arange(len(trial.inputs.lengths)).repeat_interleave(torch.tensor(trial.inputs.lengths))
    want = torch.zeros_like(seen)
    want[:, : len(numbers)] = (numbers[:, None] == numbers[None, :]).tril()
    yield from exactly("attention_mask", seen, want, "sees what it should not, or not what it should")
    if own.is_floating_point() and not bool((own[~want] <= CLOSED).all()):
        yield Evidence(
            where="attention_mask", measured=f"{float(own[~want].max()):g}", limit=f"at most {CLOSED:g}",
            message="is added where the token is not seen",
        )  # fmt: skip


def steps(trial: Trial) -> Iterator[Evidence]:
    """Every row of cumulative lengths is int32 and has its own longest step beside it, for queries and for keys.

    Why: attention takes both pairs, and in training they are the same. Kernels read four bytes for each boundary, and
    size their grid by the longest: one too small leaves the end of a sample uncomputed.

    Example: lengths of keys that are kept from before the row was filled up.
    """
    inputs: Inputs = trial.inputs
    asked = False
    for name, longest in LENGTHS:
        ends, said = (trial.outcome.values.get(f"raw:{key}") for key in (name, longest))
        if ends is not None:
            asked = True
            if ends.dtype != torch.int32:
                yield Evidence(where=name, measured=str(ends.dtype), limit="torch.int32", message="another dtype")
        if said is not None:
            asked = True
            yield from _longest(longest, int(said), ends, inputs)
    if not asked:
        raise Inexpressible("the batch has no cumulative lengths")


def _longest(name: str, said: int, ends: Tensor | None, inputs: Inputs) -> Iterator[Evidence]:
    """What fills a row up may be longer than all samples, and may be left out."""
    own = max(inputs.lengths)
    allowed = {own} if ends is None or ends.numel() < 2 else {own, int(ends.long().diff().max())}
    if said not in allowed:
        yield Evidence(
            where=name, measured=float(said), limit=float(max(allowed)), message="is not the longest of its lengths"
        )


def moved(trial: Trial) -> Iterator[Evidence]:
    """Labels and labels that were moved already say the same, where a batch has both.

    Why: a model that is given ``shift_labels`` does not look at ``labels``. What was ignored in the one only, the first
    token of each sample above all, is trained on.

    Example: ``shift_labels`` made from the samples' labels, before the first of each sample was ignored.
    """
    values = trial.outcome.values
    if "raw:labels" not in values or "raw:shift_labels" not in values:
        raise Inexpressible("the batch does not have labels twice")
    labels, shifted = (values[f"raw:{name}"].reshape(-1) for name in ("labels", "shift_labels"))
    want = torch.cat([labels[1:], labels.new_full((1,), trial.inputs.ignore_index)])
    if len(shifted) != len(want):
        yield Evidence(
            where="shift_labels", measured=f"{len(shifted)}", limit=f"{len(want)}", message="another number of labels"
        )
    else:
        yield from exactly("shift_labels", shifted, want.to(shifted), "not the labels, moved by one")


_law = partial(Law.of, (NAME,))

LAWS = (_law(numbered), _law(hidden), _law(steps), _law(moved))
