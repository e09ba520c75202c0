"""Case parameters as text: what a finding names, a repro line carries and ``--case`` reads."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from assay.audits.terms import Operation


class BadCase(ValueError):
    """A case that the operation does not know or cannot be built from."""


def text(operation: Operation, params: Any, scope: Mapping[str, Any]) -> str:
    """A case's name if it has one, else the fields that differ from their defaults, as JSON.

    ``scope`` is what the candidate fixes; it need not be said.
    """
    for name, known in operation.cases.items():
        if dataclasses.replace(known, **scope) == params:
            return name
    default = operation.params(**scope)
    fields = {f.name: getattr(params, f.name) for f in dataclasses.fields(params)}
    return json.dumps({k: v for k, v in fields.items() if v != getattr(default, k)}, separators=(",", ":"))


def parse(operation: Operation, case: str) -> Any:
    """The parameters that :func:`text` wrote. :class:`BadCase` names what is possible."""
    if case in operation.cases:
        return operation.cases[case]
    if not case.startswith("{"):
        message = f"{operation.name} has no case {case!r}; it has: {', '.join(operation.cases)}; or give JSON fields"
        raise BadCase(message)
    try:
        fields = json.loads(case)
        return operation.params(**{key: _frozen(value) for key, value in fields.items()})
    except (json.JSONDecodeError, TypeError, ValueError) as error:
        message = f"case {case!r} does not fit {operation.params.__name__}: {error}"
        raise BadCase(message) from error


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
