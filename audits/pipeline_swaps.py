"""Samples with one thing changed, so that what depends on it can be seen: a picture, all pictures, an answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from assay.audits.pipeline_samples import held, messages, text


def inverted(sample: Any, number: int, *, corner: bool = False) -> Any:
    """A sample whose image of a number, from 1 on, is its negative, wherever the sample holds it.

    With ``corner`` its upper left quarter alone is. None where it has no such image in 8 bits, or another that is the
    same.
    """
    found = held(sample)
    if number > len(found) or not all(hasattr(item, "getexif") and item.mode in {"L", "RGB"} for item in found):
        return None
    wanted = found[number - 1]
    same = [item for item in found if _alike(item, wanted)]
    if len(same) > 1:
        return None
    box = (0, 0, wanted.width // 2, wanted.height // 2) if corner else (0, 0, wanted.width, wanted.height)
    other = wanted.copy()
    other.paste(wanted.crop(box).point(lambda value: 255 - value), box)
    return _replaced(sample, wanted, other)


def _alike(one: Any, other: Any) -> bool:
    return one is other or (one.size == other.size and one.mode == other.mode and one.tobytes() == other.tobytes())


def _replaced(value: Any, old: Any, new: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _replaced(item, old, new) for key, item in value.items()}
    if type(value) in {list, tuple}:
        return type(value)(_replaced(item, old, new) for item in value)
    return new if hasattr(value, "getexif") and _alike(value, old) else value


def canvases(sample: Any, colour: Sequence[int]) -> list[Any]:
    """The pictures of a sample, each of its size and of one colour; none where one of them is no picture."""
    found = held(sample)
    return (
        [_canvas(item, colour) for item in found] if found and all(hasattr(item, "getexif") for item in found) else []
    )


def _canvas(picture: Any, colour: Sequence[int]) -> Any:
    """Of one colour; of two, and a 0 or 1, from the first at the top or at the left to the second."""
    import numpy as np
    from PIL import Image

    first, last = np.array([colour[:3], colour[3:6] or colour[:3]], dtype=np.float64)
    wide, tall = picture.size
    across = (np.arange(tall)[:, None] / tall, np.arange(wide)[None] / wide)[colour[6] if colour[6:] else 0]
    shades = first + np.broadcast_to(across, (tall, wide))[..., None] * (last - first)
    return Image.fromarray(shades.round().astype(np.uint8))


def repainted(sample: Any, colour: Sequence[int]) -> Any:
    """A sample all of whose pictures are of one colour; None where it has none that could be."""
    if not canvases(sample, colour):
        return None
    for picture in held(sample):
        sample = _replaced(sample, picture, _canvas(picture, colour))
    return sample


_KEPT = re.compile(r"<[^<>\s]{1,40}>|[^\W\d_]|\d")


def other_words(said: str) -> str:
    """A text of the same length with other letters and digits; what stands between angle brackets stays."""
    return _KEPT.sub(lambda match: match[0] if len(match[0]) > 1 else _next(match[0]), said)


def _next(letter: str) -> str:
    for first, count in (("a", 26), ("A", 26), ("0", 10)):
        place = ord(letter) - ord(first)
        if 0 <= place < count:
            return chr(ord(first) + (place + 1) % count)
    return letter


def reworded(sample: Any, number: int) -> Any:
    """A sample whose answer of a number, from 1 on, has other words, also where it is told beside the messages.

    None where it has no such answer, or one without letters.
    """
    talk = messages(sample) or []
    said = [text(item["content"]) for item in talk if item["role"] == "assistant"]
    if number > len(said) or other_words(said[number - 1]) == said[number - 1]:
        return None
    asked = {text(item["content"]) for item in talk if item["role"] != "assistant"}
    old = said[number - 1]
    lists = {id(value) for value in sample.values() if isinstance(value, (list, tuple))}
    seen = [0]
    made = {key: _renamed(value, number, seen) if id(value) in lists else value for key, value in sample.items()}
    if said.count(old) == 1 and old not in asked:
        made = {key: other_words(old) if value == old else value for key, value in made.items() if not _odd(value)} | {
            key: value for key, value in made.items() if _odd(value)
        }
    return made


def _odd(value: Any) -> bool:
    """Whether a value is no text."""
    return not isinstance(value, str)


_SPEAKS = {"assistant", "gpt", "model", "bot"}


def _renamed(talk: Any, number: int, seen: list[int]) -> Any:
    """A list of messages with the answer of a number changed, counted over all lists of a sample."""
    if not all(isinstance(item, Mapping) for item in talk):
        return talk
    out = []
    for item in talk:
        mine = item.get("role", item.get("from")) in _SPEAKS
        seen[0] += mine
        names = ("content", "value")
        changed = {name: _with(item[name], other_words) for name in names if name in item}
        out.append({**item, **changed} if mine and seen[0] == number else item)
    return type(talk)(out)


def _with(content: Any, change: Callable[[str], str]) -> Any:
    if isinstance(content, str):
        return change(content)
    if isinstance(content, (list, tuple)):
        parts = [
            {**part, "text": change(part["text"])} if isinstance(part.get("text"), str) else part for part in content
        ]
        return type(content)(parts)
    return content
