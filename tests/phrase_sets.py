"""Data sets of phrases as people have them, right and wrong."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from assay.audits.components.grounding.samples import made_up


def as_refcoco() -> list[dict[str, Any]]:
    """Several sentences for each target, by records, with an image's number."""
    return [
        {
            "image_id": s.image,
            "sentences": [{"sent": s.phrase, "raw": s.phrase}, {"sent": f"{s.phrase}!"}],
            "bbox": s.boxes[0],
        }
        for s in made_up(1, images=120)
    ]


@dataclass
class Record:
    file_name: str
    expression: str
    boxes: torch.Tensor


class Torch(torch.utils.data.Dataset[Record]):
    """Indexed, with one sentence drawn at random at each access, and boxes as a tensor."""

    def __init__(self) -> None:
        self.made = made_up(2, images=80)

    def __len__(self) -> int:
        return len(self.made)

    def __getitem__(self, place: int) -> Record:
        sample = self.made[place]
        words = random.choice([f"{sample.phrase}", f"the thing that is a {sample.phrase}"])
        return Record(str(sample.image), words, torch.tensor(sample.boxes))


def with_pixels() -> list[dict[str, Any]]:
    """Images as arrays, that are no names: those with the same pixels are the same."""
    return [
        {"image": np.full((2, 2), int(str(s.image)[:6])), "phrase": s.phrase, "bbox": s.boxes[0]}
        for s in made_up(3, 60)
    ]


def few() -> list[dict[str, Any]]:
    return [
        {"image": "a.jpg", "phrase": "cup", "bbox": [1, 2, 3, 4]},
        {"image": "b.jpg", "phrase": "cup", "bbox": [1, 2, 3, 4]},
    ]


def with_negatives() -> list[dict[str, Any]]:
    """Phrases without a target in their image, and a few that annotators wrote carelessly."""
    made = [{"path": s.image, "query": s.phrase, "boxes": list(s.boxes)} for s in made_up(4, images=100)]
    made[3]["query"], made[40]["query"] = "thing", "object"
    return [*made, *({"path": m["path"], "query": f"purple {m['query']}", "boxes": []} for m in made[:50])]


def all_of_a_class() -> list[dict[str, Any]]:
    """Each phrase asks for all targets of its kind at once."""
    boxes: dict[tuple[Any, str], list[Any]] = {}
    for place, s in enumerate(made_up(5, images=100)):
        boxes.setdefault((s.image, ("person", "car", "dog")[place % 3]), []).append(s.boxes[0])
    return [{"image": image, "label": name, "bboxes": several} for (image, name), several in boxes.items()]


def one_class() -> list[dict[str, Any]]:
    """One class for everything, declared as such; some images have several."""
    return [{"image": s.image, "category": "defect", "bbox": s.boxes[0]} for s in made_up(6, images=60)]


def of_the_chest() -> list[dict[str, Any]]:
    """The left of a patient is on the right of the picture."""
    draw, made = random.Random(0), []
    for image in range(200):
        for side, x in (("left", 300), ("right", 20)):
            words = draw.choice(
                (f"opacity in the {side} lower lobe", f"nodule, {side} lung", f"{side} lung nodule {image}")
            )
            made.append({"image": image, "phrase": words, "bbox": [x, 10, x + 50, 60]})
    return made


def class_names_undeclared() -> list[dict[str, Any]]:
    """Wrong as phrases: names of classes, of which an image has several."""
    return [
        {"image": s.image, "phrase": ("person", "car")[i % 7 == 0], "bbox": s.boxes[0]}
        for i, s in enumerate(made_up(7, 90))
    ]


def wrong_key() -> list[dict[str, Any]]:
    """Wrong: the default for a key that is not there."""
    return [
        {"image": s.image, "phrase": {"sent": s.phrase}.get("phrase", "Object."), "bbox": s.boxes[0]}
        for s in made_up(8, 90)
    ]


def a_handful() -> list[dict[str, Any]]:
    """Wrong: too few to speak of shares, and all of them placeholders."""
    return [{"image": place, "phrase": "object", "bbox": [1, 2, 3, 4]} for place in range(4)]


def broken_class() -> list[dict[str, Any]]:
    """Wrong, also as names of classes: an id that has no name."""
    return [{**sample, "category": None if place == 5 else "defect"} for place, sample in enumerate(one_class())]


RIGHT = [
    ("as_refcoco", "dataset"), ("Torch", "dataset"), ("with_pixels", "dataset"), ("few", "dataset"),
    ("with_negatives", "dataset"), ("all_of_a_class", "dataset"), ("one_class", "classes"), ("of_the_chest", "dataset"),
]  # fmt: skip
WRONG = [
    ("one_class", "dataset", {"repeated", "ambiguous"}), ("class_names_undeclared", "dataset", {"ambiguous"}),
    ("a_handful", "dataset", {"generic"}),
    ("wrong_key", "dataset", {"generic", "repeated"}), ("broken_class", "classes", {"filled"}),
]  # fmt: skip
