"""Hypothesis's strategies, imported when the first one is made: a worker of another environment may lack them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hypothesis import strategies as st
else:

    class _Strategies:
        def __getattr__(self, name: str) -> Any:
            return getattr(importlib.import_module("hypothesis.strategies"), name)

    st = _Strategies()

__all__ = ["st"]
