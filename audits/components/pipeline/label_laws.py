"""The laws of labels: what a pipeline trains on."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch

from assay.audits.components.pipeline.views import (
    IGNORED,
    Piece,
    View,
    first_difference,
    packed,
    piece_alone,
    pieces,
    view,
)
from assay.audits.laws.trial import Trial
from assay.audits.pipeline_talks import matched, plain
from assay.audits.terms import Evidence, Inexpressible


def kept(trial: Trial) -> Iterator[Evidence]:
    """A label is the token's own id or is ignored; padding and placeholders are ignored; some token is trained.

    Why: the model shifts labels itself, so labels that were shifted before are one token off. A trained placeholder
    teaches the model to write images, trained padding to write padding, and a sample without any label is read for
    nothing.

    Example: labels copied from the ids, with the padding token masked but not the 700 tokens of an image.
    """
    found = view(trial)
    labels, trained = found.labels, found.labels != IGNORED
    other = trained & (labels >= 0) & (labels != found.ids)
    yield from _first(found, trained & (labels < 0), f"a label that is neither a token nor {IGNORED}", IGNORED)
    yield from _first(found, other, "the label is not the token's own id")
    yield from _first(found, trained & ~found.real, "padding is trained on", IGNORED)
    yield from _first(found, trained & (found.types > 0) & found.real, "a placeholder is trained on", IGNORED)
    for piece in pieces(trial, found):
        if not bool((piece.of(labels) >= 0).any()):
            message = f"sample {piece.sample} has no token that is trained on"
            yield Evidence(where="sample", measured=0, limit="at least 1", message=message, index=(piece.sample,))
            return


def _first(found: View, wrong: torch.Tensor, message: str, want: int | None = None) -> Iterator[Evidence]:
    """Evidence at the first of some places; without ``want`` the token's own id is what was to stand there."""
    places = torch.nonzero(wrong)
    for row, place in places[:1].tolist():
        told = f"{message}, at {len(places)} of {wrong.numel()} places, the first shown"
        label, token = str(int(found.labels[row, place])), int(found.ids[row, place])
        limit = str(token if want is None else want)
        yield Evidence(where="labels", measured=label, limit=limit, message=told, index=(row, place))


def answers(trial: Trial) -> Iterator[Evidence]:
    """What is trained on, decoded, is what the assistant says in the sample's messages, each with its end of turn.

    Why: counts of labels look right while they lie on other characters. Without the end of turn a model never stops;
    with what follows it, or with a part of the question, it learns to write the user's lines. The last turn alone is
    a choice that is allowed, and so are the blanks that a template writes after the end of a turn; text that a template
    trims may lack its outer blanks. Answers that are not in the row are
    no matter of labels: see the law messages.

    Example: the length of the prompt taken from its text alone, without the tokens that an image becomes.
    """
    found = view(trial)
    _ = found.labels
    if not found.facts["texts"]:
        raise Inexpressible("the pipeline has no tokenizer: nothing can be decoded")
    wanted = dict(zip(found.samples, found.record["wants"], strict=True))
    if all(texts is None for texts in wanted.values()):
        raise Inexpressible("the samples have no messages: nothing says what the assistant's texts are")
    for piece in pieces(trial, found):
        if wanted[piece.sample]:
            row = "".join(view(trial, samples=(piece.sample,), first=0).record["plain"])
            yield from _spoken(found, piece, wanted[piece.sample], row)


def _spoken(found: View, piece: Piece, wanted: list[list[str]], row: str) -> Iterator[Evidence]:
    decoded = [run for run in found.record["decoded"][piece.row] if piece.start <= run[0] < piece.stop]
    if not decoded:
        return  # the law kept says that nothing is trained on
    several = [wanted, wanted[-1:]]
    if _written(found, wanted, row) <= len(decoded) < len(wanted):
        several += [wanted[start : start + len(decoded)] for start in range(len(wanted) - len(decoded) + 1)]
    shown = wanted, decoded
    for texts in several:
        if len(texts) == len(decoded):
            off = [(run, text) for run, text in zip(decoded, texts, strict=True) if not _says(found, piece, run, text)]
            if not off:
                return
            shown = ([off[0][1]], [off[0][0]]) if shown[0] is wanted else shown
    measured = " | ".join(run[2] for run in shown[1])
    limit = " | ".join(f"{text[0]}{found.facts['end'] or ' and its end of turn'}" for text in shown[0])
    message = f"sample {piece.sample}: what is trained on is not the assistant's text and its end of turn"
    yield Evidence(
        where="labels", measured=_short(measured), limit=_short(limit), message=message,
        index=(piece.row, shown[1][0][0]),
    )  # fmt: skip


