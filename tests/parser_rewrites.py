"""Parsers of generated answers as people write them, right and wrong, each with the call form that it has."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from assay.reference.grounding_answers import parse_answer

NUMBER = r"-?\d+(?:\.\d+)?"


class Found(NamedTuple):
    label: str | None
    bbox: list[float]


@dataclass
class Parsed:
    objects: list[dict[str, Any]] = field(default_factory=list)
    complete: bool = True


def strict_json(text: str) -> list[dict[str, Any]] | None:
    """The fence is taken off, the list between its brackets is read; anything wrong, and nothing is."""
    match = re.search(r"```(?:json)?\s*(.*?)```", text, re.DOTALL)
    body = match.group(1) if match else text
    start, end = body.find("["), body.rfind("]")
    if start < 0 or end < start:
        return None
    try:
        found = json.loads(body[start : end + 1])
        return [{"box": [float(v) for v in o["bbox_2d"]], "label": o.get("label", "")} for o in found if _four(o)] + [
            {}[o["bbox_2d"]] for o in found if not _four(o)
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _four(item: Any) -> bool:
    return len(item["bbox_2d"]) == 4


def salvaging(text: str) -> Parsed:
    """Every object in braces that is whole, one by one; what is not makes the answer incomplete."""
    found = Parsed(complete="[" in text)
    decoder, place = json.JSONDecoder(), 0
    while (place := text.find("{", place)) >= 0:
        try:
            item, place = decoder.raw_decode(text, place)
        except json.JSONDecodeError:
            place += 1
            found.complete = False
            continue
        box = item.get("bbox_2d") if isinstance(item, dict) else None
        label = next((item[key] for key in ("label", "description", "desc") if key in item), None)
        if isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) for v in box):
            found.objects.append({"bbox": tuple(box), "description": label or "unknown"})
        else:
            found.complete = False
    return found


def salvaging_in_silence(text: str) -> list[tuple[Any, ...]] | None:
    """The same with no place to say what was left out: None where nothing is left."""
    found = salvaging(text)
    pairs = [(item["description"], item["bbox"]) for item in found.objects]
    return pairs if pairs or found.complete else None


def with_an_error(text: str) -> tuple[list[Found], str | None]:
    """By ``ast``, which reads single quotes and commas at the end; the error beside the list."""
    start, end = text.find("["), text.rfind("]") + 1
    try:
        items = ast.literal_eval(text[start:end].replace("null", "None").encode().decode()) if end else None
        return [Found(item.get("label"), [*map(float, _checked(item["bbox_2d"]))]) for item in items], None
    except (ValueError, SyntaxError, KeyError, TypeError, AttributeError) as error:
        return [], f"cannot be read: {error}"


def _checked(box: Any) -> Any:
    if len(box) != 4:
        raise ValueError("four numbers")
    return box


def raising(text: str) -> list[dict[str, Any]]:
    """Pydantic's way: what does not fit is a ValueError."""
    found = salvaging(text)
    if not found.complete:
        raise ValueError("not as it was asked for")
    return found.objects


def by_expressions(text: str) -> list[dict[str, Any]] | None:
    """Tags by one expression: the description is optional, and belongs to the box that follows it."""
    box = rf"<\|box_start\|>\(({NUMBER}),({NUMBER})\),\(({NUMBER}),({NUMBER})\)<\|box_end\|>"
    pattern = re.compile(rf"(?:<\|object_ref_start\|>(.*?)<\|object_ref_end\|>)?{box}", re.DOTALL)
    found = [{"ref": m[1], "box": [float(v) for v in m.groups()[1:]]} for m in pattern.finditer(text)]
    return found if found and text.count("<|box_start|>") == len(found) else None


def every_form(text: str) -> Any:
    """One parser for each form, asked in turn."""
    if "<box>" in text:
        text = text.replace("<ref>", "<|object_ref_start|>").replace("</ref>", "<|object_ref_end|>")
        text = text.replace("<box>", "<|box_start|>").replace("</box>", "<|box_end|>")
    if "<|box_start|>" in text:
        return by_expressions(text)
    four = rf"\[({NUMBER}), ({NUMBER}), ({NUMBER}), ({NUMBER})\]"
    if alone := re.fullmatch(rf"(?s)[^{{]*?{four}[^{{]*", text):
        return [{"box": [float(v) for v in alone.groups()]}]
    if legacy := re.findall(rf"\{{bbox_2d: {four}(?:, desc: ([^}}]*))?\}}", text):
        if text.count("bbox_2d:") != len(legacy):
            return None
        return [{"desc": m[4], "bbox": [float(v) for v in m[:4]]} for m in legacy]
    return salvaging(text)


