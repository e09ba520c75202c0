"""The search layer: Hypothesis looks for cases that break a law, and shrinks them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase

from assay.audits.terms import Operation

SHRINK_CALLS = 150


class _Broken(Exception):
    """Raised inside the search where a probe says that a case breaks something."""


def search(operation: Operation, breaks: Callable[[Any], bool], *, examples: int, seed: int) -> Any | None:
    """The smallest parameters found for which ``breaks`` is true, or None.

    Reproducible: seeded, without database or deadline. Shrinking ends after a fixed number of calls, not of seconds.
    """
    if operation.strategy is None or examples == 0:
        return None
    broken: dict[str, bool] = {}
    state: dict[str, Any] = {"after": 0, "last": None}

    def probe(params: Any) -> None:
        key = repr(params)
        if key not in broken:
            if state["last"] is not None:
                state["after"] += 1
            broken[key] = state["after"] <= SHRINK_CALLS and breaks(params)
        if broken[key]:
            state["last"] = params
            raise _Broken

    try:
        _configured(operation, probe, examples, seed)()
    except _Broken:
        return state["last"]
    return None


def _configured(operation: Operation, probe: Callable[[Any], None], examples: int, seed: int) -> Callable[[], None]:
    assert operation.strategy is not None
    settings = hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        print_blob=False,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        verbosity=hypothesis.Verbosity.quiet,
    )
    test: Callable[[], None] = hypothesis.given(operation.strategy())(probe)
    return hypothesis.seed(seed)(settings(test))
