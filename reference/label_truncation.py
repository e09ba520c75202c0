"""Cuts a labelled sequence to a length: ids and labels by one slice, no image in two, and never to nothing unnoticed.

Letters: S tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from assay.reference.arguments import of_dtype, one_of
from assay.reference.label_mask import IGNORE

Side = Literal["right", "left"]
Block = tuple[int, int]
"""The first token of an image, a video or a sound, and one past its last, markers included."""


@dataclass(frozen=True, kw_only=True)
class Truncated:
    """What is left: ``input_ids`` and ``labels``, the slice of the sequence that they are, and which blocks stayed."""

    input_ids: Tensor
    labels: Tensor
    start: int
    stop: int
    blocks: tuple[int, ...]

    @property
    def trained(self) -> int:
        """How many tokens are trained on."""
        return int((self.labels != IGNORE).sum())


def truncate(
    input_ids: Tensor,
    labels: Tensor,
    max_length: int,
    *,
    side: Side = "right",
    blocks: Sequence[Block] = (),
    divided: Literal["error", "drop"] = "error",
    untrained: Literal["error", "report"] = "error",
) -> Truncated:
    """At most ``max_length`` tokens, cut off at the right or at the left.

    Args:
        input_ids: int64 [S].
        labels: int64 [S], -100 where not trained.
        max_length: at least 1.
        side: where tokens are cut off.
        blocks: the tokens of each image, video or sound, in rising order.
        divided: what becomes of a block that the cut falls into: an error, or all of it is dropped, and what is left is
            shorter than `max_length`. The features of blocks that are gone must be dropped with them.
        untrained: what becomes of a sequence of which no trained token is left: an error, or `trained` says so.

    Raises:
        TypeError: another dtype.
        ValueError: a wrong shape, length, block or option; a block cut in two; nothing left to train on.
    """
    _checked(input_ids, labels, max_length, side, blocks, (divided, untrained))
    length = len(input_ids)
    start, stop = (0, min(length, max_length)) if side == "right" else (max(0, length - max_length), length)
    for first, last in blocks:
        cut = stop if side == "right" else start
        if first < cut < last:
            if divided == "error":
                raise ValueError(f"max_length: {max_length} cuts the block of tokens {first} to {last} in two")
            start, stop = (start, first) if side == "right" else (last, stop)
    found = Truncated(
        input_ids=input_ids[start:stop].clone(),
        labels=labels[start:stop].clone(),
        start=start,
        stop=stop,
        blocks=tuple(place for place, (first, last) in enumerate(blocks) if start <= first and last <= stop),
    )
    if untrained == "error" and not found.trained:
        raise ValueError(f"max_length: of {length} tokens none that is trained on is among the {stop - start} left")
    return found


def _checked(
    input_ids: Tensor, labels: Tensor, max_length: int, side: str, blocks: Sequence[Block], options: tuple[str, str]
) -> None:
    of_dtype("input_ids", input_ids, torch.int64)
    of_dtype("labels", labels, torch.int64)
    if input_ids.ndim != 1 or labels.shape != input_ids.shape:
        shapes = f"{list(input_ids.shape)} and {list(labels.shape)}"
        raise ValueError(f"input_ids, labels: expected two of the shape [S], got {shapes}")
    if max_length < 1:
        raise ValueError(f"max_length: expected at least 1, got {max_length}")
    if side not in {"right", "left"}:
        raise ValueError(f"side: expected 'right' or 'left', got {side!r}")
    one_of("divided", options[0], ("error", "drop"))
    one_of("untrained", options[1], ("error", "report"))
    before = 0
    for first, last in blocks:
        if not before <= first < last <= len(input_ids):
            raise ValueError(f"blocks: ({first}, {last}) is empty, out of order, or outside of {len(input_ids)} tokens")
        before = last
