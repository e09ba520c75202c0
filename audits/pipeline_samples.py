"""What a sample says it is: its messages, the texts that the assistant shall learn, and its contents as a digest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

Messages = list[dict[str, Any]]
Render = Callable[..., str]
_SPEAKERS = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}
"""Roles of the ``from``/``value`` notation, and of some templates."""
_LISTS = ("messages", "conversations", "conversation")


def messages(sample: Any) -> Messages | None:
    """The conversation of a sample as a list of ``role`` and ``content``; None where it has none that is known."""
    if not isinstance(sample, Mapping):
        return None
    for name in _LISTS:
        if _is_talk(sample.get(name)):
            return [_message(item) for item in sample[name]]
    parts = [sample.get("prompt"), sample.get("completion")]
    if all(_is_talk(part) for part in parts):
        return [_message(item) for part in parts if part for item in part]
    return None


def _is_talk(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and bool(value)
        and all(isinstance(item, Mapping) and bool({"role", "from"} & set(item)) for item in value)
    )


def _message(item: Mapping[str, Any]) -> dict[str, Any]:
    role = str(item.get("role", item.get("from")))
    return {**item, "role": _SPEAKERS.get(role, role), "content": item.get("content", item.get("value"))}


def answers(sample: Any, render: Render | None = None) -> list[list[str]] | None:
    """The assistant's texts, in order, each in all forms that are right; None where the sample has no messages.

    A template may write more than the message says, an empty thought for example: with ``render(messages, prompt=...)``
    what it writes between the head of an answer and the answer's end is right too.
    """
    talk = messages(sample)
    if talk is None:
        return None
    places = [place for place, item in enumerate(talk) if item["role"] == "assistant"]
    return [_forms(talk, place, render) for place in places]


def _forms(talk: Messages, place: int, render: Render | None) -> list[str]:
    said = text(talk[place]["content"])
    if render is None:
        return [said]
    return list(dict.fromkeys([said, *_with_head(talk, place, said, render), *_in_place(talk, place, render)]))


def _with_head(talk: Messages, place: int, said: str, render: Render) -> Iterator[str]:
    """With what the template writes between the head of an answer that is the last and its text."""
    before, whole = (attempted(render, talk[:place], prompt=True), attempted(render, talk[: place + 1]))
    if said.strip() and before and whole.startswith(before):
        head, found, _ = whole.removeprefix(before).partition(said.strip())
        yield from [f"{head}{said}"] if found else []


_MARK = "assaymark"


def _in_place(talk: Messages, place: int, render: Render) -> Iterator[str]:
    """What the template writes of an answer among the others: with its calls of tools, without its thoughts."""
    content: Any = _MARK
    if not isinstance(talk[place]["content"], str) and talk[place]["content"] is not None:
        content = [{"type": "text", "text": _MARK}]
    marked = [*talk[:place], {"role": talk[place]["role"], "content": content}, *talk[place + 1 :]]
    whole = attempted(render, talk)
    before, found, after = attempted(render, marked).partition(_MARK)
    for rest in (after, after.lstrip()) if found else ():  # a template may write a blank before the end of a turn
        if len(before) + len(rest) < len(whole) and whole.startswith(before) and whole.endswith(rest):
            yield whole[len(before) : len(whole) - len(rest)]


def attempted(render: Render, talk: Messages, *, prompt: bool = False) -> str:
    """A conversation by the chat template; empty where that refuses it."""
    try:
        return render(talk, prompt=prompt)
    except Exception:  # noqa: BLE001 - a foreign template may refuse a part of a conversation
        return ""


def text(content: Any) -> str:
    """The text of a message's content: a string, or the text parts of a list."""
    if isinstance(content, str):
        return content
    if isinstance(content, (list, tuple)):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
    return ""


def pictures(sample: Any) -> list[list[int]]:
    """Width and height of each image of a sample in reading order, turned as its camera says; none where unknown."""
    sizes = [_size(item) for item in held(sample)]
    return [size for size in sizes if size] if all(sizes) else []


def held(sample: Any) -> list[Any]:
    """What a sample has as images, in reading order."""
    if not isinstance(sample, Mapping):
        return []
    talk = messages(sample) or []
    parts = [part for item in talk if isinstance(item["content"], (list, tuple)) for part in item["content"]]
    found = [part.get("image") for part in parts if isinstance(part, Mapping) and part.get("type") == "image"]
    if not found or any(not hasattr(item, "getexif") for item in found):
        given = sample.get("images", sample.get("image"))
        found = list(given) if isinstance(given, (list, tuple)) else [given]
    return found


SIDEWAYS = (5, 6, 7, 8)
"""Values of the tag ``Orientation`` (274) of an image that is stored lying on its side."""


def _size(image: Any) -> list[int]:
    if not hasattr(image, "getexif"):
        return []
    wide, tall = image.size
    return [tall, wide] if image.getexif().get(274) in SIDEWAYS else [wide, tall]


def digest(value: Any) -> str:
    """A hash of what a sample holds: numbers, texts, tensors, arrays, images, in mappings, lists and objects."""
    found = hashlib.sha256()
    for piece in _pieces(value, 0):
        found.update(piece)
        found.update(b"\x1f")
    return found.hexdigest()


def _pieces(value: Any, depth: int) -> Iterator[bytes]:
    yield type(value).__name__.encode()
    if depth > 12:
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield repr(key).encode()
            yield from _pieces(item, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _pieces(item, depth + 1)
    elif value is None or isinstance(value, (str, bytes, bool, int, float)):
        yield repr(value).encode()
    else:
        yield from _of_object(value, depth)


def _of_object(value: Any, depth: int) -> Iterator[bytes]:
    """Arrays, tensors and images by their bytes; other objects by their attributes."""
    if isinstance(value, torch.Tensor):
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    elif callable(getattr(value, "tobytes", None)):
        yield repr(getattr(value, "shape", getattr(value, "size", ""))).encode()
        yield value.tobytes()
    elif hasattr(value, "__dict__"):
        yield from _pieces({name: item for name, item in vars(value).items() if not name.startswith("_")}, depth + 1)
