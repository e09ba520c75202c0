"""Samples of users' grounding data sets, read by the names that are in use, and a made-up set to compare with."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch

from assay.audits.observe import BadReturn
from assay.audits.terms import Outputs
from assay.reference.grounding_phrases import Sample

IMAGES = ("image_id", "file_name", "image_path", "image_name", "image", "images", "path")
PHRASES = (
    "phrase", "phrases", "expression", "expressions", "sentence", "sentences", "referring_expression", "referring",
    "query", "description", "desc", "caption", "ref", "label", "category", "text",
)  # fmt: skip
BOXES = ("boxes", "bboxes", "box", "bbox", "bbox_2d", "target", "targets")
COLOURS = ("red", "blue", "green", "white", "black", "yellow", "grey", "brown", "striped", "silver")
THINGS = ("cup", "dog", "man", "woman", "chair", "car", "bird", "child", "bicycle", "bag", "horse", "umbrella")
Box = tuple[float, float, float, float]


def read(dataset: Any, limit: int) -> Outputs:
    """The first ``limit`` samples as the bytes of a JSON text, one phrase each. :class:`BadReturn` for what is none."""
    for name in ("train_dataset", "dataset"):
        dataset = getattr(dataset, name, None) or dataset
    if not hasattr(dataset, "__getitem__") and not isinstance(dataset, Iterable):
        message = f"expected a data set, got {type(dataset).__name__}"
        raise BadReturn(message)
    several = dataset if isinstance(dataset, Iterable) else (dataset[place] for place in range(len(dataset)))
    return told([one for sample in islice(several, limit) for one in _samples(sample)])


def told(samples: Iterable[Sample]) -> Outputs:
    """Samples as a tensor."""
    rows = [[str(sample.image), sample.phrase, list(map(list, sample.boxes))] for sample in samples]
    return {"samples": torch.tensor(list(json.dumps(rows).encode()), dtype=torch.uint8)}


def of(values: Outputs) -> list[Sample]:
    """The inverse of :func:`told`."""
    rows = json.loads(bytes(values["samples"].tolist()))
    return [Sample(image, phrase, tuple(map(tuple, boxes))) for image, phrase, boxes in rows]


def _samples(sample: Any) -> Iterator[Sample]:
    fields = sample if isinstance(sample, Mapping) else getattr(sample, "__dict__", None)
    if fields is None:
        message = f"expected samples with names, such as image_id, phrase and bbox, got {type(sample).__name__}"
        raise BadReturn(message)
    phrase, boxes = (_first(fields, names) for names in (PHRASES, BOXES))
    if phrase is KeyError or boxes is KeyError:
        message = (
            f"expected one of {', '.join(PHRASES)} and one of {', '.join(BOXES)}, got {', '.join(map(str, fields))}"
        )
        raise BadReturn(message)
    for text in phrase if isinstance(phrase, list | tuple) else [phrase]:
        yield Sample(_image(_first(fields, IMAGES)), _text(text), tuple(_boxes(boxes)))


def _first(fields: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((fields[name] for name in names if name in fields), KeyError)


def _text(phrase: Any) -> str | None:
    named = phrase.get("sent", phrase.get("raw", phrase)) if isinstance(phrase, Mapping) else phrase
    return None if named is None else str(named)


def _image(image: Any) -> Hashable:
    """A name, a number, or what tells the pixels of one image from those of another."""
    if isinstance(image, list | tuple) and len(image) == 1:
        return _image(image[0])
    if isinstance(image, str | int):
        return image
    pixels = image.numpy() if isinstance(image, torch.Tensor) else image
    octets: Callable[[], bytes] | None = getattr(pixels, "tobytes", None)
    return hashlib.sha256(octets() if octets else repr(pixels).encode()).hexdigest()


def _boxes(boxes: Any) -> Iterator[tuple[float, ...]]:
    given = boxes.tolist() if hasattr(boxes, "tolist") else boxes
    several = given if not given or hasattr(given[0], "__len__") else [given]
    yield from (tuple(float(value) for value in box) for box in several or ())


def made_up(seed: int, images: int = 500) -> list[Sample]:
    """Scenes of two to four things beside each other, each described by colour, kind and, mostly, side."""
    draw = random.Random(f"scenes {seed}")
    return [sample for image in range(images) for sample in _scene(f"{image:06}.jpg", draw)]


def _scene(image: str, draw: random.Random) -> Iterator[Sample]:
    count = draw.randint(2, 4)
    looks = draw.sample([(colour, thing) for colour in COLOURS for thing in THINGS], count)
    for place, (colour, thing) in enumerate(looks):
        left, top = 10 + 600 * place // count + draw.randint(0, 20), draw.randint(5, 200)
        box = (left, top, left + draw.randint(40, 100), top + draw.randint(40, 200))
        where = "left" if place < count / 2 else "right"
        words = draw.choice((f"{colour} {thing} on the {where}", f"{where} {colour} {thing}", f"the {colour} {thing}"))
        yield Sample(image, words, (tuple(map(float, box)),))
