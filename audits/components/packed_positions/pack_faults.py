"""Wrong rows: collators that pack, each right but for one step with its tokens, labels or boundaries."""

from __future__ import annotations

import torch

from assay.audits.components.packed_positions.collators import Batch, batch, collates, with_lengths
from assay.audits.components.packed_positions.pack import NAME, Inputs, reference
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs


@fault(NAME, "boundaries", "agree", link="https://github.com/axolotl-ai-cloud/axolotl/pull/2495")
@collates
def lengths_of_the_whole_row(inputs: Inputs) -> Batch:
    """The cumulative lengths are a placeholder over the whole row.

    Effect: with sequence parallelism on, samples see each other; without, they do not.
    """
    made = batch(inputs)
    return with_lengths(made, torch.tensor([0, made["input_ids"].shape[-1]], dtype=torch.int32))


@fault(NAME, "boundaries", "agree", link="https://github.com/NVlabs/VILA/issues/80")
@collates
def lengths_sorted_elsewhere(inputs: Inputs) -> Batch:
    """The lengths are those of samples sorted by size, the row is in the order in which they came.

    Effect: boundaries cut through samples and join others.
    """
    ends = torch.tensor([0, *sorted(inputs.lengths, reverse=True)]).cumsum(0).int()
    return with_lengths(batch(inputs), ends)


@fault(NAME, "boundaries", link="https://github.com/NVIDIA-NeMo/Megatron-Bridge/pull/2246")
@collates
def padded_tail_of_lengths(inputs: Inputs) -> Batch:
    """The cumulative lengths are padded to a fixed size, and the tail is not cut off.

    Effect: attention is asked for samples without tokens, and the longest length may be that of the padding.
    """
    made = batch(inputs)
    ends = made["cu_seq_lens_q"]
    return with_lengths(made, torch.cat([ends, ends[-1:].expand(3)]))


@fault(NAME, "boundaries")
@collates
def last_sample_without_an_end(inputs: Inputs) -> Batch:
    """The cumulative lengths hold where samples start, and not where the last one ends.

    Effect: the last sample of each row is not attended to at all, or reads beyond the row.
    """
    made = batch(inputs)
    return {**made, "cu_seq_lens_q": made["cu_seq_lens_q"][:-1], "cu_seq_lens_k": made["cu_seq_lens_q"][:-1]}


@fault(NAME, "boundaries")
@collates
def longest_is_the_first(inputs: Inputs) -> Batch:
    """The longest length is that of the first sample.

    Effect: kernels that size their blocks by it leave the ends of longer samples uncomputed.
    """
    return {**batch(inputs), "max_length_q": inputs.lengths[0]}


@fault(NAME, "returns")
@collates
def lengths_in_int64(inputs: Inputs) -> Batch:
    """The cumulative lengths are int64, as torch counts.

    Effect: kernels that take them as int32 read every second one as zero.
    """
    made = batch(inputs)
    return with_lengths(made, made["cu_seq_lens_q"].long())


@fault(NAME, "agree", "boundaries", link="https://github.com/huggingface/transformers/pull/46634")
@collates
def mask_of_ones(inputs: Inputs) -> Batch:
    """The batch has an attention mask of ones beside position ids that restart.

    Effect: models look for restarts only where there is no mask; all samples see each other.
    """
    made = batch(inputs)
    return {**made, "attention_mask": torch.ones_like(made["input_ids"])}


@fault(NAME, "agree", "boundaries", link="https://github.com/fla-org/flash-linear-attention/pull/842")
@collates
def lengths_made_from_the_mask(inputs: Inputs) -> Batch:
    """The lengths that were handed over are replaced by those of a mask of ones.

    Effect: the state of recurrent layers runs on from sample to sample.
    """
    made = batch(inputs)
    ends = torch.tensor([0, int(torch.ones_like(made["input_ids"]).sum())], dtype=torch.int32)
    return {**with_lengths(made, ends), "attention_mask": torch.ones_like(made["input_ids"])}


@fault(NAME, "first_label", "parity", link="https://github.com/meta-pytorch/torchtune/issues/1177")
@collates
def first_label_trained(inputs: Inputs) -> Batch:
    """Labels are concatenated as they are.

    Effect: the end of each sample is trained to predict the beginning of the next one.
    """
    own = inputs.labels if inputs.labelled else inputs.input_ids
    return {**batch(inputs), "labels": torch.cat(own)[None]}


@fault(NAME, "first_label", link="https://github.com/unslothai/unsloth/pull/8959")
@collates
def guard_behind_the_return(inputs: Inputs) -> Batch:
    """The step that ignores the first label of each sample is never reached; the row's own first label is.

    Effect: one wrong target at each boundary, which a mean over thousands of tokens hides.
    """
    own = torch.cat(inputs.labels if inputs.labelled else inputs.input_ids)
    own[0] = inputs.ignore_index
    return {**batch(inputs), "labels": own[None]}


@fault(NAME, "labels_kept")
@collates
def last_label_ignored_too(inputs: Inputs) -> Batch:
    """The label before each boundary is ignored as well, to be safe.

    Effect: the end of the turn is never trained, and the model does not stop.
    """
    made = batch(inputs)
    labels = made["labels"].clone()
    labels[0, torch.tensor(inputs.starts[1:]) - 1] = inputs.ignore_index
    return {**made, "labels": labels}


@fault(NAME, "labels_kept", link="https://github.com/huggingface/trl/issues/3728")
@collates
def labels_from_the_ids(inputs: Inputs) -> Batch:
    """The packer takes the ids alone; labels are made from them afterwards.

    Effect: prompts are trained on again as soon as packing is on, and the model writes the user's turns.
    """
    made = batch(inputs)
    labels = made["input_ids"].clone()
    labels[0, torch.tensor(inputs.starts[:-1])] = inputs.ignore_index
    return {**made, "labels": labels}


