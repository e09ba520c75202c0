"""The laws of what a labelled conversation must be: read back token by token."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from assay.audits.components.label_mask import left_alone, reading, templates
from assay.audits.components.label_mask.conversations import Turn
from assay.audits.components.label_mask.labels import NAME, Inputs
from assay.audits.components.label_mask.reading import Expected, Piece
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Inexpressible, Law, Operation, Outputs
from assay.reference.label_mask import IGNORE

Rows = tuple[tuple[Piece, ...], ...]
_MARKERS = tuple(word.encode() for word in templates.VISION)


def pieces(inputs: Inputs, outputs: Outputs) -> Rows:
    """The tokens of an answer; :class:`Inexpressible` where its ids are not the conversations': a law of its own."""
    try:
        return reading.read(inputs, outputs)
    except reading.Illegible as reason:
        raise Inexpressible("the ids do not spell the conversations") from reason


def _read(trial: Trial) -> Iterator[tuple[Piece, Expected]]:
    rows: Rows = trial.once("pieces", lambda: pieces(trial.inputs, trial.outcome.values))
    for sample, row in enumerate(rows):
        whole = reading.expected(trial.inputs, sample)
        yield from ((piece, whole) for piece in row)


def _first(found: Iterator[tuple[Piece, Expected]], measured: str, limit: str, message: str) -> Iterator[Evidence]:
    """Evidence of the first of some tokens, with the text around it and the number of them."""
    wrong = list(found)
    if not wrong:
        return
    piece, whole = wrong[0]
    word = "a placeholder" if piece.span is None else reading.shown(whole.text[slice(*piece.span)])
    around = "" if piece.span is None else f" in {_around(whole.text, piece.span)}"
    yield Evidence(
        where="labels", measured=f"{word} {measured}", limit=limit, index=(piece.sample, piece.place),
        message=f"{message}: {len(wrong)} tokens, the first{around}",
    )  # fmt: skip


def _around(text: bytes, span: reading.Span) -> str:
    return reading.shown(text[max(0, span[0] - 24) : span[1] + 16])


def spelled(trial: Trial) -> Iterator[Evidence]:
    """The real tokens spell the conversation as its chat template renders it, each image by its placeholders.

    Why: labels are worth nothing on a text that the model never sees in use. A function that strips, joins or encodes
    turns by itself trains on another prompt than inference feeds.

    Example: turns that are stripped before they are joined.
    """
    try:
        reading.read(trial.inputs, trial.outcome.values)
    except reading.Illegible as reason:
        yield Evidence(
            where="input_ids", measured=str(reason), limit="the rendering of the chat template",
            message="the ids are not the conversation's",
        )  # fmt: skip


def expanded(trial: Trial) -> Iterator[Evidence]:
    """An image has as many placeholders as its processor makes of it.

    Why: the model puts a feature at each. With one for the whole image, or with those of another image's size, every
    label behind them belongs to another token than the one that the model sees there.

    Example: conversations encoded without their images, each left as the one placeholder that the template writes.
    """
    inputs, values = trial.inputs, trial.outcome.values
    if not inputs.pictured or any(word in inputs.texts for word in reading.PLACEHOLDERS):
        raise Inexpressible("no conversation has an image, or one holds placeholders that somebody typed")
    ids, mask = values["input_ids"], values["attention_mask"].bool()
    if ids.shape != mask.shape or len(ids) != len(inputs.conversations):
        raise Inexpressible("there is not a row for each conversation")
    processor = inputs.processor()
    for sample, row in enumerate(ids):
        got = reading.runs(row[mask[sample]].tolist(), processor)
        want = reading.image_sizes(inputs, sample, processor)
        if got != want:
            yield Evidence(
                where="input_ids", measured=str(got), limit=str(want), index=(sample,),
                message=f"conversation {sample}: its images have another number of placeholders",
            )  # fmt: skip
            return


def kept(trial: Trial) -> Iterator[Evidence]:
    """A label is its own token's id, or -100.

    Why: models shift labels themselves. Labels that are shifted already, or hold another id, train the model to write
    something else than the text.

    Example: the end of text as the label of the next user's marker.
    """
    ids, labels = trial.outcome.values["input_ids"], trial.outcome.values["labels"]
    if ids.shape != labels.shape:
        raise Inexpressible("ids and labels have different shapes")
    wrong = (labels != ids) & (labels != IGNORE)
    if bool(wrong.any()):
        index = tuple(int(i) for i in wrong.nonzero()[0])
        yield Evidence(
            where="labels", measured=int(labels[index]), limit=int(ids[index]), index=index,
            message=f"{int(wrong.sum())} labels are neither their token's id nor {IGNORE}, the first shown",
        )  # fmt: skip


def answers(trial: Trial) -> Iterator[Evidence]:
    """Every token of what is to be trained is trained: the whole text of each answer.

    Why: an answer that is not found, or found in part, is data that is paid for and never learnt; if it is always the
    same part (the first token, all turns but the last), the model never learns that part. The markers around an image
    are nobody's words: they may be trained or not.

    Example: tokens of the answer, encoded alone, searched in the ids: in context they merge otherwise.
    """
    missed = (
        (piece, whole)
        for piece, whole in _read(trial)
        if piece.span is not None and not piece.trained and whole.share(piece.span, whole.spans) == 1
        if not whole.share(piece.span, whole.stops) and whole.text[slice(*piece.span)] not in _MARKERS
    )
    yield from _first(missed, "is ignored", "trained", "part of an answer is not trained")