def _written(found: View, wanted: list[list[str]], row: str) -> int:
    """How many of the answers stand in a row: others may have been cut off, as far as the law messages allows it.

    The last form of each is that of the template's, among the other messages.
    """
    return len(matched(row, [plain(f"{forms[-1]}{found.facts['end']}") for forms in wanted]))


def _says(found: View, piece: Piece, run: tuple[int, int, str], texts: list[str]) -> bool:
    """Whether a run is one form of the text with the token that ends a turn, but for what the ends of the row cut off.

    A letter may be cut in two there, and the first token of a row have no label.
    """
    start, stop, decoded = run
    ends = found.facts["ends"]
    said = {*texts, *(text.strip() for text in texts)} if found.facts["trims"] else set(texts)
    end = ends.get(str(int(found.ids[piece.row, stop - 1])))
    bare = decoded.rstrip()
    if end is None and bare != decoded:  # a template writes blanks after the end of a turn, which many train as well
        end = next((text for text in ends.values() if text and bare.endswith(text)), None)
        decoded = decoded if end is None else bare
    open_ended = end is None and stop >= piece.stop and bool(ends)
    if end is None and not open_ended and ends:
        return False
    whole = {f"{one}{end or ''}" for one in said}
    if start <= piece.start + 1:
        late = decoded.lstrip(_BROKEN)
        return bool(late) and any((late.rstrip(_BROKEN) in one) if open_ended else one.endswith(late) for one in whole)
    return bool(decoded) and (
        any(one.startswith(decoded.rstrip(_BROKEN)) for one in said) if open_ended else decoded in whole
    )


_BROKEN = "\ufffd"
"""What a part of a letter decodes to."""


def _short(text: str) -> str:
    """In one line, with what is repeated said once."""
    text = re.sub(r"(<[^<>]+>)\1{2,}", lambda match: f"{match[1]}*{len(match[0]) // len(match[1])}", text)
    text = text.replace("\n", "⏎")
    return text if len(text) <= 160 else f"{text[:100]} ... {text[-50:]}"


def alone(trial: Trial) -> Iterator[Evidence]:
    """Whatever belongs to a token of a sample (its label, its type) is the same in a batch or pack as alone.

    Why: padding, packing and sorting move tokens. Everything that has an entry for each token must move with them;
    what does not belongs to a neighbour from then on. Only the first label of a packed sample may be lost, since
    nothing predicts it.

    Example: labels of one sample under the ids of another; labels padded on the right of ids padded on the left.
    """
    found = view(trial)
    placed = pieces(trial, found)
    in_pack = packed(placed)
    for piece in placed:
        yield from _same(trial, found, piece, in_pack=in_pack)


def _same(trial: Trial, found: View, piece: Piece, *, in_pack: bool) -> Iterator[Evidence]:
    single = view(trial, samples=(piece.sample,), first=0)
    whole = piece_alone(trial, piece.sample)
    own = dict(single.per_token())
    for name, value in found.per_token():
        if name not in own:
            message = f"sample {piece.sample} alone has no such key"
            yield Evidence(where=name, measured="present", limit="absent", message=message)
            continue
        got, want = piece.of(value), whole.of(own[name])
        if name == "labels" and in_pack and int(got[0]) == IGNORED:
            want = torch.cat([got[:1], want[1:]])
        place = first_difference(got, want)
        if place is not None:
            message = f"sample {piece.sample} has another entry alone, at its token {place}"
            index = (piece.row, piece.start + place)
            measured, limit = str(int(got[place])), str(int(want[place]))
            yield Evidence(where=name, measured=measured, limit=limit, message=message, index=index)
    for name in sorted(set(own) - {name for name, _ in found.per_token()}):
        yield Evidence(where=name, measured="absent", limit="present", message=f"sample {piece.sample} alone has it")
