"""Pipelines that train on the wrong tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from assay.audits.components.pipeline.own import IGNORED, Collator, Packer
from assay.audits.components.pipeline.wrong import FAMILY, faulty, model, pipeline
from assay.audits.pipelines import Pipeline

Made = Mapping[str, Tensor]
Messages = Sequence[Mapping[str, Any]]


class _Relabelled(Collator):
    """Right but for the labels of a batch, which ``change(batch, collator)`` makes anew."""

    def __init__(self, change: Any) -> None:
        super().__init__(FAMILY)
        self._change = change

    def labelled(self, made: Sequence[Made]) -> dict[str, Tensor]:
        batch = super().labelled(made)
        return {**batch, "labels": self._change(batch, self)}


def _shift(batch: Made, _collator: Collator) -> Tensor:
    return torch.cat([batch["labels"][:, 1:], torch.full_like(batch["labels"][:, :1], IGNORED)], dim=1)


@faulty("kept", "answers", link="https://github.com/verl-project/verl/pull/3287")
def labels_shifted_by_the_collator() -> Pipeline:
    """Labels are moved to the token that predicts them, and the model shifts them again.

    Effect: every token is trained to predict the one after the next.
    """
    return pipeline(_Relabelled(_shift))


def _with_padding(batch: Made, _collator: Collator) -> Tensor:
    return torch.where(batch["attention_mask"] == 0, batch["input_ids"], batch["labels"])


@faulty("kept", "micro")
def padding_trained() -> Pipeline:
    """Labels of padding are the padding token, which no loss ignores.

    Effect: short samples teach the model to write padding, the more the longer their company is.
    """
    return pipeline(_Relabelled(_with_padding))


def _all_but_padding(batch: Made, _collator: Collator) -> Tensor:
    return batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)


@faulty("kept", "answers", link="https://github.com/NielsRogge/Transformers-Tutorials/issues/511")
def placeholders_trained() -> Pipeline:
    """Labels are the ids with padding masked: the prompt and the image's placeholders are trained on.

    Effect: most of the loss is that of writing placeholders; it falls to nothing and the answers stay as they were.
    """
    return pipeline(_Relabelled(_all_but_padding))


class _FromText(Collator):
    """Masks as many leading tokens as the prompt's text has by itself, where an image is one token."""

    def kept(self, full: str, messages: Messages, offsets: Sequence[tuple[int, int]]) -> list[bool]:
        prompt = self.processor.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        length = len(self.processor.tokenizer(prompt)["input_ids"])
        last = full.rindex("<|im_end|>") + len("<|im_end|>")
        return [place >= length and stop <= last for place, (_, stop) in enumerate(offsets)]


@faulty("answers")
def prompt_length_of_its_text() -> Pipeline:
    """The prompt's length is counted in its text, where an image is one token, and not in the ids that hold it.

    Effect: the end of the question is trained on, the longer the larger the image is.
    """
    return pipeline(_FromText(FAMILY))


class _Searching(Collator):
    """Trains on all that follows the first place where the answer's own tokens are found."""

    def one(self, messages: Messages) -> dict[str, Any]:
        made = super().one(messages)
        ids = made["input_ids"][0].tolist()
        answer = self.processor.tokenizer(messages[-1]["content"][0]["text"])["input_ids"]
        found = [place for place in range(len(ids)) if ids[place : place + len(answer)] == answer]
        labels = made["input_ids"].clone()
        labels[:, : found[0] if found else len(ids)] = IGNORED
        return {**made, "labels": labels}


@faulty("answers", link="https://github.com/NVIDIA-NeMo/Megatron-Bridge/pull/4169")
def answer_found_by_its_tokens() -> Pipeline:
    """The answer is looked for in the ids by its own tokens, and all that follows is trained on.

    Effect: where the question contains the answer, the rest of the question is trained on.
    """
    return pipeline(_Searching(FAMILY))


class _Unended(Collator):
    """Leaves the end of each turn out."""

    def one(self, messages: Messages) -> dict[str, Any]:
        made = super().one(messages)
        end = self.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
        return {**made, "labels": made["labels"].masked_fill(made["labels"] == end, IGNORED)}


