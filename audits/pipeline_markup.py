"""What stands in a row beside texts and pictures, compared with what the chat template would write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from assay.audits.pipeline_samples import Messages, text
from assay.audits.pipeline_talks import plain

Decode = Callable[[list[int]], str]


@dataclass(frozen=True, kw_only=True)
class Markup:
    """Reads rows of ids. ``media`` are the ids of placeholders, ``special`` those of control tokens.

    ``frame`` is what the template writes of a picture, its placeholder included, decoded.
    """

    decode: Decode
    media: frozenset[int]
    special: frozenset[int]
    frame: str

    def exact(self, ids: Sequence[int]) -> str:
        """The text of a row with each picture's placeholders as one, and without pictures that stand as they should."""
        kept = list(self._once(ids))
        said = self.decode(kept)
        return said.replace(self.frame, "") if self.frame else said

    def _once(self, ids: Sequence[int]) -> Iterator[int]:
        before = -1
        for token in ids:
            if token >= 0 and not (token == before and token in self.media):
                yield token
            before = token

    def said(self, ids: Sequence[int]) -> str:
        """What a row says, without control tokens, blanks and capitals."""
        return plain(self.decode([token for token in ids if token >= 0 and token not in self.special | self.media]))


def tidy(talk: Messages) -> bool:
    """Whether no text of a conversation begins or ends with a blank, which a collator may cut off."""
    said = [text([part]) if not isinstance(part, str) else part for item in talk for part in _parts(item["content"])]
    return all(one == one.strip() for one in said)


def _parts(content: Any) -> Sequence[Any]:
    return [content] if isinstance(content, str) else content or ()
