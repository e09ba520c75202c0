"""As many features as placeholders, both ways, for each modality and each sample: laws about errors."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from assay.audits.components.masked_scatter.batch import MODALITIES, Case, Inputs, Segment
from assay.audits.components.masked_scatter.place_laws import BOTH
from assay.audits.laws.trial import Trial, answerable
from assay.audits.terms import Evidence, Inexpressible, Law, Operation


def surplus(trial: Trial) -> Iterator[Evidence]:
    """More features than placeholders of a modality are an error.

    Why: a prompt that was cut off, a wrong number of tokens for an image, a placeholder lost in a template: features
    are left over. Which are left over nobody knows; where the last ones are dropped, every image after the first
    wrong one has features of its neighbour.

    Example: ``features[: mask.sum()]`` before ``masked_scatter``, and ``masked_scatter`` itself.
    """
    yield from answerable(_refused(trial, more) for more in _surpluses(trial.inputs))


def missing(trial: Trial) -> Iterator[Evidence]:
    """Fewer features than placeholders of a modality are an error: one less, a whole image, one for all, none.

    Why: a placeholder that a user typed or the model generated has no feature. It must not take that of another one;
    a single feature must not be repeated over all places, as assignment by a mask does; and a placeholder that nothing
    is put at must not pass for a word.

    Example: ``embeddings[mask] = features`` with one feature row.
    """
    yield from answerable(_refused(trial, less) for less in _shortages(trial.inputs))


def compensated(trial: Trial) -> Iterator[Evidence]:
    """Features too many of one modality do not make up for those that another one lacks.

    Why: one mask over the placeholders of images and videos, with one count, fits whenever the sum does. Then frames
    of a video stand where an image was announced.

    Example: a check of the number of all visual features against that of all visual tokens.
    """
    inputs: Inputs = trial.inputs
    given = inputs.flat()
    names = [name for name in MODALITIES if len(given.get(name, ())) > 1]
    if len(names) < 2:
        raise Inexpressible("needs two modalities with two features each")
    first, second = names[:2]
    more, less = given[first], given[second]
    sizes = (*_without(inputs, first, second), (first, len(more) + 1), (second, len(less) - 1))
    moved: dict[str, Any] = {first: torch.cat([more, less[-1:]]), second: less[:-1]}
    yield from _refused(trial, dataclasses.replace(inputs, sizes=sizes, layout="flat", **moved))


def straddles(trial: Trial) -> Iterator[Evidence]:
    """A medium whose features would lie in two samples is an error: counts hold for each sample.

    Why: one placeholder too many in a sample and one too few in the next give the right sum, and the last row of one
    sample's image is put into the other. Features that come image by image tell.

    Example: a list of features that is concatenated before anything is counted.
    """
    inputs: Inputs = trial.inputs
    name, (row, column) = _last_word_before_images(inputs)
    ids = inputs.input_ids.clone()
    ids[row, column] = inputs.placeholders()[name]  # typed in one sample,
    after = (inputs.mask(name) & (torch.arange(len(ids), device=ids.device) > row)[:, None]).nonzero()
    ids[tuple(after[-1].tolist())] = 1  # lost in another
    yield from _refused(trial, dataclasses.replace(inputs, input_ids=ids), "a medium spread over two samples")


def _last_word_before_images(inputs: Inputs) -> tuple[str, tuple[int, int]]:
    """A modality, and a word in a sample after which the next medium of it has at least two features."""
    words: dict[int, int] = dict((~inputs.masked()).nonzero().tolist())  # the last of each sample
    for name in inputs.flat():
        places, media = inputs.mask(name).nonzero(), inputs.media(name)
        for row, column in reversed(words.items()):
            before = int((places[:, 0] <= row).sum())
            following = next((i for i in range(len(media)) if sum(media[:i]) == before), None)
            if following is not None and media[following] > 1:
                return name, (row, column)
    raise Inexpressible("needs a word, and an image of two features in a later sample")


def numbers(trial: Trial) -> Iterator[Evidence]:
    """The error about a wrong count says how many placeholders and how many features there are.

    Why: a training run that stops at step 40,000 is to be explained from its last line. Both numbers tell a cut-off
    prompt from a wrong grid; "shape [0, 4, -1] is invalid" tells nothing.

    Example: a reshape that fails.
    """
    inputs: Inputs = trial.inputs
    asked = (next((item for item in wrong if item.flat()), None) for wrong in (_surpluses(inputs), _shortages(inputs)))
    for item in (item for item in asked if item is not None):
        outcome = trial.attempt(item)
        if outcome.raised is None:
            continue  # that it is none is for other laws
        name, *counts = _counts(item)
        said = {int(number) for number in re.findall(r"\d+", outcome.raised.message)}
        if not any(pair <= said for pair in counts):
            yield Evidence(
                where=name, measured=outcome.raised.message[:200] or "no message",
                limit=" and ".join(map(str, sorted(counts[0]))), message="the error does not say both counts",
            )  # fmt: skip


def _counts(inputs: Inputs) -> tuple[str, set[int], set[int]]:
    """The first modality whose counts differ, its counts, and those of all, where one mask is all there is."""
    given = inputs.flat()
    counts = {name: (int(inputs.mask(name).sum()), len(given.get(name, ()))) for name in MODALITIES}
    name = next(name for name, (tokens, features) in counts.items() if tokens != features)
    return name, set(counts[name]), {sum(pair[side] for pair in counts.values()) for side in (0, 1)}


def _surpluses(inputs: Inputs) -> Iterator[Inputs]:
    """One feature more of each modality, also of one that has none, and a whole medium more."""
    given = inputs.flat()
    width = inputs.width
    for name in sorted(MODALITIES, key=lambda name: name not in given):
        rows = given.get(name, inputs.embeddings.new_zeros(0, width))
        media = inputs.media(name)
        more = rows.new_ones(1, width)
        grown = (*media[:-1], media[-1] + 1) if media else (1,)
        yield _given(inputs, name, torch.cat([rows, more]), grown, flat=inputs.layout == "stacked")
        if media:
            first = rows[: media[0]]
            yield _given(inputs, name, torch.cat([first, rows]), (media[0], *media))


def _shortages(inputs: Inputs) -> Iterator[Inputs]:
    """One feature less of each modality, the first medium gone, one feature for all, none; a placeholder too many."""
    flat = inputs.layout == "stacked"
    for name, rows in inputs.flat().items():
        media = inputs.media(name)
        if len(rows) > 1:
            yield _given(inputs, name, rows[:-1], (*media[:-1], media[-1] - 1), flat=flat)
            yield _given(inputs, name, rows[:1], (1,))
        if len(media) > 1:
            yield _given(inputs, name, rows[media[0] :], tuple(media[1:]))
        yield _given(inputs, name, None, ())
    words = (~inputs.masked()).nonzero().tolist()
    for row, column in (words[0], words[-1]) if words else ():
        ids = inputs.input_ids.clone()
        ids[row, column] = inputs.ids[0]
        yield dataclasses.replace(inputs, input_ids=ids)


def _given(inputs: Inputs, name: str, rows: Any, media: tuple[int, ...], *, flat: bool = False) -> Inputs:
    sizes = (*_without(inputs, name), *((name, count) for count in media))
    layout = "flat" if flat else inputs.layout
    return dataclasses.replace(inputs, sizes=sizes, layout=layout, **{name: rows})


def _without(inputs: Inputs, *names: str) -> tuple[Segment, ...]:
    return tuple(item for item in inputs.sizes if item[0] not in names)


def _refused(trial: Trial, inputs: Inputs, what: str = "") -> Iterator[Evidence]:
    """Evidence where a call returned that should not."""
    if trial.attempt(inputs).raised is None:
        for name in MODALITIES:
            tokens, features = int(inputs.mask(name).sum()), len(inputs.flat().get(name, ()))
            if tokens != features or what:
                said = what or f"{name} placeholders: {tokens}, features: {features}"
                yield Evidence(where=name, measured="no error", limit="an error", message=f"{said}: accepted")
                return


def _some(_operation: Operation, case: Case) -> str | None:
    return None if case.rows else "no sample"


def _pictured(_operation: Operation, case: Case) -> str | None:
    return None if case.sizes() else "no media"


def _listed(_operation: Operation, case: Case) -> str | None:
    if case.layout == "flat":
        return "features as one matrix do not tell where a medium ends"
    return _pictured(_operation, case)


_law = partial(Law.of, BOTH)

LAWS = (
    _law(surplus, _some), _law(missing, _pictured), _law(compensated, _pictured), _law(straddles, _listed),
    _law(numbers, _pictured),
)  # fmt: skip
