"""Wrong rows whose ids, labels and first lengths are right: what else a batch says is not."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from assay.audits.components.packed_positions.collators import Batch, batch, collates, without_lengths
from assay.audits.components.packed_positions.pack import NAME, TEXT, Inputs
from assay.audits.fault import fault, gathered


def _numbers(inputs: Inputs) -> Tensor:
    """[T]: the number of each token's sample, from 0."""
    return torch.arange(len(inputs.lengths)).repeat_interleave(torch.tensor(inputs.lengths))


def _filled(made: Batch, more: int) -> Batch:
    """The row with ``more`` tokens appended, as a sample of their own that is not trained on."""
    ids, ends = made["position_ids"], made["cu_seq_lens_q"]
    ends = torch.cat([ends, ends[-1:] + more])
    labels = functional.pad(made["labels"], (0, more), value=int(made["labels"][0, 0]))
    padded = {name: functional.pad(made[name], (0, more)) for name in ("input_ids", "weights")}
    rest = torch.arange(more).to(ids).expand(*ids.shape[:-1], more)
    made = {**made, **padded, "labels": labels, "position_ids": torch.cat([ids, rest], dim=-1)}
    return {**made, "cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": int(ends.diff().max())}


@fault(NAME, "numbered")
@collates
def mask_counts_from_zero(inputs: Inputs) -> Batch:
    """The numbers of samples in the mask begin with 0.

    Effect: the first sample of each row is padding to the model, and nothing of it is attended to.
    """
    return {**batch(inputs), "attention_mask": _numbers(inputs)[None]}


@fault(NAME, "numbered")
@collates
def numbers_in_turns(inputs: Inputs) -> Batch:
    """Samples have the numbers 1 and 2 in turns, which tells each from its neighbours.

    Effect: the third sample of a row sees the first one, over the head of the second.
    """
    return {**batch(inputs), "attention_mask": _numbers(inputs)[None] % 2 + 1}


@fault(NAME, "hidden")
@collates
def mask_open_further_back(inputs: Inputs) -> Batch:
    """In a mask of four dimensions a sample is closed to the one before it, and open to those before that.

    Effect: with three samples in a row and more the last ones read in the first.
    """
    numbers = _numbers(inputs)
    seen = (numbers[:, None] - numbers[None, :] != 1).tril()
    return {**without_lengths(batch(inputs)), "attention_mask": seen[None, None]}


@fault(NAME, "hidden")
@collates
def mask_of_minus_ones(inputs: Inputs) -> Batch:
    """A mask of four dimensions holds 0 and -1, and is added to the scores.

    Effect: everything is seen, what is of another sample or still to come a little less.
    """
    numbers = _numbers(inputs)
    seen = (numbers[:, None] == numbers[None, :]).tril()
    return {**without_lengths(batch(inputs)), "attention_mask": (seen.float() - 1)[None, None]}


@fault(NAME, "steps")
@collates
def longest_key_of_the_first(inputs: Inputs) -> Batch:
    """The longest length of keys is that of the first sample; that of queries is right.

    Effect: kernels that take both leave the keys at the end of longer samples out.
    """
    return {**batch(inputs), "max_length_k": inputs.lengths[0]}


@fault(NAME, "steps")
@collates
def keys_in_int64(inputs: Inputs) -> Batch:
    """The cumulative lengths of keys are int64, those of queries int32.

    Effect: kernels that do not check read every second boundary of the keys as zero.
    """
    made = batch(inputs)
    return {**made, "cu_seq_lens_k": made["cu_seq_lens_k"].long()}


@fault(NAME, "steps")
@collates
def longest_of_the_filling(inputs: Inputs) -> Batch:
    """A row is filled up to a multiple, and the longest length is that of what was appended last.

    Effect: the ends of all samples that are longer are not computed.
    """
    return {**_filled(batch(inputs), 8 - sum(inputs.lengths) % 8), "max_length_q": 8 - sum(inputs.lengths) % 8}


@fault(NAME, "moved")
@collates
def moved_before_they_were_ignored(inputs: Inputs) -> Batch:
    """``shift_labels`` are made from the samples' labels; the first of each sample is ignored in ``labels`` alone.

    Effect: a model that is given both looks at the former: the end of each sample predicts the next one's beginning.
    """
    made = batch(inputs)
    own = torch.cat(inputs.labels if inputs.labelled else inputs.input_ids)
    return {**made, "shift_labels": functional.pad(own[None, 1:], (0, 1), value=inputs.ignore_index)}


@fault(NAME, "carried")
@collates
def fractions_cut(inputs: Inputs) -> Batch:
    """What is carried along for each token becomes a tensor of the dtype of the ids.

    Effect: weights between 0 and 1 are 0.
    """
    made = batch(inputs)
    return {**made, "weights": made["weights"].long()}


@fault(NAME, "carried")
@collates
def all_tokens_are_text(inputs: Inputs) -> Batch:
    """The types of tokens are made anew for the row, as text.

    Effect: images are not attended to in both directions where the family does so, and get the positions of words.
    """
    made = batch(inputs)
    if inputs.rule == TEXT:
        return made
    return {**made, "mm_token_type_ids": torch.zeros_like(made["input_ids"])}


FAULTS = gathered(globals())
