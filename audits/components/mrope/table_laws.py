"""The laws of cosine and sine tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from assay.audits.components.mrope.rotate_laws import axis_by_axis
from assay.audits.components.mrope.tables import NAME, Inputs
from assay.audits.laws.relation import Pair, Run, holds
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Law


def circle(trial: Trial) -> Iterator[Evidence]:
    """Cosine and sine lie on one circle, whose radius is the attention scaling.

    Why: tables that do not come from one angle stretch what they rotate.

    Example: a sine table that was cached for another length.
    """

    def relate(run: Run, inputs: Inputs) -> Iterable[Pair]:
        out = run(inputs)
        square = out["cos"].double().square() + out["sin"].double().square()
        radius = torch.full_like(square, inputs.attention_scaling**2)
        yield Pair(
            where="cos", left=square, right=radius, reach=radius, message="cosine and sine are not on one circle"
        )

    yield from holds(trial, relate)


def lanes(trial: Trial) -> Iterator[Evidence]:
    """A lane's entries depend on the axis that owns it, and on no other.

    Why: this is where sections are mixed; a lane with the wrong owner is rotated by the wrong coordinate ever after.

    Example: sections counted in channels where lanes are meant.
    """

    def relate(run: Run, inputs: Inputs) -> Iterable[Pair]:
        for axis, own, mixed, alone in axis_by_axis(run, inputs):
            for name in ("cos", "sin"):
                left, right = mixed[name][..., own], alone[name][..., own]
                reach = torch.full((), abs(inputs.attention_scaling), dtype=torch.float64)
                message = f"lanes of axis {axis} depend on another axis"
                yield Pair(where=name, left=left, right=right, reach=reach, message=message)

    yield from holds(trial, relate)


LAWS = tuple(Law.of((NAME,), check) for check in (circle, lanes))