@faulty("answers", link="https://github.com/huggingface/transformers/issues/23530")
def end_of_turn_masked() -> Pipeline:
    """The token that ends the assistant's turn has no label.

    Effect: the model answers and does not stop.
    """
    return pipeline(_Unended(FAMILY))


class _FromFirst(Collator):
    """Masks the first prompt and nothing after it."""

    def kept(self, full: str, messages: Messages, offsets: Sequence[tuple[int, int]]) -> list[bool]:
        mask = super().kept(full, messages, offsets)
        first = mask.index(True)
        last = len(mask) - mask[::-1].index(True)
        return [first <= place < last for place in range(len(mask))]


@faulty("answers", link="https://github.com/NVIDIA-NeMo/Megatron-Bridge/pull/4169")
def later_questions_trained() -> Pipeline:
    """All that follows the first prompt is trained on, the user's later turns too.

    Effect: the model goes on after its answer and asks the next question itself.
    """
    return pipeline(_FromFirst(FAMILY))


class _Sorted(Collator):
    """Sorts the samples by length, and their labels not."""

    def labelled(self, made: Sequence[Made]) -> dict[str, Tensor]:
        sizes = sorted(range(len(made)), key=lambda place: -made[place]["input_ids"].shape[1])
        batch = super().labelled([made[place] for place in sizes])
        return {**batch, "labels": super().labelled(made)["labels"]}


@faulty("kept", "alone", "order")
def labels_in_another_order() -> Pipeline:
    """Samples are sorted by length for padding, and labels are padded in the order in which they came.

    Effect: samples are trained on the labels of others.
    """
    return pipeline(_Sorted(FAMILY))


class _Short(Collator):
    """Cuts everything at a length, from the right."""

    def one(self, messages: Messages) -> dict[str, Any]:
        made = super().one(messages)
        per_token = ("input_ids", "labels", "attention_mask", "mm_token_type_ids")
        return {**made, **{name: made[name][:, :30] for name in per_token if name in made}}


@faulty("kept", link="https://github.com/OpenBMB/MiniCPM-V/issues/662")
def answers_cut_off() -> Pipeline:
    """Samples are cut at a length that leaves the prompt and nothing of the answer.

    Effect: long samples are read and teach nothing; a batch of them has a loss of NaN.
    """
    return pipeline(_Short(FAMILY))


class _LeftLabels(Collator):
    """Masks the prompt's length from the first column on, wherever the padding is."""

    def labelled(self, made: Sequence[Made]) -> dict[str, Tensor]:
        batch = super().labelled(made)
        labels = _all_but_padding(batch, self)
        for row, one in enumerate(made):
            prompt = int((one["labels"][0] >= 0).long().argmax())
            labels[row, :prompt] = IGNORED
        return {**batch, "labels": labels}


@faulty("side", link="https://github.com/QwenLM/Qwen3-ASR/pull/212")
def prompt_masked_from_the_first_column() -> Pipeline:
    """As many columns as the prompt has tokens are masked, also where padding stands in front.

    Effect: with padding on the left, shorter samples of a batch are trained on their prompts.
    """
    return pipeline(_LeftLabels(FAMILY))


class _EverythingPacked(Packer):
    """Packs samples with a label on every token of text."""

    def one(self, messages: Messages) -> dict[str, Any]:
        made = super().one(messages)
        plain = (
            made["mm_token_type_ids"] == 0 if "mm_token_type_ids" in made else torch.ones_like(made["labels"]).bool()
        )
        return {**made, "labels": made["input_ids"].masked_fill(~plain, IGNORED)}


@faulty("boundaries", "micro", "answers", link="https://github.com/meta-pytorch/torchtune/issues/1177")
def first_token_of_a_pack_trained() -> Pipeline:
    """In a pack the first token of each sample has a label.

    Effect: the end of one sample is trained to predict the beginning of an unrelated one.
    """
    return pipeline(_EverythingPacked(FAMILY, model()))
