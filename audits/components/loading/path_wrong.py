"""What wrong pairs of loading paths are made of."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from assay.audits.components.loading.path_run import PathCall, answer
from assay.audits.components.loading.paths import NAME
from assay.audits.fault import CONSTRUCTED, fault
from assay.audits.terms import Fault, Outputs


def faulty(*caught_by: str, link: str = CONSTRUCTED) -> Callable[[Callable[[], Any]], Fault]:
    """Turn a function that makes a wrong pair into an entry; its docstring is the entry's."""

    def entry(make: Callable[[], Any]) -> Fault:
        @functools.wraps(make)
        def wrong(call: PathCall) -> Outputs:
            return answer(make, call)

        return fault(NAME, *caught_by, link=link)(wrong)

    return entry
