"""Types for the fields of a case's record: what the JSON of ``--case`` is held to, beyond the plain types.

A record stays an ordinary dataclass: code of ours that makes one is not checked. Bounds that depend on several fields
are told by the operation's ``build``, with the name of the field.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator, Field

from assay.audits.families import samples

Count = Annotated[int, Field(ge=0)]
"""A whole number, zero included."""
Size = Annotated[int, Field(ge=1)]
"""A whole number above zero."""
Finite = Annotated[float, Field(allow_inf_nan=False)]
"""A number that is neither infinite nor NaN."""
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A finite number, zero included."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A finite number above zero."""


def one_of(names: Iterable[str]) -> AfterValidator:
    """One of some names; the message lists them."""
    known = tuple(names)

    def check(name: str) -> str:
        if name not in known:
            message = f"expected one of {', '.join(known)}"
            raise ValueError(message)
        return name

    return AfterValidator(check)


def _readable(text: str) -> str:
    samples.parse(text)
    return text


def _some(texts: tuple[str, ...]) -> tuple[str, ...]:
    if not texts:
        message = "expected at least one sample"
        raise ValueError(message)
    return texts


Samples = Annotated[tuple[Annotated[str, AfterValidator(_readable)], ...], AfterValidator(_some)]
"""Samples in the notation of ``audits.families.samples``, at least one."""
