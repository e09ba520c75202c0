"""The laws of phrases. A few bad ones are in every set that people wrote: laws ask whether they are the rule."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from assay.audits.components.grounding import samples
from assay.audits.components.grounding.phrases import NAME
from assay.audits.laws.chance import ALARM, tail
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Inexpressible, Law, Operation
from assay.reference.grounding_phrases import Sample, Summary, summarise

FEW = 20
"""Of fewer samples nothing is said that is said of shares."""
ALIKE = 5
"""Of so many it is said that all have one phrase."""
CARELESS = 0.05
"""The share of generic phrases that annotators leave behind."""
SHARED = 0.2
"""The share of targets whose phrase another target of the image has too, in sets that people wrote."""
MOST = 0.5
"""The share of one phrase beyond which it is no phrase of its target's."""
SIDED = 0.65
"""How often what is called left lies left of the others, at the least: people also count from the other end."""


def filled(trial: Trial) -> Iterator[Evidence]:
    """Every phrase is there: not empty, not ``None``, and no template whose place was never filled.

    Why: text is made of anything. ``str(None)`` and ``{phrase}`` are tokenised, trained on and answered like words.

    Example: an f-string that lost its f.
    """
    yield from _share(trial, "unfilled", 0.0, "no phrase at all")


def generic(trial: Trial) -> Iterator[Evidence]:
    """Phrases describe their target: "object", "target 12" and their like are exceptions.

    Why: a placeholder that fits everything leaves the model to guess which of the targets is meant. The loss falls, to
    where the average box is.

    Example: ``sample.get("phrase", "object")``, for a key that has another name.
    """
    yield from _share(trial, "generic", CARELESS, "a placeholder")


def repeated(trial: Trial) -> Iterator[Evidence]:
    """No single phrase stands for most of the samples.

    Why: what is the same in all prompts carries nothing. A set in which one phrase was copied to all samples trains as
    smoothly as one in which it was not.

    Example: the phrase of the first sample, kept in a variable outside of the loop.
    """
    found = _summary(trial)
    _enough(found.samples, ALIKE if found.repeats == found.samples else FEW)
    if found.repeats > MOST * found.samples:
        yield Evidence(
            where="phrases", measured=found.repeats / found.samples, limit=MOST,
            message=f"{found.commonest!r} stands for {found.repeats} of {found.samples} samples; there are "
            f"{found.distinct} distinct phrases",
        )  # fmt: skip


def ambiguous(trial: Trial) -> Iterator[Evidence]:
    """In an image with several targets, phrases tell them apart.

    Why: one phrase for two targets is one question with two answers, of which each is wrong half of the time. The best
    box for both lies between them.

    Example: names of classes used as phrases, in images with three people.
    """
    found = _summary(trial)
    _enough(found.crowded)
    if len(found.ambiguous) > SHARED * found.crowded:
        place = found.ambiguous[0]
        yield Evidence(
            where="phrases", measured=len(found.ambiguous) / found.crowded, limit=SHARED, index=(place,),
            message=f"{len(found.ambiguous)} of {found.crowded} targets have the phrase of another target of their "
            f"image, such as {_samples(trial)[place].phrase!r} in {_samples(trial)[place].image}",
        )  # fmt: skip


def sides(trial: Trial) -> Iterator[Evidence]:
    """What a phrase calls left lies left of the other targets of the image, more often than not.

    Why: it is the one part of a phrase that can be checked without looking. Images that are mirrored without their
    phrases, and phrases that belong to other samples, leave it to chance.

    Example: a horizontal flip as augmentation, with boxes flipped and words not.
    """
    found = _summary(trial)
    _enough(found.sided)
    if found.on_side < SIDED * found.sided and tail(found.on_side, found.sided, SIDED) < ALARM:
        yield Evidence(
            where="phrases", measured=found.on_side / found.sided, limit=SIDED,
            message=f"{found.on_side} of {found.sided} targets lie on the side that their phrase says",
        )  # fmt: skip


def leaking(trial: Trial) -> Iterator[Evidence]:
    """No phrase has the numbers of its own box in it.

    Why: an answer that stands in the question is copied. Training is perfect, and without the numbers nothing is found.

    Example: prompts made from answers, of which one part was not taken out.
    """
    yield from _share(trial, "leaking", 0.0, "its own box in words")


def _share(trial: Trial, what: str, limit: float, told: str) -> Iterator[Evidence]:
    """Evidence where more than a share of the phrases is of a kind."""
    found = _summary(trial)
    places = getattr(found, what)
    if limit:
        _enough(found.samples, 2 if len(places) == found.samples else FEW)
    words = [_samples(trial)[place].phrase for place in places[:1]]
    if len(places) > limit * found.samples:
        yield Evidence(
            where="phrases", measured=len(places) / found.samples, limit=limit, index=(places[0],),
            message=f"{len(places)} of {found.samples} phrases are {told}, such as {words[0]!r}",
        )  # fmt: skip


def _samples(trial: Trial) -> list[Sample]:
    found: list[Sample] = trial.once("samples", lambda: samples.of(trial.outcome.values))
    return found


def _summary(trial: Trial) -> Summary:
    found: Summary = trial.once("summary", lambda: summarise(_samples(trial)))
    if not found.samples:
        raise Inexpressible("there are no samples")
    return found


def _enough(count: int, least: int = FEW) -> None:
    if count < least:
        raise Inexpressible(f"fewer than {least} samples say something of this")


def _described(_operation: Operation, case: Any) -> str | None:
    return "phrases are declared to be names of classes" if case.classes else None


_law = partial(Law.of, (NAME,))

LAWS = (
    _law(filled), _law(generic, _described), _law(repeated, _described), _law(ambiguous, _described),
    _law(sides, _described), _law(leaking),
)  # fmt: skip
