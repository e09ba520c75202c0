"""Generated answers: the same detections as models write them, in each form, spelled otherwise, or spoilt."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Box = tuple[float, float, float, float]
Item = tuple[str | None, Box]
"""A description, None where there is none, and a box."""

KEYS: Mapping[str, str] = {"label": "label", "description": "description", "desc": "desc"}
"""Forms in JSON, by the key of the description."""
TAGS = ("object_ref", "ref")
FORMATS = (*KEYS, "unquoted", *TAGS, "bare")
"""``bare``: the four numbers of one box in brackets, without a description."""
SPACES: Mapping[str, tuple[str, str] | None] = {"ordinary": (", ", ": "), "none": (",", ":"), "lines": None}
BROKEN = ("cut", "cut-fenced", "three", "five", "words", "no-box", "null-box")
"""One detection, the last, cannot be read."""
LOOSE = ("unclosed", "cut-label", "single-quotes", "trailing-comma", "object", "json-lines", "two-lists", "beyond")
"""All can be read, by who reads what is no JSON, not the list that was asked for, or boxes that no image has.

``beyond``: a box begins left of the image, one ends beyond a thousand, one has no width.
"""
WORDS: Mapping[str, str] = {
    "nothing": "", "blank": " \n", "prose": "I cannot see such an object in this picture, sorry.",
    "counted": "There are 3 cups, 2 plates, 14 forks and 5 knives on the table, 27 things in all.",
    "braces": "The set is {red, blue} and the list [cup, plate], I think.",
}  # fmt: skip
"""Answers without any detection."""
SPOILT = ("", *BROKEN, *LOOSE, *WORDS)
PLAIN = (
    "red cup", "dog", "man in the blue shirt", "number 7 shirt", "third bird from the left", "tall white building",
    "cup", "a", "zebra crossing", "woman with 2 bags",
)  # fmt: skip
RICH = (
    'the "red" cup', "cup [left], {small}", "back\\slash", "caf\u00e9 \u732b \U0001f408", "two\nlines",
    "row 12, seat 7", "label", "colour: blue; size: 40", "it's one", "bbox_2d", "a, b and c", "\u00bfd\u00f3nde?",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Style:
    """How detections are written: their form, what stands around it, how it is spelled, and what went wrong."""

    written: str = "label"
    fenced: bool = False
    around: bool = False
    spaces: str = "ordinary"
    turned: bool = False
    escaped: bool = False
    pointed: bool = False
    spoilt: str = ""


def items(count: int, seed: int, *, rich: bool, numbers: str, unlabelled: Sequence[int], repeated: bool) -> list[Item]:
    """Detections with corners in order: whole numbers of three digits, decimals, or shares of the image."""
    draw = random.Random(f"answer {seed}")
    names = draw.sample(RICH if rich else PLAIN, len(RICH if rich else PLAIN))
    found = [
        (None if place in unlabelled else names[place % len(names)], _box(draw, numbers)) for place in range(count)
    ]
    return [*found[:-1], found[0]] if repeated and count > 1 else found


def _box(draw: random.Random, numbers: str) -> Box:
    x1, x2, y1, y2 = (*sorted(draw.sample(range(100, 1000), 2)), *sorted(draw.sample(range(100, 1000), 2)))
    scale = {"whole": 1, "decimal": 8, "unit": 1000}[numbers]
    return x1 / scale, y1 / scale, x2 / scale, y2 / scale


def beyond(box: Box, place: int) -> Box:
    """A box that no image has, of one kind or another."""
    x1, y1, x2, y2 = box
    return ((-x1, y1, x2, y2), (x1, y1, x2 + 1000.0, y2 + 1000.0), (x1, y1, x1, y2))[place % 3]


def write(found: Sequence[Item], style: Style) -> str:
    """The text of an answer."""
    if style.spoilt in WORDS:
        return WORDS[style.spoilt]
    text = _json(found, style) if style.written in KEYS else _other(found, style)
    text = _cut(text, found, style) if style.spoilt.startswith("cut") else text
    if style.fenced or style.spoilt == "cut-fenced":
        text = f"```json\n{text}" + ("" if style.spoilt.startswith("cut") else "\n```")
    if style.around:
        text = f"Here is what I can see.\n{text}" + ("" if style.spoilt.startswith("cut") else "\nThat is all of it.")
    return text


def _json(found: Sequence[Item], style: Style) -> str:
    objects = [_object(item, style) for item in found]
    if objects and style.spoilt in BROKEN:
        objects[-1] = _broken(objects[-1], style.spoilt)

    def dumped(value: Any) -> str:
        spaces, indent = SPACES[style.spaces], 2 if style.spaces == "lines" else None
        return json.dumps(value, ensure_ascii=style.escaped, separators=spaces, indent=indent)

    text = dumped(objects)
    if style.spoilt == "unclosed":
        return text[:-1].rstrip()
    if style.spoilt == "trailing-comma":
        return f"{text[:-1].rstrip()},]"
    if style.spoilt == "single-quotes":
        return repr(objects)
    if style.spoilt in {"json-lines", "object"}:
        return "\n".join(map(dumped, objects))
    return "\n\n".join(map(dumped, (objects[:1], objects[1:]))) if style.spoilt == "two-lists" else text


def _object(item: Item, style: Style) -> dict[str, Any]:
    label, box = item
    made: dict[str, Any] = {"bbox_2d": [_number(value, style) for value in box]}
    if label is not None:
        made[KEYS[style.written]] = label
    return dict(reversed(made.items())) if style.turned else made


def _broken(made: dict[str, Any], how: str) -> dict[str, Any]:
    box = made["bbox_2d"]
    changed = {
        "three": box[:3], "five": [*box, box[0]], "words": [*box[:2], "left", box[3]], "null-box": None,
    }  # fmt: skip
    if how == "no-box":
        return {key: value for key, value in made.items() if key != "bbox_2d"}
    return {key: changed.get(how, value) if key == "bbox_2d" else value for key, value in made.items()}


def _number(value: float, style: Style) -> float | int:
    return int(value) if value == int(value) and not style.pointed else value


def _other(found: Sequence[Item], style: Style) -> str:
    if style.written == "unquoted":
        return f"[{', '.join(_unquoted(item, style) for item in found)}]"
    if style.written == "bare":
        return ", ".join(str([_number(value, style) for value in box]) for _, box in found)
    return "".join(_tags(item, style) for item in found)


def _unquoted(item: Item, style: Style) -> str:
    label, box = item
    name = "" if label is None else f", desc: {label}"
    return f"{{bbox_2d: {[_number(value, style) for value in box]}{name}}}"


def _tags(item: Item, style: Style) -> str:
    label, (x1, y1, x2, y2) = item[0], (_number(value, style) for value in item[1])
    corners = f"({x1},{y1}),({x2},{y2})"
    if style.written == "ref":
        return ("" if label is None else f"<ref>{label}</ref>") + f"<box>{corners}</box>"
    name = "" if label is None else f"<|object_ref_start|>{label}<|object_ref_end|>"
    return f"{name}<|box_start|>{corners}<|box_end|>"


def _cut(text: str, found: Sequence[Item], style: Style) -> str:
    """After the first digit of the last number of the last box, or within the last description."""
    label, box = found[-1]
    if style.spoilt == "cut-label":
        return text[: text.rindex(json.dumps(label, ensure_ascii=False)[1:-1]) + 1]
    return text[: text.rindex(str(_number(box[3], style))) + 1]
