"""Wrong conduct around a right answer: what any part of packing can do wrong, whatever it computes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch

from assay.audits.components.packed_positions import boundaries, mask, pack, plan, shard
from assay.audits.fault import CONSTRUCTED
from assay.audits.observe import tensors
from assay.audits.terms import Fault, Implementation, Outputs

Wrap = Callable[[Implementation, Any], Outputs]
"""The right implementation and the inputs record to a wrong answer."""

_calls = itertools.count()


def _other_each_time(right: Implementation, inputs: Any) -> Outputs:
    flipped = next(_calls) % 2
    return {name: x.flip(-1) if flipped and x.ndim else x for name, x in right(inputs).items()}


def _in_place(right: Implementation, inputs: Any) -> Outputs:
    out = {name: x.clone() for name, x in right(inputs).items()}
    for _, x in tensors(inputs):
        if x.numel():
            x.view(-1)[:1].add_(1)
            break
    return out


def _seeds(right: Implementation, inputs: Any) -> Outputs:
    torch.manual_seed(next(_calls))
    return right(inputs)


KINDS: tuple[tuple[str, tuple[str, ...], str, str, Wrap], ...] = (
    (
        "other-each-time", ("nondeterministic",), "Every second call gives another answer, by a generator of its own.",
        "Ranks that each make what should be the same rows work on different ones.", _other_each_time,
    ),
    (
        "written-in-place", ("mutates",), "The answer is made in the memory of what was handed over.",
        "The next epoch packs what the first has left of the samples.", _in_place,
    ),
    (
        "seeds-the-process", ("leaks",), "The global generator is seeded, for the sake of the same order each time.",
        "Every dropout mask after it is the same.", _seeds,
    ),
)  # fmt: skip


def _of(room: Any, kind: tuple[str, tuple[str, ...], str, str, Wrap]) -> Fault:
    title, caught_by, why, effect, wrap = kind
    return Fault(
        name=title, operation=room.NAME, why=why, effect=effect, link=CONSTRUCTED, caught_by=caught_by,
        wrong=lambda inputs: wrap(room.reference, inputs),
    )  # fmt: skip


FAULTS = tuple(_of(room, kind) for room in (plan, pack, boundaries, mask, shard) for kind in KINDS)
