"""Which texts of a sample's messages its row must hold, and what each of them would take of a row's length."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from assay.audits.pipeline_samples import Messages, Render, attempted, messages, text

Tokens = Callable[[str], list[int]]
Decode = Callable[[list[int]], str]
_MARKS = re.compile(r"<[^<>\s]{1,40}>|\[IMG\]")
"""What stands for something else in a text: marks of images, of boxes, of thoughts. A collator may replace them."""
_PICTURED = ("image", "image_url")


@dataclass(frozen=True, kw_only=True)
class Told:
    """One message: its ``role``, its ``texts`` between marks as :func:`plain` text, and its number of ``pictures``.

    ``tokens`` is what it takes of a row by the chat template, images not counted.
    """

    role: str
    texts: tuple[str, ...]
    pictures: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Talk:
    """A conversation. ``head`` is how it begins by the chat template, up to its first picture; empty without one."""

    messages: tuple[Told, ...]
    head: str


def plain(said: str) -> str:
    """A text without blanks and capitals, which templates and tokenizers may change."""
    return "".join(said.split()).casefold()


def told(sample: Any, render: Render, tokens: Tokens, decode: Decode) -> Talk | None:
    """The messages of a sample that its row must hold; None where it has none that is known.

    Of what the chat template writes only: it may leave out a system prompt or thoughts of earlier turns. Where there is
    no template, users' and assistants' messages. What stands after the last answer, or answers nothing, is not asked.
    """
    talk = messages(sample)
    if talk is None:
        return None
    talk = _answered(talk)
    rendered = [attempted(render, talk[: place + 1]) for place in range(len(talk))]
    whole = rendered[-1] if rendered else ""
    texts = _written(talk, plain(whole))
    sizes = [0, *(len(tokens(one)) for one in rendered)]
    return Talk(
        head=_common(plain(whole), plain(attempted(render, [_blind(item) for item in talk]))),
        messages=tuple(
            Told(
                role=item["role"],
                texts=tuple(filter(None, (plain(decode(tokens(part))) for part in texts[place]))),
                pictures=len(_pictures(item["content"])),
                tokens=max(len(tokens(text(item["content"]))), sizes[place + 1] - sizes[place]),
            )
            for place, item in enumerate(talk)
        ),
    )


def _written(talk: Messages, whole: str) -> list[list[str]]:
    """The parts of each message that a rendering holds."""
    parts = [(place, part) for place, item in enumerate(talk) for part in _parts(item)]
    kept: Sequence[int] = matched(whole, [plain(part) for _, part in parts])
    if not whole:
        kept = [number for number, (place, _) in enumerate(parts) if talk[place]["role"] in {"user", "assistant"}]
    return [[parts[number][1] for number in kept if parts[number][0] == place] for place in range(len(talk))]


def _answered(talk: Messages) -> Messages:
    """Without a greeting before anybody asked, and what follows the last answer."""
    roles = [item["role"] for item in talk]
    last = len(roles) - roles[::-1].index("assistant") if "assistant" in roles else 0
    first = roles.index("user") if "user" in roles else last
    return [item for place, item in enumerate(talk[:last]) if place >= first or item["role"] != "assistant"]


def _parts(item: dict[str, Any]) -> list[str]:
    content = item["content"]
    several = [content] if isinstance(content, str) else [text([part]) for part in content or ()]
    return [part for said in several for part in _MARKS.split(said) if plain(part)]


def _pictures(content: Any) -> list[Any]:
    parts = content if isinstance(content, (list, tuple)) else ()
    return [part for part in parts if isinstance(part, dict) and part.get("type") in _PICTURED]


def _blind(item: dict[str, Any]) -> dict[str, Any]:
    """A message without its pictures."""
    content = item["content"]
    if not _pictures(content):
        return item
    return {**item, "content": [part for part in content if not any(part is one for one in _pictures(content))]}


def _common(one: str, other: str) -> str:
    """How two texts begin alike; nothing where they are the same."""
    place = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
    return one[:place]


def matched(row: str, texts: Sequence[str]) -> tuple[int, ...]:
    """The most of some texts that stand in a row in their order, one after another, by their numbers."""
    best: list[tuple[int, tuple[int, ...]]] = [(0, ())]  # of so many matched, the earliest end
    for number, said in enumerate(texts):
        longer = [(row.find(said, end), numbers) for end, numbers in best]
        for count in range(len(best) - 1, -1, -1):
            at, numbers = longer[count]
            if at < 0:
                continue
            found = at + len(said), (*numbers, number)
            if count + 1 == len(best):
                best.append(found)
            elif found[0] < best[count + 1][0]:
                best[count + 1] = found
    return best[-1][1]
