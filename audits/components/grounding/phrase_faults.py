"""Data sets whose phrases say nothing of their targets, or the wrong thing."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import torch

from assay.audits.components.grounding import samples
from assay.audits.components.grounding.phrases import NAME, Inputs, reference
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs
from assay.reference.grounding_phrases import Sample

NOTES = "notes from a fine-tuning on RefCOCO: one generic phrase for every sample"


def changed(inputs: Inputs, change: Callable[[int, Sample], Sample]) -> Outputs:
    """The made-up set, with each sample changed."""
    made = samples.made_up(int(inputs.seed))[: inputs.limit]
    return samples.told(change(place, sample) for place, sample in enumerate(made))


@fault(NAME, "generic", "repeated", "ambiguous", link=NOTES)
def one_placeholder_for_all(inputs: Inputs) -> Outputs:
    """Every phrase is the default of a look-up by a key that the data does not have.

    Effect: the model is asked for "the object" in images with four, and learns the average box.
    """
    return changed(inputs, lambda _, sample: replace(sample, phrase="the object"))


@fault(NAME, "generic")
def placeholder_where_one_is_missing(inputs: Inputs) -> Outputs:
    """A tenth of the samples has no phrase, and gets the default.

    Effect: one question in ten has no answer, and the model learns to guess.
    """
    return changed(inputs, lambda place, sample: replace(sample, phrase="object") if place % 10 == 3 else sample)


@fault(NAME, "generic")
def numbered_placeholders(inputs: Inputs) -> Outputs:
    """Phrases are numbered: all are distinct, and none says anything.

    Effect: a count of distinct phrases is perfect, and the model learns numbers by heart.
    """
    return changed(inputs, lambda place, sample: replace(sample, phrase=f"target_{place}"))


@fault(NAME, "repeated", "ambiguous")
def phrase_of_the_first(inputs: Inputs) -> Outputs:
    """The phrase of the first sample is kept in a variable and used for all.

    Effect: everything is "the red cup".
    """
    return changed(inputs, lambda _, sample: replace(sample, phrase="the red cup"))


@fault(NAME, "ambiguous")
def one_phrase_for_an_image(inputs: Inputs) -> Outputs:
    """All targets of an image have the phrase of one of them.

    Effect: of three targets two are wrong answers to their question.
    """
    first: dict[object, str | None] = {}
    return changed(inputs, lambda _, sample: replace(sample, phrase=first.setdefault(sample.image, sample.phrase)))


@fault(NAME, "filled")
def template_never_filled(inputs: Inputs) -> Outputs:
    """Some phrases come from a template whose place was not filled.

    Effect: the model is asked for "the {colour} cup".
    """
    return changed(
        inputs, lambda place, sample: replace(sample, phrase="the {colour} cup") if place % 50 == 7 else sample
    )


@fault(NAME, "filled")
def none_made_text(inputs: Inputs) -> Outputs:
    """A phrase that is missing is made text: ``str(None)``.

    Effect: "None" is a word like any other, with a box.
    """
    return changed(inputs, lambda place, sample: replace(sample, phrase="None") if place == 11 else sample)


@fault(NAME, "sides")
def phrases_of_other_samples(inputs: Inputs) -> Outputs:
    """Phrases were shuffled with another seed than boxes.

    Effect: phrases are distinct, well formed, and about another image.
    """
    made = samples.made_up(int(inputs.seed))[: inputs.limit]
    words = [sample.phrase for sample in made]
    random.Random(1).shuffle(words)
    return samples.told(replace(sample, phrase=word) for sample, word in zip(made, words, strict=True))


@fault(NAME, "sides")
def mirrored_without_words(inputs: Inputs) -> Outputs:
    """Every second image is mirrored, boxes too, and its phrases are not.

    Effect: left and right mean nothing any more.
    """

    def mirror(_: int, sample: Sample) -> Sample:
        if int(str(sample.image)[:6]) % 2:
            return sample
        return replace(sample, boxes=tuple((640 - x2, y1, 640 - x1, y2) for x1, y1, x2, y2 in sample.boxes))

    return changed(inputs, mirror)


@fault(NAME, "leaking")
def answer_left_in_the_phrase(inputs: Inputs) -> Outputs:
    """Phrases are cut out of answers, with the box still in some.

    Effect: the model copies numbers from the question.
    """

    def told(place: int, sample: Sample) -> Sample:
        numbers = ", ".join(str(int(value)) for value in sample.boxes[0])
        return replace(sample, phrase=f"{sample.phrase} [{numbers}]") if place % 20 == 1 else sample

    return changed(inputs, told)


@fault(NAME, "nondeterministic")
def drawn_anew_each_time(inputs: Inputs) -> Outputs:
    """Phrases are drawn by the system's generator, which has no seed.

    Effect: two runs see two data sets, and nobody can say which.
    """
    draw = random.SystemRandom()
    return changed(inputs, lambda _, sample: replace(sample, phrase=f"{sample.phrase} no. {draw.random()}"))


@fault(NAME, "mutates")
def seed_counted_up(inputs: Inputs) -> Outputs:
    """The seed is counted up in the memory of whoever handed it over.

    Effect: validation, made second, has other samples each time.
    """
    found = reference(inputs)
    inputs.seed.add_(1)
    return found


@fault(NAME, "leaks")
def process_seeded(inputs: Inputs) -> Outputs:
    """The global generator is seeded to draw the same phrases again.

    Effect: every dropout mask of the run is the same.
    """
    torch.manual_seed(int(inputs.seed))
    torch.rand(3)  # a state that nothing else leaves behind
    return reference(inputs)


FAULTS = gathered(globals())
