"""Wrong labels that come of searching: for the answer's tokens, for a role's marker, for the pad's id."""

from __future__ import annotations

import torch

from assay.audits.components.label_mask import label_forms
from assay.audits.components.label_mask.drafts import Draft, Labels, each, find, silently
from assay.audits.components.label_mask.labels import NAME, Inputs, reference
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs
from assay.reference.label_mask import IGNORE

_E1 = "a fine-tuning of Qwen3-VL on RefCOCO"


def _target(draft: Draft) -> list[int]:
    """The last answer encoded by itself."""
    return draft.encoded(draft.text(draft.places[-1]))


@fault(NAME, "quoted", "prompts", "pads", link=_E1)
def first_occurrence_of_the_target(inputs: Inputs) -> Outputs:
    """The ids are searched for the target, encoded by itself, and what precedes its first occurrence is masked.

    Effect: where the question holds the answer, the question is trained; padding after the answer always is; where
    the target's tokens merge otherwise in context, nothing is masked. The guards, that at least one token and under
    half of all are trained, let most of it pass.
    """
    found = dict(reference(inputs))
    labels = torch.full_like(found["labels"], IGNORE)
    for sample in range(len(labels)):
        draft = Draft(inputs.of(sample))
        ids = found["input_ids"][sample].tolist()
        start = max(0, find(ids, _target(draft)))
        labels[sample, start:] = torch.tensor([draft.token("<|pad|>") if token < 0 else token for token in ids[start:]])
    return {**found, "labels": labels if inputs.train != "all" else found["labels"]}


@fault(NAME, "answers", link=_E1)
def first_occurrence_and_as_long_as_the_target(inputs: Inputs) -> Outputs:
    """As many tokens are trained from the first occurrence on as the target has by itself.

    Effect: an answer that is in the question is trained there and not where it is given; its end is never trained.
    """

    def wrong(draft: Draft) -> Labels:
        wanted = _target(draft)
        start = draft.found(wanted)
        held = range(start, start + len(wanted)) if start >= 0 else range(0)
        return [token if place in held else IGNORE for place, token in enumerate(draft.ids)]

    return each(inputs, wrong)


@fault(NAME, "neighbours", "prompts", link=_E1)
def start_of_the_sample_before_is_used_again(inputs: Inputs) -> Outputs:
    """Where the target is not found, the variable still holds where the previous sample's started.

    Effect: a sample is masked by the length of another one's prompt, in an order that changes each epoch.
    """
    start = 0

    def wrong(draft: Draft) -> Labels:
        nonlocal start
        found = draft.found(_target(draft))
        start = found if found >= 0 and not draft.text(draft.places[-1]).startswith(" ") else start
        stop = draft.runs()[-1][1]
        hidden = {draft.token(name) for name in label_forms.PLACEHOLDERS}
        return [
            token if start <= place < stop and token not in hidden else IGNORE for place, token in enumerate(draft.ids)
        ]

    return each(inputs, wrong)


@fault(NAME, "answers", link="https://github.com/NVIDIA-NeMo/Automodel/pull/2060")
def answers_searched_and_lost(inputs: Inputs) -> Outputs:
    """Each answer is encoded by itself and searched; one that merges otherwise in context is left out.

    Effect: samples are wasted in silence, more of them the better the vocabulary compresses.
    """

    def wrong(draft: Draft) -> Labels:
        labels, at = [IGNORE] * len(draft.ids), 0
        for place in draft.places:
            wanted = draft.encoded(draft.text(place) + draft.inputs.style.end_of_turn)
            start = draft.found(wanted, at)
            if start >= 0:
                at = start + len(wanted)
                labels[start:at] = draft.ids[start:at]
        return labels

    return each(inputs, wrong)


def _by_header(draft: Draft, header: list[int]) -> Labels:
    """Everything after each occurrence of a header, up to and with the next terminator."""
    labels, at, end = [IGNORE] * len(draft.ids), 0, draft.encoded(draft.inputs.style.end_of_turn)
    while (start := draft.found(header, at)) >= 0:
        first = start + len(header)
        stop = draft.found(end, first)
        at = stop + len(end) if stop >= 0 else len(draft.ids)
        labels[first:at] = draft.ids[first:at]
    return labels


@fault(NAME, "quoted", "prompts", link="https://github.com/QwenLM/Qwen3-VL/issues/2010")
def word_assistant_taken_for_the_role(inputs: Inputs) -> Outputs:
    """The ids are scanned for the word `assistant`, wherever it stands.

    Effect: a user who writes the word has the rest of the turn trained.
    """
    return each(inputs, lambda draft: _by_header(draft, draft.encoded("assistant\n")))


@fault(NAME, "prompts", link="https://github.com/NVIDIA-NeMo/Megatron-Bridge/pull/4169")
def typed_markers_taken_for_roles(inputs: Inputs) -> Outputs:
    """Role markers are searched in the ids, those that somebody typed among them.

    Effect: a user who quotes a conversation has it trained as the assistant's.
    """
    return each(inputs, lambda draft: _by_header(draft, draft.encoded(draft.inputs.style.header)))


