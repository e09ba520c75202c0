"""What labellers and collators tell of themselves: whether the objects that they were given are as they were."""

from __future__ import annotations

from collections.abc import Iterator

from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Inexpressible

TOLD = "untouched"
"""Of an answer: a bool for each sample, or one for all."""


def changes(trial: Trial, what: str) -> Iterator[Evidence]:
    """The first sample of ``what`` that the call changed. Inexpressible where the answer does not tell."""
    if TOLD not in trial.outcome.values:
        raise Inexpressible("the answer does not tell")
    kept = trial.outcome.values[TOLD]
    if not bool(kept.all()):
        yield Evidence(
            where=what, measured="changed", limit="unchanged", index=(int((~kept).nonzero()[0]),),
            message=f"the call changed the {what} it was given",
        )  # fmt: skip
