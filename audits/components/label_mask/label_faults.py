"""Wrong labels that come of lengths: of a prompt, a turn or a row that was measured somewhere else."""

from __future__ import annotations

import itertools

from assay.audits.components.label_mask import label_forms
from assay.audits.components.label_mask.drafts import Draft, Labels, each
from assay.audits.components.label_mask.labels import NAME, Inputs, reference
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs
from assay.reference.label_mask import IGNORE

_E1 = "a fine-tuning of Qwen3-VL on RefCOCO"


def _without_placeholders(draft: Draft, labels: Labels) -> Labels:
    hidden = {draft.token(name) for name in label_forms.PLACEHOLDERS}
    return [IGNORE if token in hidden else label for token, label in zip(draft.ids, labels, strict=True)]


def _closed(draft: Draft, labels: Labels) -> Labels:
    """Nothing after the last right target."""
    stop = draft.runs()[-1][1]
    return [*labels[:stop], *[IGNORE] * (len(labels) - stop)]


@fault(NAME, "pictures", "prompts", link=_E1)
def prompt_measured_without_its_images(inputs: Inputs) -> Outputs:
    """As many labels are masked as the text of the prompt has tokens: an image counts as one.

    Effect: the rest of the image, the question and the header are trained on; detection falls from 95 % to 15 %.
    """

    def wrong(draft: Draft) -> Labels:
        prompt = len(draft.encoded(draft.rendered(draft.places[-1], prompt=True)))
        return _without_placeholders(draft, _closed(draft, draft.from_place(prompt)))

    return each(inputs, wrong)


@fault(NAME, "system", "prompts", link="https://github.com/axolotl-ai-cloud/axolotl/issues/2089")
def prompt_measured_without_the_default_system_prompt(inputs: Inputs) -> Outputs:
    """The prompt's length is taken without the system prompt that the template adds.

    Effect: the end of the user's turn is trained on wherever no system prompt is given.
    """

    def wrong(draft: Draft) -> Labels:
        start, _ = draft.runs()[0]
        told = draft.messages[0]["role"] == "system" or draft.inputs.template not in {"qwen2_5", "generation"}
        default = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        skipped = 0 if told else len(draft.encoded(default))
        return [*[IGNORE] * (start - skipped), *draft.ids[start - skipped : start], *draft.labels[start:]]

    return each(inputs, wrong)


@fault(NAME, "sides", "prompts", link="https://github.com/QwenLM/Qwen3-ASR/pull/212")
def prompt_masked_by_columns(inputs: Inputs) -> Outputs:
    """The first columns are masked, as many as the prompt has tokens, on rows that are padded on the left.

    Effect: the prompt of every sample but the longest is trained on.
    """
    found = dict(reference(inputs))
    ids, mask = found["input_ids"], found["attention_mask"].bool()
    labels = found["labels"].clone()
    for sample in range(len(ids)):
        draft = Draft(inputs.of(sample))
        start = draft.runs()[0][0]
        if not draft.everything:
            labels[sample] = ids[sample].where(mask[sample], IGNORE)
            labels[sample, :start] = IGNORE
    return {**found, "labels": labels}


@fault(NAME, "order", "neighbours", "prompts")
def first_prompt_masked_in_all_rows(inputs: Inputs) -> Outputs:
    """The length of the first conversation's prompt is used for the whole batch.

    Effect: right for a batch of equal prompts; in others, prompts are trained on or answers are not.
    """
    start = Draft(inputs.of(0)).runs()[0][0]

    def wrong(draft: Draft) -> Labels:
        return _without_placeholders(draft, _closed(draft, draft.from_place(start)))

    return each(inputs, wrong)


@fault(NAME, "answers", "later", link="https://github.com/axolotl-ai-cloud/axolotl/pull/3098")
def prompt_of_the_last_turn_masked(inputs: Inputs) -> Outputs:
    """All before the last answer counts as its prompt.

    Effect: of a long conversation only the last turn is trained.
    """

    def wrong(draft: Draft) -> Labels:
        start, _ = draft.runs()[-1]
        return [IGNORE] * start + draft.labels[start:]

    return each(inputs, wrong)


@fault(
    NAME, "later", "answers", link="https://github.com/NVIDIA-NeMo/Speech/pull/16284",
    also=("https://github.com/zai-org/GLM-4/pull/803",),
)  # fmt: skip
def only_the_last_turn(inputs: Inputs) -> Outputs:
    """The ids are searched backwards for the last of the assistant's turns.

    Effect: supervision of all other turns is lost; the loss is that of fewer tokens, and no warning is given.
    """

    def wrong(draft: Draft) -> Labels:
        start, stop = draft.runs()[-1]
        return [label if start <= place < stop else IGNORE for place, label in enumerate(draft.labels)]

    return each(inputs, wrong)


@fault(NAME, "earlier", "prompts", link="https://github.com/THUDM/slime/pull/1418")
def one_prompt_and_one_response(inputs: Inputs) -> Outputs:
    """A conversation is one prompt and one response: all after the first header is trained.

    Effect: the user's later turns are trained as if the assistant had said them.
    """

    def wrong(draft: Draft) -> Labels:
        start = draft.runs()[0][0]
        return _without_placeholders(draft, _closed(draft, draft.from_place(start)))

    return each(inputs, wrong)


