"""Pipelines that train on other conversations than those of their samples, or hide them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from assay.audits.components.pipeline.own import Collator, Talks
from assay.audits.components.pipeline.wrong import FAMILY, faulty, pipeline
from assay.audits.pipelines import Pipeline

Message = Mapping[str, Any]
Messages = Sequence[Message]


class _Changed(Collator):
    """Right, for other messages: those that ``change`` makes of a sample's."""

    def __init__(self, change: Callable[[Messages], Messages]) -> None:
        super().__init__(FAMILY)
        self._change = change

    def one(self, messages: Messages) -> dict[str, Any]:
        return super().one(self._change(messages))


@faulty("messages")
def system_prompt_lost() -> Pipeline:
    """Messages are turned into pairs of a question and an answer, and the system prompt is in no pair.

    Effect: the model is trained without the instructions that it is used with.
    """
    return pipeline(_Changed(lambda messages: [item for item in messages if item["role"] != "system"]))


def _without_middle(messages: Messages) -> Messages:
    """The system prompt, and the first and the last message of what follows."""
    return [item for place, item in enumerate(messages) if item["role"] != "user" or _pictured(item) or place == 0]


def _pictured(message: Message) -> bool:
    return any(part["type"] == "image" for part in message["content"])


@faulty("messages")
def questions_without_a_picture_lost() -> Pipeline:
    """Of the user's turns those with a picture are kept.

    Effect: later answers follow each other without the questions that they answer.
    """
    return pipeline(_Changed(_without_middle))


def _first_words(messages: Messages) -> Messages:
    """Questions as they fit into a column of a table."""
    return [item if item["role"] == "assistant" else {**item, "content": list(map(_short, item["content"]))}
            for item in messages]  # fmt: skip


def _short(part: Message) -> Message:
    return {**part, "text": part["text"][:12]} if part["type"] == "text" else part


@faulty("messages")
def questions_cut() -> Pipeline:
    """Each question is cut to its first characters, whatever the length of its row.

    Effect: answers are trained for questions that nobody can read.
    """
    return pipeline(_Changed(_first_words))


class _Zipped(Talks):
    """Questions and answers in two columns, of which one is off by one row; pictures are in the answers' column."""

    def __getitem__(self, index: Any) -> Any:
        sample, other = super().__getitem__(index), super().__getitem__((index + 1) % len(self))
        asked = next(item for item in other["messages"] if item["role"] == "user")
        words = [part for part in asked["content"] if part["type"] == "text"]
        zipped = [item if item["role"] != "user" else _asking(item, words) for item in sample["messages"]]
        return {**sample, "zipped": zipped}


def _asking(message: Message, words: Sequence[Message]) -> Message:
    return {**message, "content": [*(part for part in message["content"] if part["type"] == "image"), *words]}


class _OfZipped(Collator):
    """Reads the zipped columns."""

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        return self.labelled([self.one(sample["zipped"]) for sample in samples])


@faulty("messages")
def questions_of_the_next_sample() -> Pipeline:
    """Questions and answers are zipped, and one of the two columns starts a row later.

    Effect: every answer is trained for a question that it does not answer; labels and lengths are in order.
    """
    collator = _OfZipped(FAMILY)
    return pipeline(collator, _Zipped(int(collator.processor.image_processor.patch_size)))


def _blind(messages: Messages) -> Messages:
    return [{**item, "content": [part for part in item["content"] if part["type"] != "image"]} for item in messages]


@faulty("messages")
def pictures_lost() -> Pipeline:
    """The parts of a content that are no texts are dropped.

    Effect: the model is trained to answer questions about images that it does not see.
    """
    return pipeline(_Changed(_blind))


def _asked_last(messages: Messages) -> Messages:
    last = max(place for place, item in enumerate(messages) if item["role"] == "user")
    return [*messages[:last], *messages[last + 1 :], messages[last]]


@faulty("messages")
def questions_after_their_answers() -> Pipeline:
    """Turns are sorted by a key that does not keep a question before its answer.

    Effect: the model is trained to answer before it is asked.
    """
    return pipeline(_Changed(_asked_last))


def _exchanged(messages: Messages) -> Messages:
    """With the pictures in the reverse order."""
    seen = [part for item in messages for part in item["content"] if part["type"] == "image"]
    return [{**item, "content": [seen.pop() if part["type"] == "image" else part for part in item["content"]]}
            for item in messages]  # fmt: skip


@faulty("pictures")
def pictures_of_a_sample_exchanged() -> Pipeline:
    """The pictures of a sample are collected from its last message to its first.

    Effect: what is asked about the first picture is answered for the second; grids and counts agree.
    """
    return pipeline(_Changed(_exchanged))


def _first_for_all(messages: Messages) -> Messages:
    seen = [part for item in messages for part in item["content"] if part["type"] == "image"]
    return [{**item, "content": [seen[0] if part["type"] == "image" else part for part in item["content"]]}
            for item in messages]  # fmt: skip


@faulty("pictures")
def first_picture_for_all() -> Pipeline:
    """A variable of the loop over a sample's pictures still holds the first.

    Effect: comparisons are trained on one picture, seen twice.
    """
    return pipeline(_Changed(_first_for_all))


class _Hiding(Collator):
    """Right, but for a mask that is made of the labels."""

    def one(self, messages: Messages) -> dict[str, Any]:
        made = super().one(messages)
        return {**made, "attention_mask": (made["labels"] >= 0).long()}


@faulty("hidden", "positions")
def prompts_hidden() -> Pipeline:
    """What is not trained is taken for padding, and masked.

    Effect: the model is trained to answer without the question and the image.
    """
    return pipeline(_Hiding(FAMILY))
