"""What a chat template writes before a message of each role, by which a row tells who speaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from assay.audits.pipeline_talks import plain

Attempt = Callable[..., str]
"""A conversation by the chat template; empty where that refuses it."""
_MARKS = ("assayfirst", "assaysecond", "assaythird")


def heads(render: Attempt) -> dict[str, str]:
    """By role, what stands right before its text, and before no other role's; nothing where they cannot be told apart.

    Of a role that the template writes as another one, or not at all, there is none.
    """
    turns = _gaps(render, ("user", "assistant", "user"))
    if len(turns) < 3:
        return {}
    asked, said, again = turns
    shared = _common(said, again)
    found = {"user": _common_end(asked, again.removeprefix(shared)), "assistant": said.removeprefix(shared)}
    if not all(found.values()) or found["user"].endswith(found["assistant"]) or said.endswith(found["user"]):
        return {}
    ruled = _gaps(render, ("system", "user", "assistant"))
    if len(ruled) == 3 and not _ends(ruled[0], found.values()) and _ends(ruled[1], [found["user"]]):
        first = _common(ruled[0], asked)
        found |= {"system": ruled[0].removeprefix(first)} if ruled[0] != first else {}
    return found


def _ends(gap: str, known: Any) -> bool:
    return any(gap.endswith(head) for head in known)


def _common(one: str, other: str) -> str:
    """How two texts begin alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return one[: next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))]


def _common_end(one: str, other: str) -> str:
    return _common(one[::-1], other[::-1])[::-1]


def _gaps(render: Attempt, roles: Sequence[str]) -> list[str]:
    """The plain text before each message of a conversation, from the one before it on."""
    for wrap in (lambda said: said, lambda said: [{"type": "text", "text": said}]):
        talk = [{"role": role, "content": wrap(mark)} for role, mark in zip(roles, _MARKS, strict=True)]
        found = list(_before(plain(render(talk)), _MARKS))
        if found:
            return found
    return []


def _before(whole: str, marks: Sequence[str]) -> Iterator[str]:
    if not all(whole.count(mark) == 1 for mark in marks):
        return
    for mark in marks:
        before, _, whole = whole.partition(mark)
        yield before


def frames(render: Attempt, placeholders: Sequence[str]) -> tuple[str, ...]:
    """What the template writes of a picture, but for its placeholder."""
    text = {"type": "text", "text": _MARKS[0]}
    blind = plain(render([{"role": "user", "content": [text]}]))
    seeing = plain(render([{"role": "user", "content": [{"type": "image"}, text]}]))
    head, found, tail = blind.partition(_MARKS[0])
    if not found or not seeing.startswith(head) or not seeing.endswith(f"{found}{tail}"):
        return ()
    frame = seeing[len(head) : len(seeing) - len(found) - len(tail)]
    for token in placeholders:
        frame = frame.replace(plain(token), "")
    return (frame,) if frame else ()