@fault(NAME, "prompts", link="https://github.com/om-ai-lab/VLM-R1/issues/123")
def all_but_padding_and_images(inputs: Inputs) -> Outputs:
    """Only padding and placeholders are masked.

    Effect: system prompts and questions are trained on, and fine-tuning is weaker for it.
    """
    return each(inputs, lambda draft: _without_placeholders(draft, draft.ids))


@fault(NAME, "placeholders", link="https://github.com/NielsRogge/Transformers-Tutorials/issues/511")
def placeholders_trained(inputs: Inputs) -> Outputs:
    """Labels are the ids with padding masked; where all is trained, so are the tokens that stand for an image.

    Effect: most targets are placeholders; the loss is near zero after a few steps, and the gradient of the text
    shrinks with the resolution of the image.
    """
    found = dict(reference(inputs))
    if inputs.train == "all":
        found["labels"] = found["input_ids"].where(found["attention_mask"].bool(), IGNORE)
    return found


@fault(NAME, "kept", link="https://github.com/NVIDIA/Model-Optimizer/pull/441")
def labels_shifted_already(inputs: Inputs) -> Outputs:
    """Labels hold the next token, and the model shifts them once more.

    Effect: the model learns to predict the token after the next.
    """
    return each(inputs, lambda draft: [*draft.labels[1:], IGNORE])


@fault(NAME, "answers", "prompts", link="https://github.com/verl-project/verl/pull/3287")
def mask_one_token_late(inputs: Inputs) -> Outputs:
    """The mask is aligned with the inputs and cut as if it were aligned with the targets.

    Effect: the first token of each answer is never learnt, and one past its end is.
    """

    def wrong(draft: Draft) -> Labels:
        before = [IGNORE, *draft.labels[:-1]]
        return [token if label != IGNORE else IGNORE for token, label in zip(draft.ids, before, strict=True)]

    return each(inputs, wrong)


@fault(NAME, "answers", link="https://github.com/tloen/alpaca-lora/pull/306")
def prompt_measured_with_an_end(inputs: Inputs) -> Outputs:
    """The prompt is encoded with an end of text, which counts.

    Effect: the first token of each answer is never learnt.
    """

    def wrong(draft: Draft) -> Labels:
        firsts = {start for start, stop in draft.runs() if stop - start > 1}
        return [IGNORE if place in firsts else label for place, label in enumerate(draft.labels)]

    return each(inputs, wrong)


@fault(NAME, "prompts", link="https://github.com/intel/intel-extension-for-transformers/pull/1193")
def prompt_one_token_short(inputs: Inputs) -> Outputs:
    """One is taken off the length of each prompt, for a token that this tokenizer does not add.

    Effect: the last token of each header is trained.
    """

    def wrong(draft: Draft) -> Labels:
        headers = {start - 1 for start, _ in draft.runs()}
        return [draft.ids[place] if place in headers else label for place, label in enumerate(draft.labels)]

    return each(inputs, wrong)


@fault(NAME, "answers", link="https://github.com/OpenGVLab/InternVL/issues/347")
def ignored_where_lengths_do_not_add_up(inputs: Inputs) -> Outputs:
    """Turns are encoded one by one, and where their lengths do not add up to the whole, all labels are ignored.

    Effect: a part of the data set contributes nothing, and only a line on the console says so.
    """

    def wrong(draft: Draft) -> Labels:
        cuts = [len(draft.rendered(count)) for count in range(len(draft.messages) + 1)]
        text = draft.right.text
        several = [draft.encoded(text[a:b].strip("\n")) for a, b in itertools.pairwise(cuts)]
        newlines = len(several)
        fits = sum(map(len, several)) + newlines == len(draft.encoded(text))
        return draft.labels if fits else [IGNORE] * len(draft.ids)

    return each(inputs, wrong)


@fault(NAME, "pictures", "answers", link="https://github.com/vllm-project/vllm/issues/57223")
def mask_made_before_images_are_expanded(inputs: Inputs) -> Outputs:
    """The mask is made for the text with one placeholder an image, and filled up with zeros to the length of the ids.

    Effect: with an image in the prompt, what is trained is somewhere before the answer.
    """

    def wrong(draft: Draft) -> Labels:
        hidden = {draft.token(name) for name in label_forms.PLACEHOLDERS}
        ids, labels = draft.ids, draft.labels
        single = [p for p in range(len(ids)) if ids[p] not in hidden or p == 0 or ids[p - 1] != ids[p]]
        mask = [labels[place] != IGNORE for place in single]
        mask += [False] * (len(ids) - len(mask))
        return [token if told else IGNORE for token, told in zip(ids, mask, strict=True)]

    return each(inputs, wrong)


@fault(NAME, "pictures", "answers", link="https://github.com/huggingface/transformers/issues/46559")
def mask_empty_with_an_image(inputs: Inputs) -> Outputs:
    """Offsets in the text with expanded images are compared with offsets in the one without.

    Effect: a sample with an image has no targets at all.
    """
    return each(inputs, lambda d: [IGNORE] * len(d.ids) if d.inputs.pictured else d.labels)


FAULTS = gathered(globals())
