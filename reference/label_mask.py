"""Which tokens of a conversation are trained on: from messages and a chat template to ids and labels.

Characters are found first, by rendering the beginnings of the conversation with its own template: what a model is asked
to write starts where the rendering of all earlier messages with a generation prompt ends, and ends with its turn's
terminator. The whole text is tokenised once, and a token is trained where its characters are. Nothing is ever searched
for by tokens, and no length of a piece tokenised by itself is used: byte pairs merge otherwise in context.

Letters: S tokens. A span is a pair (first, one past the last) of characters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from assay.reference.arguments import one_of

IGNORE = -100
"""The label of a token that is not trained on, PyTorch's own."""
PROBE = "\u2042probe\u2042"
"""A text that no template holds, put in a message's place to find where its content starts."""

Message = Mapping[str, Any]
Span = tuple[int, int]
Train = Literal["assistant", "last", "all"]
Straddling = Literal["error", "train", "ignore"]


class ChatTokenizer(Protocol):
    """What is used of a fast tokenizer, or of a processor, of transformers."""

    def apply_chat_template(self, conversation: Any, **arguments: Any) -> Any:
        """The conversation as text, with ``tokenize=False``."""

    def __call__(self, text: Any, **arguments: Any) -> Any:
        """``input_ids`` and ``offset_mapping`` of a text, with ``return_offsets_mapping=True``."""


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """``input_ids`` and ``labels`` [S] int64; the rendering, and the spans of it that are trained on."""

    input_ids: Tensor
    labels: Tensor
    text: str
    spans: tuple[Span, ...]

    @property
    def trained(self) -> int:
        """How many tokens are trained on."""
        return int((self.labels != IGNORE).sum())

    @property
    def share(self) -> float:
        """The share of trained tokens; 0 without tokens."""
        return self.trained / max(1, self.labels.numel())


@dataclass(frozen=True, kw_only=True)
class Template:
    """A chat template with its messages: what they are rendered to, whole and in part.

    ``arguments`` are further keyword arguments of ``apply_chat_template`` (``tools``, ``enable_thinking``).
    """

    messages: Sequence[Message]
    tokenizer: ChatTokenizer
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def render(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        """Some messages as text; ``prompt`` adds what the model is to continue."""
        text: str = self.tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=prompt, **self.arguments
        )
        return text

    def content_start(self, text: str, place: int) -> int:
        """Where the content of ``messages[place]`` starts in the whole rendering."""
        probed = [*self.messages[:place], _probed(self.messages[place]), *self.messages[place + 1 :]]
        before, found, _ = self.render(probed).partition(PROBE)
        if not found:
            raise ValueError(f"the chat template does not render the content of messages[{place}]")
        return self._checked(text, before, f"what comes before the content of messages[{place}]")

    def answer_start(self, text: str, place: int) -> int:
        """Where the model's own text of ``messages[place]`` starts."""
        if place:
            prompt = self.render(self.messages[:place], prompt=True)
            return self._checked(text, prompt, f"messages[:{place}] with a generation prompt")
        asked = [{"role": "user", "content": PROBE}]
        prompt = self.render(asked, prompt=True).removeprefix(self.render(asked))
        content = self.content_start(text, place)
        found = text.rfind(prompt, 0, content)
        if not prompt or found < 0:
            raise ValueError("messages[0]: the chat template opens the turn with something else than a prompt")
        return found + len(prompt)

    def answer_stop(self, text: str, place: int, start: int, end_of_turn: str) -> int:
        """Where it ends, its terminator included. What follows the terminator is not the model's."""
        last = place + 1 == len(self.messages)
        limit = len(text) if last else self.content_start(text, place + 1)
        found = text.rfind(end_of_turn, start, limit)
        if found < 0:
            raise ValueError(f"messages[{place}]: the turn is not closed by end_of_turn {end_of_turn!r}")
        stop = found + len(end_of_turn)
        if last and text[stop:].strip():
            raise ValueError(f"messages[{place}]: {text[stop:]!r} follows end_of_turn {end_of_turn!r}")
        return stop

    @staticmethod
    def _checked(text: str, beginning: str, what: str) -> int:
        """The length of a rendering that must be a beginning of the whole one."""
        if not text.startswith(beginning):
            pairs = zip(text, beginning, strict=False)
            at = next((i for i, (whole, part) in enumerate(pairs) if whole != part), len(text))
            raise ValueError(
                f"the chat template is not prefix-stable: {what} differs from the whole conversation "
                f"at character {at}: {beginning[at : at + 24]!r} instead of {text[at : at + 24]!r}"
            )
        return len(beginning)


def trained_spans(
    messages: Sequence[Message],
    tokenizer: ChatTokenizer,
    *,
    end_of_turn: str,
    train: Train = "assistant",
    arguments: Mapping[str, Any] | None = None,
) -> tuple[str, tuple[Span, ...]]:
    """The rendering of a conversation, and the spans of it that are trained on.

    ``train``: ``assistant``, every turn of that role; ``last``, the last of them; ``all``, every character.
    ``end_of_turn`` is the terminator that the template writes after a turn; it is trained, what follows is not.

    ValueError where the template is not prefix-stable, with the place; where a turn is not closed; where there is no
    message or no turn of the assistant's.
    """
    if not messages:
        raise ValueError("messages: expected at least one, got none")
    one_of("train", train, get_args(Train))
    if not end_of_turn:
        raise ValueError("end_of_turn: expected the template's terminator, got an empty text")
    template = Template(messages=messages, tokenizer=tokenizer, arguments=arguments or {})
    text = template.render(messages)
    if train == "all":
        return text, ((0, len(text)),)
    places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    if not places:
        raise ValueError(f"messages: none of {len(messages)} is the assistant's, so there is nothing to train on")
    return text, tuple(_answers(template, text, places[-1:] if train == "last" else places, end_of_turn))