def _pairs(text: str) -> list[tuple[str | None, list[float]]] | None:
    found = strict_json(text)
    return found if found is None else [(item["label"] or None, item["box"]) for item in found]


def two_lists(text: str) -> dict[str, Any] | None:
    found = _pairs(text)
    return found if found is None else {"boxes": [b for _, b in found], "labels": [name for name, _ in found]}


def two_lists_alone(text: str) -> Any:
    found = two_lists(text)
    return found and (found["boxes"], found["labels"])


class Slotted:
    __slots__ = ("box", "label")

    def __init__(self, label: str | None, box: list[float]) -> None:
        self.label, self.box = label or "<no label>", box


def with_a_status(text: str) -> dict[str, Any]:
    found = _pairs(text)
    return {"status": "error" if found is None else "ok", "detections": [Slotted(*pair) for pair in found or ()]}


def one_box(text: str) -> list[float] | None:
    """The first four numbers in brackets: RefCOCO's usual evaluation."""
    match = re.search(rf"\[\s*({NUMBER})\s*,\s*({NUMBER})\s*,\s*({NUMBER})\s*,\s*({NUMBER})\s*\]", text)
    return [float(value) for value in match.groups()] if match else None


def one_box_of_every_form(text: str) -> list[float] | None:
    found = every_form(text)
    found = found.objects if isinstance(found, Parsed) else found
    return list(next(iter(v for k, v in found[0].items() if "b" in k and "ox" in k))) if found else None


def failing_silently(text: str) -> list[dict[str, Any]]:
    """Wrong: what cannot be read is an empty list."""
    return strict_json(text) or []


def crashing(text: str) -> list[dict[str, Any]]:
    """Wrong: a missing description, or no JSON, is an exception."""
    text = text.replace("```json", "").replace("```", "")
    return [{"label": item["label"], "box": item["bbox_2d"]} for item in json.loads(text)]


def zipped(text: str) -> list[tuple[str | None, list[float]]] | None:
    """Wrong: boxes and descriptions from two expressions."""
    boxes = re.findall(rf"\[\s*({NUMBER}),\s*({NUMBER}),\s*({NUMBER}),\s*({NUMBER})\s*\]", text)
    labels = re.findall(r'"label":\s*"([^"]*)"', text) + [None] * len(boxes)
    return [(label, [float(v) for v in box]) for box, label in zip(boxes, labels, strict=False)] or None


def any_four_numbers(text: str) -> list[float] | None:
    """Wrong: four numbers, wherever they stand."""
    numbers = re.findall(NUMBER, text)
    return [float(v) for v in numbers[:4]] if len(numbers) >= 4 else None


def whole_numbers(text: str) -> Any:
    """Wrong: cut to whole numbers."""
    found = strict_json(text)
    return found and [{**item, "box": [int(v) for v in item["box"]]} for item in found]


def clipped(text: str) -> Any:
    """Wrong: cut to thousandths, whatever the image has."""
    found = _pairs(text)
    return found and [(label, [min(max(v, 0.0), 1000.0) for v in box]) for label, box in found]


def with_an_area(text: str) -> Any:
    """Wrong: boxes without width or height are left out, and nobody learns of it."""
    found = _pairs(text)
    return found and [(label, box) for label, box in found if box[2] > box[0] and box[3] > box[1]]


def named_as_the_one_before(text: str) -> Any:
    """Wrong: a description is kept until there is another."""
    kept, found = None, []
    for label, box in _pairs(text) or ():
        kept = label or kept
        found.append((kept, box))
    return found if _pairs(text) is not None else None


def as_in_the_reference(text: str) -> Any:
    return parse_answer(text)


RIGHT = [
    ("as_in_the_reference", "text"),
    ("strict_json", "json"), ("salvaging", "json-keys"), ("salvaging", "json"), ("salvaging_in_silence", "json-keys"),
    ("with_an_error", "json"), ("raising", "json-raising"), ("by_expressions", "tags"), ("every_form", "text"),
    ("two_lists", "json"), ("two_lists_alone", "json"), ("with_a_status", "json"),
    ("every_form", "raising"), ("one_box", "json-box"), ("one_box_of_every_form", "box"),
]  # fmt: skip
WRONG = [
    ("failing_silently", "json", {"reported"}), ("crashing", "json", {"reported", "raises", "spelled"}),
    ("zipped", "json", {"labels"}), ("any_four_numbers", "json-box", {"invented"}),
    ("whole_numbers", "json", {"numbers"}), ("salvaging", "text", {"formats", "lost"}),
    ("raising", "json", {"reported"}), ("clipped", "json", {"invented"}), ("with_an_area", "json", {"lost"}),
    ("named_as_the_one_before", "json", {"labels"}),
]  # fmt: skip
