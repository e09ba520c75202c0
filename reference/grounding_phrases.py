"""What phrases of a grounding data set say of their targets: placeholders, repetition, ambiguity, sides, leaks.

A model learns to find what a phrase describes only if the phrase describes it. Where one phrase stands for several
targets of an image, or for all targets of a data set, the best answer is the average box.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

__all__ = ["GENERIC", "Sample", "Summary", "normalised", "side", "summarise", "unfilled"]

GENERIC = frozenset({
    "object", "the object", "an object", "target", "the target", "target object", "the target object", "item",
    "the item", "thing", "the thing", "something", "region", "the region", "referring expression", "phrase",
    "the phrase", "label", "description", "entity", "instance", "the object in the image", "object in the image",
    "the referred object", "the described object", "bounding box", "box",
})  # fmt: skip
"""Phrases that fit every target, without the numbers that tell one from another."""
_UNFILLED = re.compile(
    r"|null|none|nan|n/a|todo|\?+|.*\{[^{}]*\}.*|.*<(?:phrase|expr|expression|ref|object|target|label|caption|desc)>.*"
    r"|.*\[(?:phrase|expr|expression|object|target|label|obj)\].*|.*%s.*",
    re.DOTALL,
)
PARTS = frozenset({
    "hand", "arm", "leg", "foot", "shoe", "eye", "ear", "knee", "wrist", "shoulder", "wing", "paw", "sleeve", "glove",
    "lung", "lobe", "upper", "lower", "middle", "kidney", "breast", "ventricle", "atrium", "hemithorax", "hip", "femur",
    "hander", "handed", "field", "turn", "lane", "click",
})  # fmt: skip
"""What a left one of lies anywhere: parts of a body, whose left is their own, as in a picture of the chest."""
_SIDE = re.compile(rf"\b(left|right)\b(?![- ](?:{'|'.join(sorted(PARTS))})s?\b)")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Sample:
    """A phrase, the image that it is about (what tells images apart), and the boxes (x1, y1, x2, y2) of its targets."""

    image: Hashable
    phrase: str | None
    boxes: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Summary:
    """Samples by their number: `unfilled`, `generic`, `ambiguous` and `leaking` ones; all others are counts.

    `distinct` phrases; the `commonest` one, and how often it stands, `repeats`; samples that share their image with
    another target, `crowded`; of those whose phrase says left or right, `sided`, how many lie there, `on_side`.
    """

    samples: int
    distinct: int
    commonest: str
    repeats: int
    crowded: int
    sided: int
    on_side: int
    unfilled: tuple[int, ...]
    generic: tuple[int, ...]
    ambiguous: tuple[int, ...]
    leaking: tuple[int, ...]


def summarise(samples: Sequence[Sample]) -> Summary:
    """What the phrases of some samples say."""
    words = [normalised(sample.phrase) for sample in samples]
    counts = Counter(words)
    commonest, repeats = counts.most_common(1)[0] if counts else ("", 0)
    crowd, ambiguous = _within_images(samples, words)
    sides = [on_side for place in crowd if (on_side := _lies_there(samples, crowd[place], place)) is not None]
    return Summary(
        samples=len(samples), distinct=len(counts), commonest=commonest, repeats=repeats,
        crowded=len(crowd), sided=len(sides), on_side=sum(sides),
        unfilled=tuple(place for place, sample in enumerate(samples) if unfilled(sample.phrase)),
        generic=tuple(place for place, word in enumerate(words) if _bare(word) in GENERIC),
        ambiguous=ambiguous,
        leaking=tuple(place for place, sample in enumerate(samples) if _tells(sample)),
    )  # fmt: skip


def normalised(phrase: str | None) -> str:
    """In small letters, with single blanks, without punctuation at the end."""
    return " ".join(str(phrase or "").lower().split()).rstrip(".!?,; ")


def unfilled(phrase: str | None) -> bool:
    """Whether it is no phrase: none, empty, or a template whose place was never filled."""
    return phrase is None or bool(_UNFILLED.fullmatch(str(phrase).strip().lower()))


def side(phrase: str | None) -> int:
    """-1 for a phrase that says left, 1 for right, 0 for neither or both; the left of a body is no side."""
    words = set(_SIDE.findall(normalised(phrase)))
    return ("right" in words) - ("left" in words)


def _bare(word: str) -> str:
    """Without the numbers and signs that tell placeholders apart: of `object_12`, `object`."""
    return " ".join(re.sub(r"[\d_#:()-]+", " ", word).split())


def _within_images(samples: Sequence[Sample], words: Sequence[str]) -> tuple[dict[int, list[int]], tuple[int, ...]]:
    """Samples that share their image with other targets, with these; and those of them whose phrase others have too."""
    images: dict[Hashable, list[int]] = defaultdict(list)
    for place, sample in enumerate(samples):
        if sample.boxes:
            images[sample.image].append(place)
    crowd, ambiguous = {}, []
    for places in images.values():
        for place in places:
            others = [other for other in places if samples[other].boxes != samples[place].boxes]
            if others:
                crowd[place] = others
                if any(words[other] == words[place] for other in others):
                    ambiguous.append(place)
    return crowd, tuple(sorted(ambiguous))


def _lies_there(samples: Sequence[Sample], others: Sequence[int], place: int) -> bool | None:
    """Whether a target lies on the side that its phrase says, beside the others; None where nothing is said."""
    direction = side(samples[place].phrase)
    if not direction:
        return None
    middle = sum(_centre(samples[other]) for other in others) / len(others)
    return (_centre(samples[place]) - middle) * direction > 0


def _centre(sample: Sample) -> float:
    return sum((box[0] + box[2]) / 2 for box in sample.boxes) / len(sample.boxes)


def _tells(sample: Sample) -> bool:
    """Whether a phrase has the four numbers of its box in it."""
    numbers = [float(run) for run in _NUMBER.findall(str(sample.phrase or ""))]
    runs = [numbers[place : place + 4] for place in range(len(numbers) - 3)]
    return any([round(v) for v in run] == [round(v) for v in box] for run in runs for box in sample.boxes)
