"""Wrong conduct around a right loss: what any of the losses can do wrong, whatever it computes."""

from __future__ import annotations

from typing import Any

from assay.audits.components.masked_loss import cross_entropy, gather, linear, regression, total
from assay.audits.conduct_faults import HIDDEN, STRIDED, Kind, faults, frozen
from assay.audits.terms import Fault


def _of(room: Any, name: str, *further: Kind) -> tuple[Fault, ...]:
    return faults(room.OPERATION, room.reference, name, *further)


FAULTS = (
    *_of(cross_entropy, "logits", STRIDED, HIDDEN),
    *_of(linear, "hidden", STRIDED, HIDDEN, frozen(linear.OPERATION)),
    *_of(regression, "prediction", STRIDED, HIDDEN),
    *_of(gather, "features", STRIDED),
    *_of(total, "lm", frozen(total.OPERATION)),
)