@fault(NAME, "labels_kept")
@collates
def labels_shifted_already(inputs: Inputs) -> Batch:
    """Labels are moved by one when the row is packed, and again in the model's loss.

    Effect: the model learns to skip every second word.
    """
    made = batch(inputs)
    tail = torch.full_like(made["labels"][:, :1], inputs.ignore_index)
    return {**made, "labels": torch.cat([made["labels"][:, 1:], tail], dim=1)}


@fault(NAME, "tokens")
@collates
def equal_samples_once(inputs: Inputs) -> Batch:
    """Samples are kept by their first token and their length.

    Effect: what occurs twice, as a prompt with several answers does, is trained on once.
    """
    kept = {(len(ids), int(inputs.labels[i][-1]) % 2): i for i, ids in enumerate(inputs.input_ids)}
    return batch(inputs.of(*sorted(kept.values())))


@fault(
    NAME, "empties", link="https://github.com/huggingface/transformers/blob/main/src/transformers/data/data_collator.py"
)
@collates
def separator_for_every_sample(inputs: Inputs) -> Batch:
    """One ignored label is written for each sample and then the labels from the second on, also where there is none.

    Effect: after a sample without tokens every label stands one place too far right.
    """
    full = [number for number, size in enumerate(inputs.lengths) if size]
    made = batch(inputs.of(*full))
    separator = torch.tensor([inputs.ignore_index])
    own = inputs.labels if inputs.labelled else inputs.input_ids
    labels = torch.cat([torch.cat([separator, labels[1:]]) for labels in own])
    return {**made, "labels": labels[None]}


@fault(NAME, "carried", link="https://github.com/huggingface/trl/issues/3728")
@collates
def further_tensors_left_behind(inputs: Inputs) -> Batch:
    """Only what the packer knows is packed.

    Effect: a weight or a mask for each token is off as soon as packing is on, without a word.
    """
    made = batch(inputs)
    del made["weights"]
    return made


@fault(NAME, "carried")
@collates
def further_tensors_padded(inputs: Inputs) -> Batch:
    """Further tensors come from a padded batch, row after row, and are cut to the length of the row.

    Effect: every weight after the first sample belongs to another token.
    """
    longest = max(inputs.lengths)
    rows = [torch.cat([own, own.new_zeros(longest - len(own))]) for own in inputs.weights]
    return {**batch(inputs), "weights": torch.cat(rows)[None, : sum(inputs.lengths)]}


@fault(NAME, "carried")
@collates
def pixels_sorted_by_size(inputs: Inputs) -> Batch:
    """Patches come image by image, the largest first, as a tower takes them best; grids stay in their order.

    Effect: the features of one image stand at the placeholders of another; numbers agree.
    """
    made = batch(inputs)
    largest = sorted((x for x in inputs.pixels if len(x)), key=len, reverse=True)
    return {**made, "pixel_values": torch.cat(largest)} if largest else made


@fault(NAME, "carried")
@collates
def grids_once_for_each_sample(inputs: Inputs) -> Batch:
    """Images belong to the batch and are repeated for each sample of the row, as a padding collator has them.

    Effect: more features than placeholders; those that cut the surplus give later samples the first one's images.
    """
    made = batch(inputs)
    times = len(inputs.input_ids)
    return {**made, **{name: made[name].repeat(times, 1) for name in made if name.endswith("_grid_thw")}}


@fault(NAME, "aligned")
def aligned_in_front(inputs: Inputs) -> Outputs:
    """What fills a row up stands in front of it, as an attention that pads left wants it; lengths count from 0.

    Effect: every boundary is off by the padding, and the first sample is made of it.
    """
    out = dict(reference(inputs))
    extra = len(out["input_ids"]) - sum(inputs.lengths)
    for name in ("input_ids", "labels", "positions", "text_positions"):
        out[name] = out[name].roll(extra, dims=-1)
    return {**out, "segments": out["segments"].roll(extra)}


@fault(NAME, "aligned")
def filling_belongs_to_the_last_sample(inputs: Inputs) -> Outputs:
    """What fills a row up is counted to the last sample and labelled by its id.

    Effect: the model is trained to write padding, the more the less full its rows are.
    """
    out = dict(reference(inputs))
    total = sum(inputs.lengths)
    labels, segments = out["labels"].clone(), out["segments"].clone()
    labels[total:], segments[total:] = out["input_ids"][total:], len(inputs.input_ids)
    return {**out, "labels": labels, "segments": segments}


@fault(NAME, "numbered")
@collates
def numbers_in_a_byte(inputs: Inputs) -> Batch:
    """Numbers of samples for recurrent layers are a byte each.

    Effect: sample 257 has the number of the first; whoever compares numbers lets it see the first.
    """
    numbers = torch.arange(len(inputs.lengths)).repeat_interleave(torch.tensor(inputs.lengths))
    return {**batch(inputs), "seq_idx": numbers.to(torch.uint8).int()[None]}


@fault(NAME, "tokens", "labels_kept")
@collates
def ids_in_two_bytes(inputs: Inputs) -> Batch:
    """Ids are kept in two bytes each, as the memory map of a smaller vocabulary was.

    Effect: every word beyond the first 32768 is another word, and is trained to be.
    """
    made = batch(inputs)
    return {**made, **{name: made[name].to(torch.int16).long() for name in ("input_ids", "labels")}}


FAULTS = gathered(globals())
