"""The law of conversations: a row is about what its sample's messages say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from assay.audits.components.pipeline.views import GRIDS, IGNORED, View, alone, piece_alone, view
from assay.audits.laws.trial import Trial
from assay.audits.pipeline_talks import matched, plain
from assay.audits.terms import Evidence, Inexpressible
from assay.reference.mrope_positions import IMAGE

Told = Sequence[Mapping[str, Any]]
Talk = Mapping[str, Any]
"""Fields of ``Told`` and ``Talk`` of ``audits.pipeline_talks``."""


def messages(trial: Trial) -> Iterator[Evidence]:
    """The row of a sample holds the text of each of its messages, in their order, and its pictures.

    Why: an answer is right for its question only. Labels, lengths and scores look the same on a row whose system
    prompt, question or earlier turn was lost, or is that of another sample. What the chat template itself leaves out is
    not asked for, nor what may be lost because a row is cut: whole turns with which it would be longer than all other
    rows, and any text of the longest row, and of that with the longest prompt.

    Example: an index that is one off between a file of questions and a file of answers.
    """
    found = view(trial)
    talks = dict(zip(found.samples, found.record["talks"], strict=True))
    known = [sample for sample, talk in talks.items() if talk and talk["messages"]]
    if not known:
        raise Inexpressible("the samples have no messages with answers, or the pipeline no tokenizer to read them by")
    sizes = {sample: _sizes(trial, sample) for sample in found.samples}
    longest = tuple(max(column) for column in zip(*sizes.values(), strict=True))
    for sample in known:
        evidence = _lost(alone(trial, sample), sample, talks[sample], sizes[sample], longest)
        if evidence:
            yield evidence
            return


def _sizes(trial: Trial, sample: int) -> tuple[int, int]:
    """The tokens of a row, and those before its first target."""
    single, piece = alone(trial, sample), piece_alone(trial, sample)
    size = piece.stop - piece.start
    labels = single.get("labels")
    if labels is None or labels.numel() != single.ids.numel():
        return size, size
    targets = torch.nonzero(piece.of(single.labels) != IGNORED).flatten().tolist()
    return size, targets[0] if targets else size


def _lost(single: View, sample: int, talk: Talk, sizes: tuple[int, int], longest: tuple[int, ...]) -> Evidence | None:
    told: Told = talk["messages"]
    row = "".join(single.record["plain"])
    texts = [(place, said) for place, message in enumerate(told) for said in message["texts"]]
    there = set(matched(row, [said for _, said in texts]))
    lost = [one for number, one in enumerate(texts) if number not in there]
    if not lost:
        return _blind(single, sample, talk, row)
    blind = _fewer(single, told) and (not _begun(talk, row) or lost == texts[len(texts) - len(lost) :])
    if blind or _cut(single, told, row, sizes, longest):
        return None
    place, said = lost[0]
    message = f"sample {sample}: message {place}, the {told[place]['role']}'s, is not in its row, or not in its place"
    shown = said if len(said) <= 60 else f"{said[:40]} ... {said[-15:]}"
    return Evidence(where="input_ids", measured="absent", limit=shown, message=message, index=(sample,))


def _cut(single: View, told: Told, row: str, sizes: tuple[int, int], longest: tuple[int, ...]) -> bool:
    """Whether texts may be lost because the row was cut at a length: whole turns before it is made, or tokens after.

    Whole turns leave a row that would be too long with them. Tokens leave one, or a prompt, as long as any is.
    """
    dropped = _turns(told, row)
    if dropped is None:
        return any(size == most for size, most in zip(sizes, longest, strict=True))
    if any(message["pictures"] for message in dropped) and _fewer(single, told):
        return True  # nobody knows what they would take
    more: int = sum(message["tokens"] for message in dropped)
    return sizes[0] + more > longest[0]


def _turns(told: Told, row: str) -> Told | None:
    """The turns, from a question on, without which all others are in the row; None where there are no such."""
    first = next((place for place, message in enumerate(told) if message["role"] == "user"), 0)
    starts = [place for place, message in enumerate(told) if message["role"] == "user" and place > first]
    windows: list[tuple[Told, Told]] = [(told[first:place], [*told[:first], *told[place:]]) for place in starts]
    windows += [(told[place:], told[:place]) for place in reversed(starts)]
    for dropped, kept in windows:
        texts = [said for message in kept for said in message["texts"]]
        if len(matched(row, texts)) == len(texts):
            return dropped
    return None


def _begun(talk: Talk, row: str) -> bool:
    """Whether a row begins as its conversation does, up to its first picture."""
    return bool(talk["head"]) and row.startswith(talk["head"])


def _fewer(single: View, told: Told) -> bool:
    """Whether the row has fewer pictures than the messages."""
    wanted: int = sum(message["pictures"] for message in told)
    grids = single.get(GRIDS["image"])
    if grids is not None:
        return len(grids.reshape(-1, 3)) < wanted
    return bool(wanted) and not bool((single.types == IMAGE).any())


def _blind(single: View, sample: int, talk: Talk, row: str) -> Evidence | None:
    """All texts are there. A picture is missing if the row begins as the conversation does, up to its first picture."""
    told: Told = talk["messages"]
    if "image" not in single.facts["placeholders"] or not _begun(talk, row) or not _fewer(single, told):
        return None
    wanted, grids = sum(message["pictures"] for message in told), single.get(GRIDS["image"])
    measured = 0 if grids is None else len(grids)
    message = f"sample {sample}: all its texts are in its row, and not all its pictures"
    return Evidence(where="input_ids", measured=measured, limit=wanted, message=message, index=(sample,))


def extra(trial: Trial) -> Iterator[Evidence]:
    """Around a conversation, as the chat template writes it, its row has no heads and control tokens without a message.

    Why: what stands before or after is read with it. A second token for the beginning of the text, or the head of an
    answer that never comes, is in no prompt that the model will be given, and changes what it makes of all that is. One
    token that begins or ends texts is all right, and so is what says something: an instruction, or examples.

    Example: a template that writes the beginning of the text, and a tokenizer that adds it once more.
    """
    found = view(trial)
    wholes = dict(zip(found.samples, found.record["wholes"], strict=True))
    asked = False
    for sample in found.samples:
        row, whole = "".join(alone(trial, sample).record["spoken"]), wholes[sample]
        if not whole or row.count(whole) != 1:
            continue
        asked = True
        before, _, after = row.partition(whole)
        for rest, doubled in ((before, bool(before) and whole.startswith(before)), (after, False)):
            if doubled or _empty(found, rest):
                message = f"sample {sample}: its row holds more than its conversation, and nothing is said in it"
                measured = rest if len(rest) <= SHOWN else f"{rest[:SHOWN]} ..."
                yield Evidence(where="input_ids", measured=measured, limit="nothing", message=message, index=(sample,))
                return
    if not asked:
        raise Inexpressible("no row holds its conversation as a chat template writes it")


SHOWN = 60


def _empty(found: View, rest: str) -> bool:
    """Whether a text is of heads and control tokens alone, and more than one token that begins or ends texts."""
    ends = {plain(text) for text in found.facts["ends"].values()} | {found.facts["begins"], ""}
    if rest in ends:
        return False
    for head in sorted(found.facts["heads"].values(), key=len, reverse=True):
        rest = rest.replace(head, "")
    for end in ends - {""}:
        rest = rest.replace(end, "")
    return not MARK.sub("", rest)


MARK = re.compile(r"<[^<>\s]{1,40}>")
"""Of control tokens most are written so."""
