"""Faults written as functions: the docstring says what the code does wrong and what comes of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from assay.audits.terms import Fault, Implementation

CONSTRUCTED = "made up for this suite"
"""The link of a fault that nobody is known to have shipped."""


def fault(
    operation: str, *caught_by: str, link: str = CONSTRUCTED, also: tuple[str, ...] = ()
) -> Callable[[Implementation], Fault]:
    """Turn a wrong form into an entry named like the function.

    The docstring's first part is the ``why``; what follows ``Effect:`` in a paragraph of its own is the ``effect``.
    ``caught_by`` are the laws that must catch it, at least one besides parity where the entry can be told so.
    ``also`` are the links of others who shipped the same.
    """

    def entry(wrong: Implementation) -> Fault:
        why, _, effect = inspect.cleandoc(wrong.__doc__ or "").partition("\n\nEffect: ")
        if not effect:
            message = f"{wrong.__name__}: expected a docstring with a paragraph that starts with 'Effect: '"
            raise ValueError(message)
        return Fault(
            name=wrong.__name__.replace("_", "-"), operation=operation, why=" ".join(why.split()),
            effect=" ".join(effect.split()), link=link, wrong=wrong, caught_by=caught_by,
            also=also,
        )  # fmt: skip

    return entry


def gathered(names: Mapping[str, Any]) -> tuple[Fault, ...]:
    """The faults among a module's names, in the order in which they were written."""
    return tuple(value for value in names.values() if isinstance(value, Fault))
