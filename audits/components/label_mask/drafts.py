"""What wrong labels are made of: a right answer for one conversation, with what a wrong step starts from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from assay.audits.components.label_mask import label_forms, reading
from assay.audits.components.label_mask.labels import Inputs
from assay.audits.terms import Outputs
from assay.reference import label_mask
from assay.reference.label_mask import IGNORE

Labels = list[int]


@dataclass(frozen=True)
class Draft:
    """One conversation of ``inputs``, alone."""

    inputs: Inputs

    @cached_property
    def processor(self) -> Any:
        """Its processor."""
        return self.inputs.processor()

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self.processor.tokenizer

    @cached_property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation as transformers has it."""
        return label_forms.messages(self.inputs, 0)

    @cached_property
    def right(self) -> label_mask.Labelled:
        """The specification's answer."""
        return label_mask.label(
            self.messages, self.processor, end_of_turn=self.inputs.style.end_of_turn, straddling="train",
            train=reading.policy(self.inputs.train),
            placeholders={name: self.token(name) for name in label_forms.PLACEHOLDERS},
            encode=label_forms.encoder(self.inputs, 0, self.processor),
        )  # fmt: skip

    @cached_property
    def ids(self) -> list[int]:
        """The ids of the whole conversation."""
        return list(self.right.input_ids.tolist())

    @cached_property
    def labels(self) -> Labels:
        """The right labels."""
        return list(self.right.labels.tolist())

    @property
    def everything(self) -> bool:
        """Whether every character is asked for: then most wrong steps are not taken."""
        return self.inputs.train == "all"

    @property
    def places(self) -> list[int]:
        """The messages that are the assistant's."""
        return [place for place, message in enumerate(self.messages) if message["role"] == "assistant"]

    def token(self, text: str) -> int:
        """The id of a special token."""
        return int(self.tokenizer.convert_tokens_to_ids(text))

    def encoded(self, text: str) -> list[int]:
        """A text by itself as ids; placeholders stay as they are written."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def rendered(self, count: int, *, prompt: bool = False) -> str:
        """The first messages as text."""
        if not count:
            return self.inputs.style.header if prompt else ""
        text: str = self.processor.apply_chat_template(
            self.messages[:count], tokenize=False, add_generation_prompt=prompt
        )
        return text

    def text(self, place: int) -> str:
        """What a message says."""
        return self.inputs.conversations[0][place].text

    def found(self, wanted: Sequence[int], start: int = 0) -> int:
        """The first place from ``start`` on where some ids stand; -1 where they do not."""
        return find(self.ids, wanted, start)

    def from_place(self, start: int) -> Labels:
        """All ids from a place on as labels, placeholders too."""
        return [IGNORE] * min(start, len(self.ids)) + self.ids[start:]

    def runs(self) -> list[tuple[int, int]]:
        """The trained runs of the right labels: first token, and one past the last."""
        edges = [place for place in range(len(self.labels) + 1) if self._trained(place) != self._trained(place - 1)]
        return list(zip(edges[::2], edges[1::2], strict=True))

    def _trained(self, place: int) -> bool:
        return 0 <= place < len(self.labels) and self.labels[place] != IGNORE


def find(ids: Sequence[int], wanted: Sequence[int], start: int = 0) -> int:
    """The first place from ``start`` on where some ids stand in others; -1 where they do not, or there are none."""
    several = range(start, len(ids) - len(wanted) + 1) if wanted else ()
    return next((place for place in several if list(ids[place : place + len(wanted)]) == list(wanted)), -1)


Made = Labels | tuple[list[int], Labels]
"""Labels, or ids and labels."""


def silently(draft: Draft) -> Made:
    """A conversation without any answer goes through with labels that are all ignored."""
    ids = draft.encoded(draft.rendered(len(draft.messages)))
    return ids, [IGNORE] * len(ids)


def _asked(draft: Draft) -> Made:
    return draft.labels


def each(inputs: Inputs, wrong: Callable[[Draft], Made], untold: Callable[[Draft], Made] | None = None) -> Outputs:
    """A wrong step on each conversation. Where every character is asked for, the right answer, which has no steps.

    ``untold`` is what becomes of a conversation without any answer; without it, that is the specification's error.
    """
    rows = []
    for sample in range(len(inputs.conversations)):
        draft = Draft(inputs.of(sample))
        step = untold if untold and not draft.places else _asked if draft.everything else wrong
        made = step(draft)
        ids, labels = made if isinstance(made, tuple) else (draft.ids, made)
        rows.append({"input_ids": ids, "labels": labels})
    return label_forms.stacked(rows, inputs.side)