def label(
    messages: Sequence[Message],
    tokenizer: ChatTokenizer,
    *,
    end_of_turn: str,
    train: Train = "assistant",
    placeholders: Mapping[str, int] | None = None,
    straddling: Straddling = "error",
    encode: Callable[[str], Mapping[str, Any]] | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Labelled:
    """Ids and labels of one conversation.

    ``placeholders`` are the texts and ids that stand for images, videos and sounds; they are never trained, and
    ``encode`` (a processor with its media) may write more of them than the template did. It returns ``input_ids`` and
    ``offset_mapping`` of a text, of one row or of a batch of one.
    ``straddling`` is what becomes of a token that holds trained and other characters: byte pairs that merge across the
    beginning of an answer.

    ValueError as :func:`trained_spans`, for offsets that do not belong to the text, for a straddling token under
    ``error``, and where no token is left to train on.
    """
    one_of("straddling", straddling, get_args(Straddling))
    text, spans = trained_spans(messages, tokenizer, end_of_turn=end_of_turn, train=train, arguments=arguments)
    encoded = (encode or _plain(tokenizer))(text)
    ids, offsets = _ids(encoded["input_ids"]), _offsets(encoded["offset_mapping"])
    labels = [IGNORE] * len(ids)
    for place, span in enumerate(_aligned(text, ids, offsets, placeholders or {})):
        if span is not None and _is_trained(text, span, spans, straddling):
            labels[place] = ids[place]
    found = Labelled(
        input_ids=torch.tensor(ids, dtype=torch.int64),
        labels=torch.tensor(labels, dtype=torch.int64),
        text=text,
        spans=spans,
    )
    if not found.trained:
        raise ValueError(f"messages: none of {len(ids)} tokens is left to train on")
    return found


def _answers(template: Template, text: str, places: Sequence[int], end_of_turn: str) -> Iterator[Span]:
    for place in places:
        start = template.answer_start(text, place)
        yield start, template.answer_stop(text, place, start, end_of_turn)


def _probed(message: Message) -> dict[str, Any]:
    """The message with another content of the same kind, and without what a template could render before it."""
    content = message.get("content")
    plain = isinstance(content, str) or content is None
    kept = {name: value for name, value in message.items() if name not in {"tool_calls", "reasoning_content"}}
    return {**kept, "content": PROBE if plain else [{"type": "text", "text": PROBE}]}


def _plain(tokenizer: ChatTokenizer) -> Callable[[str], Mapping[str, Any]]:
    return lambda text: tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)


def _ids(values: Any) -> list[int]:
    """The ids of one text: a list or a tensor, flat or a batch of one."""
    rows = values.tolist() if isinstance(values, Tensor) else list(values)
    return rows if not rows or isinstance(rows[0], int) else list(rows[0])


def _offsets(values: Any) -> list[Span]:
    """The offsets of one text, likewise."""
    rows = values.tolist() if isinstance(values, Tensor) else list(values)
    flat = rows if not rows or (len(rows[0]) == 2 and isinstance(rows[0][0], int)) else rows[0]
    return [(int(first), int(last)) for first, last in flat]


def _aligned(
    text: str, ids: Sequence[int], offsets: Sequence[Span], placeholders: Mapping[str, int]
) -> Iterator[Span | None]:
    """The characters of the rendering that each token holds; None for a placeholder.

    Offsets count in the text that was tokenised, in which a placeholder may stand many times for each one here: after
    every run of them the two texts are in step again. What offsets leave out before a token (a space that is trimmed)
    belongs to it.
    """
    runs = _runs(text, tuple(placeholders))
    hidden = set(placeholders.values())
    ahead, done, inside = 0, 0, False
    for token, (first, last) in zip(ids, offsets, strict=True):
        if token in hidden:
            if not inside:
                done = _run_stop(next(runs, None), first - ahead)
                ahead = first - done
            inside, ahead = True, ahead + last - first
            yield None
            continue
        inside = False
        start, stop = min(first - ahead, done), last - ahead
        if not 0 <= start <= stop <= len(text):
            raise ValueError(f"offset_mapping: ({first}, {last}) lies outside the rendering of {len(text)} characters")
        done = max(done, stop)
        yield start, stop
    if text[done:].strip():
        raise ValueError(f"input_ids: the tokens end at character {done} of {len(text)} of the rendering")


def _run_stop(run: Span | None, first: int) -> int:
    """Where a run of placeholders ends in the rendering."""
    if run is None or run[0] != first:
        expected = "none" if run is None else f"one at character {run[0]}"
        raise ValueError(f"input_ids: placeholders at character {first} of the rendering, which has {expected} there")
    return run[1]


def _runs(text: str, placeholders: tuple[str, ...]) -> Iterator[Span]:
    """The spans of the text that consist of nothing but placeholders."""
    at = 0
    while at < len(text):
        stop = at
        while found := next((p for p in placeholders if text.startswith(p, stop)), ""):
            stop += len(found)
        if stop > at:
            yield at, stop
        at = max(stop, at + 1)


def _is_trained(text: str, token: Span, spans: Sequence[Span], straddling: Straddling) -> bool:
    first, last = token
    held = sum(max(0, min(last, stop) - max(first, start)) for start, stop in spans)
    if not held or held == last - first:
        return held > 0
    if straddling == "error":
        raise ValueError(f"a token holds {text[first:last]!r}, of which only a part is trained; say what to do with it")
    return straddling == "train"
