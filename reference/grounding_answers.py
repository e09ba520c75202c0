"""Boxes and their descriptions, read from what a model wrote, in each of the forms that models are trained to write.

JSON (`[{"bbox_2d": [1, 2, 3, 4], "label": "a cup"}]`, other keys, fenced or with words around it), the same without
quotes, a box alone (`[1, 2, 3, 4]`), and tags (`<|object_ref_start|>a cup<|object_ref_end|>` with
`<|box_start|>(1,2),(3,4)<|box_end|>`, and Qwen-VL's `<ref>` and `<box>`). What is returned stands in the text: nothing
is guessed, scaled, clipped or put in order. What looks like a detection and cannot be read makes the answer incomplete,
which is not the same as an answer without objects.
"""

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["BOX_KEYS", "LABEL_KEYS", "Answer", "Detection", "parse_answer"]

BOX_KEYS = ("bbox_2d", "bbox", "box")
LABEL_KEYS = ("label", "description", "desc")
"""Keys in use; `desc` is what `description` was called before."""

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_FOUR = rf"\[\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\]"
_UNQUOTED = re.compile(
    rf"\{{\s*(?:{'|'.join(BOX_KEYS)})\s*:\s*{_FOUR}\s*(?:,\s*(?:{'|'.join(LABEL_KEYS)})\s*:([^{{}}]*))?\}}"
)
_CORNERS = re.compile(rf"\(\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\)\s*,\s*\(\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\)")
_TAG = re.compile(r"<\|?/?(object_ref|ref|box)(_start|_end)?\|?>")


@dataclass(frozen=True)
class Detection:
    """One object: what it is called, None where the answer does not say, and its box as the four numbers written."""

    label: str | None
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Answer:
    """What an answer holds. `complete`: it has a known form, and nothing that looks like a box was left unread."""

    detections: tuple[Detection, ...]
    complete: bool


def parse_answer(text: str) -> Answer:
    """All detections of an answer, in their order, duplicates kept. No text is an error.

    `[]` is complete and has no detections. Prose has none and is not complete: no answer of a known form is in it.
    What is cut in the middle of a box has the detections before it, and is not complete.
    """
    found = list(_tagged(text) if _TAG.search(text) else _written(text))
    detections = tuple(item for item in found if isinstance(item, Detection))
    return Answer(detections, bool(found) and all(item is not None for item in found))


Found = Detection | bool | None
"""A detection; True for a part of a known form without one; None for a part that cannot be read."""


def _written(text: str) -> Iterator[Found]:
    """What stands in brackets, from left to right."""
    decoder, place = json.JSONDecoder(), 0
    while (start := _next_bracket(text, place)) is not None:
        try:
            value, place = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):  # a loop of a model that writes brackets only is no JSON either
            match = _UNQUOTED.match(text, start)
            if match:
                place = match.end()
                yield _detection(_stripped(match[5]), match.groups()[:4])
            else:
                place = start + 1
                yield None if text[start] == "{" or not _closed_list(text, start) else True
        else:
            yield from _of_json(value)


def _next_bracket(text: str, place: int) -> int | None:
    match = re.compile(r"[\[{]").search(text, place)
    return match.start() if match else None


def _closed_list(text: str, start: int) -> bool:
    """Whether a list that is no JSON begins with something in braces, and ends: then these are read one by one."""
    return bool(re.match(r"\[\s*\{.*\}\s*\]", text[start:], re.DOTALL))


def _of_json(value: Any) -> Iterator[Found]:
    if isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
        yield True
        for item in value:
            yield from _of_json(item)
    elif isinstance(value, list) and len(value) == 4 and all(map(_is_number, value)):
        yield Detection(None, _numbers(value))
    elif isinstance(value, list) and all(isinstance(item, list) for item in value):
        for item in value:  # boxes, or lists of objects; what lies deeper is no known form
            if all(isinstance(part, Mapping) for part in item):
                yield from _of_json(item)
            else:
                yield Detection(None, _numbers(item)) if len(item) == 4 and all(map(_is_number, item)) else None
    elif isinstance(value, Mapping):
        yield _of_object(value)


def _of_object(item: Mapping[str, Any]) -> Found:
    box = next((item[key] for key in BOX_KEYS if key in item), None)
    label = next((item[key] for key in LABEL_KEYS if key in item), None)
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return None
    return Detection(label if isinstance(label, str) and label else None, _numbers(box))


def _tagged(text: str) -> Iterator[Found]:
    """Boxes between tags, each with the description before it."""
    label, opened = None, ""
    tags = [*_TAG.finditer(text), None]
    for tag, following in itertools.pairwise(tags):
        assert tag is not None
        inside = text[tag.end() : following.start() if following else len(text)]
        if tag[2] == "_end" or "/" in tag[0]:
            opened = ""
        elif tag[1] == "box":
            opened = "box"
            match = _CORNERS.fullmatch(inside.strip()) if following else None
            yield _detection(label, match.groups()) if match else None
        else:
            opened, label = "ref", _stripped(inside) if following else None
    if opened:
        yield None


def _stripped(text: str | None) -> str | None:
    return (text or "").strip() or None


def _is_number(value: object) -> bool:
    """Whether it is a number that a float holds: a model that repeats a digit writes others."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _detection(label: str | None, numbers: Sequence[str]) -> Detection | None:
    """Of numbers as they are written; None where one of them is too large to be one."""
    box = _numbers(numbers)
    return Detection(label, box) if all(map(math.isfinite, box)) else None


def _numbers(values: Any) -> tuple[float, float, float, float]:
    one, two, three, four = map(float, values)
    return one, two, three, four