def prompts(trial: Trial) -> Iterator[Evidence]:
    """Nothing else is trained: no header, no system, user or tool turn, nothing after the terminator.

    Why: a model that is trained on prompts learns to ask, and its loss is dominated by what it need not say.

    Example: as many labels masked as the prompt has tokens before its images are expanded.
    """
    beside = (
        (piece, whole)
        for piece, whole in _read(trial)
        if piece.span is not None and piece.trained and not whole.share(piece.span, whole.spans)
    )
    yield from _first(beside, "is trained", "ignored", "what the assistant does not say is trained")


def stops(trial: Trial) -> Iterator[Evidence]:
    """The terminator of each trained turn is trained.

    Why: a model that never sees the end of a turn as a target does not stop.

    Example: every token with the pad's id masked, where the pad is the end of text.
    """
    open_ended = (
        (piece, whole)
        for piece, whole in _read(trial)
        if piece.span is not None and not piece.trained and whole.share(piece.span, whole.stops) == 1
    )
    yield from _first(open_ended, "is ignored", "trained", "the end of a turn is not trained")


def placeholders(trial: Trial) -> Iterator[Evidence]:
    """A token that stands for an image is never trained.

    Why: nothing is to be learnt from predicting a placeholder, it is easy, and there are hundreds of them: the mean
    over tokens is theirs, and it changes with the resolution of the image.

    Example: only padding masked.
    """
    taught = ((piece, whole) for piece, whole in _read(trial) if piece.span is None and piece.trained)
    yield from _first(taught, "is trained", "ignored", "placeholders are trained")


def pads(trial: Trial) -> Iterator[Evidence]:
    """What is masked as padding is not trained, and all that is not masked is real.

    Why: a trained pad teaches the model to write pads. A mask that leaves real tokens out, or lets pads in, hides text
    from the model, or shows it padding.

    Example: labels cloned from padded ids.
    """
    labels, mask = trial.outcome.values["labels"], trial.outcome.values["attention_mask"].bool()
    if labels.shape != mask.shape:
        raise Inexpressible("labels and mask have different shapes")
    wrong = (labels != IGNORE) & ~mask
    if bool(wrong.any()):
        index = tuple(int(i) for i in wrong.nonzero()[0])
        yield Evidence(
            where="labels", measured=int(labels[index]), limit=IGNORE, index=index,
            message=f"{int(wrong.sum())} pads are trained, the first shown",
        )  # fmt: skip


def unnoticed(trial: Trial) -> Iterator[Evidence]:
    """A conversation with nothing to train on is an error or is left out.

    Why: a sample without targets costs a forward pass and teaches nothing; a whole batch of them is a loss of 0 / 0.
    A count of such samples is the first sign of a template or a truncation that went wrong.

    Example: a warning, and labels that are all -100.
    """
    inputs: Inputs = trial.inputs
    asked = (Turn(role="user", text="What do you see?"),)
    outcome = trial.attempt(dataclasses.replace(inputs, conversations=(inputs.conversations[0], asked)))
    if outcome.raised or len(outcome.values["labels"]) < 2:
        return
    count = int((outcome.values["labels"][1] != IGNORE).sum())
    yield Evidence(
        where="labels", measured=f"{count} trained tokens, and no error", limit="an error, or the sample left out",
        message="a conversation without any turn of the assistant's went through unnoticed",
    )  # fmt: skip


def untouched(trial: Trial) -> Iterator[Evidence]:
    """The messages are as they were after the call.

    Why: a data set's samples are labelled again in each epoch. What is appended to them or taken from them in place is
    there, or missing, the next time.

    Example: the last answer popped off to render the prompt, and never put back.
    """
    yield from left_alone.changes(trial, "messages")


def share(trial: Trial) -> Iterator[Evidence]:
    """The share of trained tokens that is reported is that of the real tokens.

    Why: it is the number by which a person sees that a mask went wrong: 0 and 1 are alarms, and so is a change from
    one data set to the next. Padding must not change it.

    Example: trained tokens over the length of the padded row.
    """
    values = trial.outcome.values
    if "share" not in values:
        raise Inexpressible("no share is reported")
    real = values["attention_mask"].bool()
    trained = ((values["labels"] != IGNORE) & real).sum(-1)
    truth = trained / real.sum(-1).clamp(min=1)
    off = (values["share"].to(torch.float64) - truth).abs() > torch.finfo(torch.float32).eps
    if bool(off.any()):
        sample = int(off.nonzero()[0])
        yield Evidence(
            where="share", measured=float(values["share"][sample]), limit=float(truth[sample]), index=(sample,),
            message="the reported share is not that of the real tokens",
        )  # fmt: skip


def _assistants(_operation: Operation, case: Any) -> str | None:
    return "every character is trained" if case.train == "all" else None


LAWS = (
    Law.of((NAME,), spelled),
    Law.of((NAME,), expanded),
    Law.of((NAME,), kept),
    Law.of((NAME,), answers),
    Law.of((NAME,), prompts, _assistants),
    Law.of((NAME,), stops, _assistants),
    Law.of((NAME,), placeholders),
    Law.of((NAME,), pads),
    Law.of((NAME,), unnoticed, _assistants),
    Law.of((NAME,), untouched),
    Law.of((NAME,), share),
)
