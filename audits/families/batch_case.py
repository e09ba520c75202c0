"""What the cases of whole models have in common: a family, and the samples that go to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from assay.audits.families import samples
from assay.audits.fields import Count, Samples
from assay.audits.terms import Family


@dataclass(frozen=True, kw_only=True)
class BatchCase:
    """Samples in the notation of ``audits.families.samples``, and the name of the family that they go to."""

    family: str
    samples: Samples
    seed: Count = 0

    @property
    def modalities(self) -> frozenset[str]:
        """What the samples hold besides text."""
        return frozenset().union(*(samples.parse(sample).modalities for sample in self.samples))

    def call(self, dtype: torch.dtype) -> dict[str, Any]:
        """The fields of a call that say what to run. The batch itself is made beside the model, in the worker."""
        name = str(dtype).removeprefix("torch.")
        return {"samples": self.samples, "keys": tuple(range(len(self.samples))), "seed": self.seed, "dtype": name}

    def untaken(self, family: Family) -> str | None:
        """Why the family cannot be given such samples; None where it can."""
        lacking = sorted(self.modalities - set(family.modalities))
        return f"{self.family} takes no {' or '.join(lacking)}" if lacking else None
