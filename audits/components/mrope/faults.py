"""All known wrong forms of the mRoPE component."""

from __future__ import annotations

from assay.audits.terms import Fault

FAULTS: tuple[Fault, ...] = ()
