"""The law of the attention mask: what a model is not shown."""

from __future__ import annotations

from collections.abc import Iterator

from assay.audits.components.pipeline.views import View, view
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Inexpressible


def hidden(trial: Trial) -> Iterator[Evidence]:
    """What the attention mask hides is padding: the padding token, or one token over and over at an end of a row.

    Why: a token that is hidden is not there for any that follows it. The loss falls all the same, from what is left to
    see; with a mask that hides the prompt, from nothing but the answer's own beginning.

    Example: a mask made of the labels; a mask that is zero where an image is.
    """
    found = view(trial)
    mask = found.get("attention_mask")
    if mask is None or mask.numel() != found.ids.numel():
        raise Inexpressible("the batch has no mask with one entry for each token")
    shown = (mask.reshape(found.ids.shape) != 0).tolist()
    if all(map(all, shown)):
        raise Inexpressible("the mask hides nothing")
    for row, kept in enumerate(shown):
        places = _real(found, row, kept)
        if places:
            message = f"the mask hides {len(places)} tokens of row {row} that are no padding, the first shown"
            measured = f"token {int(found.ids[row, places[0]])}"
            yield Evidence(
                where="attention_mask", measured=measured, limit="padding", message=message, index=(row, places[0])
            )
            return


def _real(found: View, row: int, kept: list[bool]) -> list[int]:
    """The hidden places of a row that are no padding."""
    ids, size = found.ids[row].tolist(), len(kept)
    first = kept.index(True) if any(kept) else size
    last = size - kept[::-1].index(True) if any(kept) else size
    ends = (range(first), range(last, size))
    filled = {place for end in ends if len({ids[place] for place in end}) == 1 for place in end}
    return [place for place in range(size) if not (kept[place] or place in filled or ids[place] == found.facts["pad"])]