@fault(NAME, "answers", "unnoticed", link="https://github.com/OpenRLHF/OpenRLHF/issues/591")
def header_encoded_without_its_context(inputs: Inputs) -> Outputs:
    """The assistant's header is encoded by itself and searched; not found, all labels are ignored, with a warning.

    Effect: nothing is trained, and the loss is not a number or zero.
    """
    return each(
        inputs, lambda draft: _by_header(draft, draft.encoded(f"\n{draft.inputs.style.header}")), untold=silently
    )


@fault(NAME, "stops", "pad_id", link="https://github.com/huggingface/transformers/issues/23530")
def every_pad_id_masked(inputs: Inputs) -> Outputs:
    """Every label that has the pad's id is ignored.

    Effect: where the pad is the end of text, no end of turn is ever trained, and the model does not stop.
    """
    found = dict(reference(inputs))
    pad = inputs.processor().tokenizer.pad_token_id
    return {**found, "labels": found["labels"].where(found["input_ids"] != pad, IGNORE)}


@fault(NAME, "spelled")
def attention_mask_by_the_pads_id(inputs: Inputs) -> Outputs:
    """The attention mask is where the ids are not the pad's.

    Effect: where the pad is the end of text, the model does not see where turns end.
    """
    found = dict(reference(inputs))
    pad = inputs.processor().tokenizer.pad_token_id
    hidden = (found["input_ids"] == pad) | (found["attention_mask"] == 0)
    return {
        **found, "attention_mask": (~hidden).long(), "labels": found["labels"].where(~hidden, IGNORE),
    }  # fmt: skip


@fault(NAME, "answers", link="https://github.com/marin-community/marin/issues/7237")
def mask_of_a_template_that_marks_nothing(inputs: Inputs) -> Outputs:
    """The mask comes from `{% generation %}`; where the template has none, it is all zeros.

    Effect: nothing is trained, with a warning at most.
    """
    return each(inputs, lambda d: d.labels if d.inputs.style.marked else [IGNORE] * len(d.ids))


@fault(NAME, "prompts", link="https://github.com/marin-community/marin/issues/7237")
def all_ones_where_the_template_marks_nothing(inputs: Inputs) -> Outputs:
    """The mask comes from `{% generation %}`; where the template has none, everything is trained.

    Effect: the model learns to write the user's turns.
    """
    return each(inputs, lambda d: d.labels if d.inputs.style.marked else d.ids)


@fault(NAME, "stops", "answers", link="https://github.com/NVIDIA-NeMo/Automodel/pull/3739")
def generation_prompt_masked_to_the_end(inputs: Inputs) -> Outputs:
    """The generation prompt is masked up to the end of text; a template that ends turns by another token has none.

    Effect: the last answer is masked with its header.
    """

    def wrong(draft: Draft) -> Labels:
        if draft.inputs.style.end_of_turn == draft.inputs.style.eos:
            return draft.labels
        start = draft.runs()[-1][0]
        return draft.labels[:start] + [IGNORE] * (len(draft.ids) - start)

    return each(inputs, wrong)


@fault(NAME, "kept", link="https://github.com/baichuan-inc/Baichuan2/pull/428")
def end_of_text_at_the_users_marker(inputs: Inputs) -> Outputs:
    """The token that opens the next user's turn has the end of text as its label.

    Effect: the end of text is trained where a turn starts.
    """

    def wrong(draft: Draft) -> Labels:
        labels, end = list(draft.labels), draft.tokenizer.eos_token_id
        for _, stop in draft.runs():
            if stop + 1 < len(labels):
                labels[stop + 1] = end
        return labels

    return each(inputs, wrong)


@fault(NAME, "prompts", link="https://github.com/zhangfaen/finetune-Qwen2-VL/issues/21")
def newline_after_the_end_trained(inputs: Inputs) -> Outputs:
    """Indices on markers are off by the newline that the template writes after a turn.

    Effect: harmless by itself; a sign that the span comes from arithmetic on markers.
    """

    def wrong(draft: Draft) -> Labels:
        after = {stop for _, stop in draft.runs()}
        return [draft.ids[place] if place in after else label for place, label in enumerate(draft.labels)]

    return each(inputs, wrong)


@fault(NAME, "stops")
def end_of_turn_left_out(inputs: Inputs) -> Outputs:
    """The answer's text is trained, its terminator is not.

    Effect: the model goes on after its answer, and invents the user's next turn.
    """

    def wrong(draft: Draft) -> Labels:
        lasts = {stop - 1 for _, stop in draft.runs()}
        return [IGNORE if place in lasts else label for place, label in enumerate(draft.labels)]

    return each(inputs, wrong)


FAULTS = gathered(globals())
