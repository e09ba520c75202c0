"""Pipelines that give lines to another speaker, or tell an answer before its turn."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from assay.audits.components.pipeline.own import IGNORED, Collator
from assay.audits.components.pipeline.wrong import FAMILY, faulty, pipeline
from assay.audits.pipelines import Pipeline

Messages = Sequence[Mapping[str, Any]]


class _Headed(Collator):
    """Labels of who really speaks, in a row whose heads are of the roles that ``name`` gives to each message."""

    def __init__(self, name: Any) -> None:
        super().__init__(FAMILY)
        self._name = name

    def one(self, messages: Messages) -> dict[str, Any]:
        return super().one([{**item, "role": self._name(place, item), "real": item["role"]}
                            for place, item in enumerate(messages)])  # fmt: skip

    def kept(self, full: str, messages: Messages, offsets: Sequence[tuple[int, int]]) -> list[bool]:
        return super().kept(full, [{**item, "role": item["real"]} for item in messages], offsets)


_OTHER = {"user": "assistant", "assistant": "user", "system": "system"}


@faulty("roles")
def speakers_exchanged() -> Pipeline:
    """The user's lines stand under the assistant's head, and the other way round; labels are on the right lines.

    Effect: the model is trained to speak as the user, whose head no prompt of a generation ends with.
    """
    return pipeline(_Headed(lambda _place, item: _OTHER[item["role"]]))


@faulty("roles")
def users_rendered_as_the_assistant() -> Pipeline:
    """A table of roles knows one name only, and all others become the assistant's.

    Effect: nothing tells the model when it is its turn.
    """
    return pipeline(_Headed(lambda _place, item: "assistant" if item["role"] == "user" else item["role"]))


@faulty("roles")
def system_prompt_as_a_turn_of_the_user() -> Pipeline:
    """The system prompt is a turn of the user, for a template that writes one of its own.

    Effect: the model is used with a system prompt that it was never trained with.
    """
    return pipeline(_Headed(lambda _place, item: "user" if item["role"] == "system" else item["role"]))


@faulty("roles")
def roles_by_the_number_of_the_turn() -> Pipeline:
    """Roles are told by whether a message's number is even.

    Effect: a conversation with a system prompt has all its speakers exchanged.
    """
    return pipeline(_Headed(lambda place, _item: ("user", "assistant")[place % 2]))


@faulty("roles")
def roles_of_another_notation() -> Pipeline:
    """The user's role is written as the dataset has it, which the model's template has never seen.

    Effect: the first thing that the model reads in training is a head that no prompt has.
    """
    return pipeline(_Headed(lambda _place, item: {"user": "human"}.get(item["role"], item["role"])))


class _Marked(Collator):
    """Writes rows by another template than that of the processor, which knows the same turns."""

    def __init__(self, change: Any) -> None:
        super().__init__(FAMILY)
        self.told, self._other = self.processor, copy.copy(self.processor)
        self._other.chat_template = change(self.processor.chat_template)

    def one(self, messages: Messages) -> dict[str, Any]:
        self.processor = self._other
        try:
            return super().one(messages)
        finally:
            self.processor = self.told


@faulty("markup")
def pictures_without_their_marks() -> Pipeline:
    """A picture's placeholders stand without the tokens that begin and end a picture.

    Effect: a pretrained model does not know that a picture has begun.
    """
    return pipeline(_Marked(lambda said: said.replace("<|vision_start|>", "").replace("<|vision_end|>", "")))


@faulty("markup")
def blank_line_between_turns_lost() -> Pipeline:
    """Turns follow each other without the line break that the template writes.

    Effect: in use every turn begins with a token that training never had there.
    """
    return pipeline(_Marked(lambda said: said.replace("<|im_end|>\n", "<|im_end|>")))


class _Replacing(Collator):
    """Exchanges one token for another, in ids and labels."""

    def one(self, messages: Messages) -> dict[str, Any]:
        made = super().one(messages)
        start, other = map(self.processor.tokenizer.convert_tokens_to_ids, ("<|im_start|>", "<|endoftext|>"))
        return {**made, "input_ids": made["input_ids"].masked_fill(made["input_ids"] == start, other)}


@faulty("markup")
def beginnings_of_turns_by_another_token() -> Pipeline:
    """Turns begin with the token of another family's template.

    Effect: texts, labels and lengths are right, and no head is the one that prompts have.
    """
    return pipeline(_Replacing(FAMILY))


class _Hinting(Collator):
    """Writes more into the first question of a conversation, of which it knows all."""

    def __init__(self, hint: Any) -> None:
        super().__init__(FAMILY)
        self._hint = hint

    def one(self, messages: Messages) -> dict[str, Any]:
        first = next(place for place, item in enumerate(messages) if item["role"] == "user")
        said = [part["text"] for item in messages if item["role"] == "assistant" for part in item["content"]]
        more = {"type": "text", "text": self._hint(said)}
        return super().one([{**item, "content": [*item["content"], more]} if place == first else item
                            for place, item in enumerate(messages)])  # fmt: skip


@faulty("foretold")
def answer_in_its_own_prompt() -> Pipeline:
    """A field of the dataset is appended to the question as a hint, and holds the answer.

    Effect: the model learns to copy, and needs no picture for it.
    """
    return pipeline(_Hinting(lambda said: f" (hint: {said[0]})"))


@faulty("foretold")
def last_answer_in_the_first_prompt() -> Pipeline:
    """The question holds a summary of the conversation that follows.

    Effect: what is to be found in later turns has been read in the first one.
    """
    return pipeline(_Hinting(lambda said: f" [{said[-1].upper()}]"))


@faulty("foretold")
def first_letter_of_the_answer_in_its_prompt() -> Pipeline:
    """The question tells how the answer begins.

    Effect: where answers are letters of choices, all that there is to learn is told.
    """
    return pipeline(_Hinting(lambda said: f" ({said[0][:1]}...)"))


class _Twice(Collator):
    """Puts the row of the answers in front of the whole, untrained."""

    def one(self, messages: Messages) -> dict[str, Any]:
        made = super().one(messages)
        kept = made["labels"][0] != IGNORED
        head = made["input_ids"][:, kept]
        front = {
            "input_ids": head, "labels": torch.full_like(head, IGNORED), "attention_mask": torch.ones_like(head),
            "mm_token_type_ids": torch.zeros_like(head),
        }  # fmt: skip
        return {
            name: torch.cat([front[name], value], dim=1) if name in front else value for name, value in made.items()
        }


@faulty("foretold")
def targets_before_the_row() -> Pipeline:
    """The targets are joined in front of the row too, as an encoder would have them.

    Effect: each answer is seen by the tokens that are trained to say it.
    """
    return pipeline(_Twice(FAMILY))


class _Pairs(Collator):
    """Names the pictures of a sample by its answer, as files are."""

    def one(self, messages: Messages) -> dict[str, Any]:
        names = itertools.cycle([part["text"] for item in messages if item["role"] == "assistant"
                                 for part in item["content"]])  # fmt: skip
        return super().one([{**item, "content": [one for part in item["content"] for one in self._named(part, names)]}
                            for item in messages])  # fmt: skip

    def _named(self, part: Mapping[str, Any], names: Any) -> list[Mapping[str, Any]]:
        return [part, {"type": "text", "text": f"[{next(names)}.png]"}] if part["type"] == "image" else [part]


@faulty("foretold")
def answer_in_the_name_of_a_file() -> Pipeline:
    """The name of a picture's file is written beside it, and is the class that is asked for.

    Effect: the model reads the answer off the name, and is blind without it.
    """
    return pipeline(_Pairs(FAMILY))
