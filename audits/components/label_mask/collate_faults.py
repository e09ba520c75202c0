"""Wrong ways of padding labelled samples to a batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from assay.audits.components.label_mask.collate import NAME, Inputs, reference
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs
from assay.reference.label_mask import IGNORE

_seen: list[tuple[int, int]] = []


def _padding(inputs: Inputs, width: int) -> torch.Tensor:
    """[B,S] bool: where a row holds no token."""
    lengths = torch.tensor(inputs.lengths)[:, None]
    columns = torch.arange(width)
    return columns < width - lengths if inputs.side == "left" else columns >= lengths


@fault(NAME, "labels", "pad_id", link="https://github.com/huggingface/transformers/issues/23530")
def every_pad_id_ignored(inputs: Inputs) -> Outputs:
    """Every label that has the pad's id is ignored.

    Effect: where the pad is the end of text, no end of a turn is trained, and the model does not stop.
    """
    found = dict(reference(inputs))
    return {**found, "labels": found["labels"].where(found["input_ids"] != inputs.pad_id, IGNORE)}


@fault(NAME, "labels", link="https://github.com/huggingface/trl/issues/3728")
def labels_made_from_ids(inputs: Inputs) -> Outputs:
    """Only ids are kept; labels are made from them again, with padding ignored.

    Effect: the mask of the answers is lost, and the whole sequence is trained: the model writes role markers forever.
    """
    found = dict(reference(inputs))
    hidden = _padding(inputs, found["labels"].shape[1])
    return {**found, "labels": found["input_ids"].where(~hidden, IGNORE)}


@fault(NAME, "optional", link="a detection fine-tuning whose collator looked its keys up directly")
def keys_looked_up_directly(inputs: Inputs) -> Outputs:
    """A safe look-up with a default became a direct one.

    Effect: training stops at the first sample without spans, hours in.
    """
    for sample in range(len(inputs.examples)):
        inputs.given(sample)["spans"]
    return reference(inputs)


@fault(NAME, "optional")
def keys_of_the_first_for_all(inputs: Inputs) -> Outputs:
    """The keys of the first sample are taken for those of all.

    Effect: where the first has no spans, those of the others are dropped in silence.
    """
    lacking = {name for sample, name in inputs.absent if sample == 0}
    every = tuple((sample, name) for sample in range(len(inputs.examples)) for name in lacking)
    return reference(dataclasses.replace(inputs, absent=(*inputs.absent, *every)))


@fault(NAME, "optional")
def samples_without_spans_left_out(inputs: Inputs) -> Outputs:
    """A sample that lacks an optional key is dropped from the batch.

    Effect: negatives are never trained on, and every image has something to find.
    """
    kept = [sample for sample in range(len(inputs.examples)) if (sample, "spans") not in inputs.absent]
    examples = tuple(inputs.examples[sample] for sample in kept) or inputs.examples[:1]
    return reference(dataclasses.replace(inputs, examples=examples, absent=()))


@fault(NAME, "spans", "sides")
def spans_not_moved(inputs: Inputs) -> Outputs:
    """Spans are concatenated as they are, and types stay where they were, whichever side the padding is on.

    Effect: with padding on the left they point into the padding.
    """
    found = dict(reference(inputs))
    right = reference(dataclasses.replace(inputs, side="right"))
    return {**found, "spans": right["spans"], "token_types": right["token_types"]}


@fault(NAME, "conserved")
def padded_on_the_other_side(inputs: Inputs) -> Outputs:
    """The side is not read: all is padded on the right.

    Effect: generation continues after padding.
    """
    return reference(dataclasses.replace(inputs, side="right"))


@fault(NAME, "pads")
def labels_padded_with_zero(inputs: Inputs) -> Outputs:
    """Labels are padded with zeros, like a mask.

    Effect: token 0 is trained at every pad, the more the more ragged a batch is.
    """
    found = dict(reference(inputs))
    return {**found, "labels": found["labels"].masked_fill(_padding(inputs, found["labels"].shape[1]), 0)}


@fault(NAME, "pads", link="https://github.com/axolotl-ai-cloud/axolotl/pull/2227")
def labels_padded_like_ids(inputs: Inputs) -> Outputs:
    """Labels are a copy of the ids that was made after padding, as it does no harm where rows are packed.

    Effect: where they are not, the model is trained to write pads, the more the more ragged a batch is.
    """
    found = dict(reference(inputs))
    hidden = _padding(inputs, found["labels"].shape[1])
    return {**found, "labels": torch.where(hidden, found["input_ids"], found["labels"])}


@fault(NAME, "pads")
def mask_of_ones(inputs: Inputs) -> Outputs:
    """The attention mask is made after padding, from the shape.

    Effect: pads are text; with padding on the left everything is answered after a row of them.
    """
    found = dict(reference(inputs))
    return {**found, "attention_mask": torch.ones_like(found["attention_mask"])}


@fault(NAME, "conserved", "pad_id")
def mask_by_the_pads_id(inputs: Inputs) -> Outputs:
    """The attention mask is where the ids are not the pad's.

    Effect: where the pad is the end of text, nobody sees where turns end.
    """
    found = dict(reference(inputs))
    return {**found, "attention_mask": (found["input_ids"] != inputs.pad_id).long()}


@fault(NAME, "shaped")
def labels_as_numbers_of_a_model(inputs: Inputs) -> Outputs:
    """All that a batch holds is brought to the model's dtype.

    Effect: a crash at the first loss; ids beyond the precision of the dtype are others before that.
    """
    found = reference(inputs)
    return {**found, "labels": found["labels"].float()}


@fault(NAME, "shaped")
def ids_padded_to_a_multiple(inputs: Inputs) -> Outputs:
    """Ids are padded to a multiple of eight, labels to the longest.

    Effect: the shapes differ, and whatever makes them fit shifts one of them.
    """
    found = dict(reference(inputs))
    more = -found["input_ids"].shape[1] % 8
    return {**found, "input_ids": torch.nn.functional.pad(found["input_ids"], (0, more), value=inputs.pad_id)}


@fault(NAME, "neighbours", "labels")
def last_label_of_the_longest_cut(inputs: Inputs) -> Outputs:
    """Samples are cut to the mean length of the batch, and the end of a turn is put back.

    Effect: long answers lose their end to short neighbours.
    """
    found = dict(reference(inputs))
    labels = found["labels"].clone()
    mean = sum(inputs.lengths) // len(inputs.lengths)
    for sample, length in enumerate(inputs.lengths):
        if length > mean:
            labels[sample, mean - length - 1 : -1 if inputs.side == "left" else length - 1] = IGNORE
    return {**found, "labels": labels}


@fault(NAME, "carried")
def other_keys_dropped(inputs: Inputs) -> Outputs:
    """The batch is made of the three keys that every model takes.

    Effect: a model that needs the types of its tokens stops, or takes images for text.
    """
    found = reference(inputs)
    return {name: value for name, value in found.items() if name not in {"token_types", "spans"}}


@fault(NAME, "conserved")
def mask_made_from_lengths(inputs: Inputs) -> Outputs:
    """The attention mask is made from the lengths of the samples, whatever theirs is.

    Effect: tokens that a sample hides are seen.
    """
    found = dict(reference(inputs))
    return {**found, "attention_mask": (~_padding(inputs, found["labels"].shape[1])).long()}


@fault(NAME, "labels")
def token_0_ignored(inputs: Inputs) -> Outputs:
    """Labels of 0 are taken for padding of the step before.

    Effect: the first letter of the vocabulary, ``!`` in most of them, is never learnt.
    """
    found = reference(inputs)
    return {**found, "labels": found["labels"].masked_fill(found["labels"] == 0, IGNORE)}


@fault(NAME, "pads")
def pad_0_taken_for_none(inputs: Inputs) -> Outputs:
    """The pad is ``pad_token_id or eos_token_id``, and its id is 0.

    Effect: rows are padded with the end of text, which is masked by nobody who looks for the pad.
    """
    return reference(inputs if inputs.pad_id else dataclasses.replace(inputs, pad="eos"))


@fault(NAME, "labels")
def rows_after_the_eighth_unlabelled(inputs: Inputs) -> Outputs:
    """Labels are written to a buffer that was made for batches of eight.

    Effect: the larger the batch, the less of it is trained on.
    """
    found = dict(reference(inputs))
    labels = found["labels"].clone()
    labels[8:] = IGNORE
    return {**found, "labels": labels}


@fault(NAME, "shaped", link="https://github.com/huggingface/trl/pull/5904")
def rows_cut_at_a_default_length(inputs: Inputs) -> Outputs:
    """Rows are cut at a length that nobody chose.

    Effect: the answers of long samples are gone, and the images that the cut falls into are broken.
    """
    found = dict(reference(inputs))
    kept = {name: found[name][:, :2048] for name in ("input_ids", "labels", "attention_mask", "token_types")}
    return {**found, **kept}


@fault(NAME, "untouched")
def labels_popped(inputs: Inputs) -> Outputs:
    """Labels are popped off the examples, so that the tokenizer can pad the rest.

    Effect: a data set in memory has none in the second epoch.
    """
    return {**reference(inputs), "untouched": torch.zeros(len(inputs.examples), dtype=torch.bool)}


@fault(NAME, "mutates")
def labels_masked_in_place(inputs: Inputs) -> Outputs:
    """The first label of each sample is ignored in the memory of the data set.

    Effect: harmless for one epoch; whoever reads the labels elsewhere reads others.
    """
    found = reference(inputs)
    for example in inputs.examples:
        example.labels[0] = IGNORE - 1
    return found


@fault(NAME, "nondeterministic")
def padded_to_the_longest_ever(inputs: Inputs) -> Outputs:
    """A batch is padded to the longest row that has been seen.

    Effect: memory grows during training, and runs that resume differ from those that do not.
    """
    found: dict[str, Any] = dict(reference(inputs))
    _seen.append((len(_seen), found["labels"].shape[1]))
    for name, fill in {"input_ids": inputs.pad_id, "labels": IGNORE, "attention_mask": 0}.items():
        found[name] = torch.nn.functional.pad(found[name], (0, len(_seen)), value=fill)
    return found


@fault(NAME, "leaks")
def one_thread_from_now_on(inputs: Inputs) -> Outputs:
    """The collator sets the number of threads for its own process, and runs in the trainer's.

    Effect: everything after it runs on one core.
    """
    torch.set_num_threads(torch.get_num_threads() + 1)
    return reference(inputs)


FAULTS = gathered(globals())
