"""The notation in which tests and laws write samples down: ``t5 i4x6 t3 v2x4x6@2 a1.5``.

A sample is a list of segments separated by spaces. Sizes are those of the *patch grid before merging*, because that
is what ``image_grid_thw`` holds and what position rules are written in.

=============  =======================================================================================================
``t5``         five ordinary text tokens (``t0`` is allowed and stands for nothing)
``i4x6``       an image of 4 x 6 patches (height x width)
``v2x4x6@3``   a video of 2 temporal steps of 4 x 6 patches, sampled at 3 frames per second (default 2)
``a1.5``       1.5 seconds of audio
=============  =======================================================================================================
"""

from __future__ import annotations

import re
from dataclasses import dataclass

DEFAULT_FRAMES_PER_SECOND = 2.0


@dataclass(frozen=True)
class Text:
    """``tokens`` ordinary text tokens."""

    tokens: int


@dataclass(frozen=True)
class Image:
    """An image of ``height`` x ``width`` patches, before merging."""

    height: int
    width: int


@dataclass(frozen=True)
class Video:
    """A video of ``steps`` temporal steps of ``height`` x ``width`` patches, sampled at ``frames_per_second``."""

    steps: int
    height: int
    width: int
    frames_per_second: float = DEFAULT_FRAMES_PER_SECOND


@dataclass(frozen=True)
class Audio:
    """``seconds`` of audio."""

    seconds: float


Segment = Text | Image | Video | Audio


@dataclass(frozen=True)
class Sample:
    """One training sample: segments in the order in which the model reads them."""

    segments: tuple[Segment, ...]

    def __str__(self) -> str:
        """The sample in the notation it was parsed from."""
        return " ".join(_written(segment) for segment in self.segments)

    @property
    def modalities(self) -> frozenset[str]:
        """``image``, ``video`` and ``audio``, as far as the sample has them."""
        names = {Image: "image", Video: "video", Audio: "audio"}
        return frozenset(names[type(segment)] for segment in self.segments if not isinstance(segment, Text))


def parse(sample: str | Sample) -> Sample:
    """Read one sample. Raises ``ValueError`` that quotes the segment and says what was expected."""
    if isinstance(sample, Sample):
        return sample
    return Sample(tuple(_segment(word) for word in sample.split()))


def _segment(word: str) -> Segment:
    for pattern, make in _FORMS:
        if match := pattern.fullmatch(word):
            return make(*match.groups())
    message = f"segment {word!r}: expected tN, iHxW, vTxHxW, vTxHxW@F or aS, such as t5 i4x6 v2x4x6@2 a1.5"
    raise ValueError(message)


def _video(steps: str, height: str, width: str, frames_per_second: str | None) -> Video:
    rate = DEFAULT_FRAMES_PER_SECOND if frames_per_second is None else float(frames_per_second)
    return Video(int(steps), int(height), int(width), rate)


_POSITIVE = r"([1-9]\d*)"
_RATE = r"((?!0+(?:\.0*)?$)\d+(?:\.\d+)?)"
_FORMS = (
    (re.compile(r"t(\d+)"), lambda tokens: Text(int(tokens))),
    (re.compile(rf"i{_POSITIVE}x{_POSITIVE}"), lambda height, width: Image(int(height), int(width))),
    (re.compile(rf"v{_POSITIVE}x{_POSITIVE}x{_POSITIVE}(?:@{_RATE})?"), _video),
    (re.compile(rf"a{_RATE}"), lambda seconds: Audio(float(seconds))),
)


def _written(segment: Segment) -> str:
    match segment:
        case Text(tokens):
            return f"t{tokens}"
        case Image(height, width):
            return f"i{height}x{width}"
        case Video(steps, height, width, rate):
            return f"v{steps}x{height}x{width}@{rate:g}"
        case Audio(seconds):
            return f"a{seconds:g}"
