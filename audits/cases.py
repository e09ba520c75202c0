"""Case parameters as text: what a finding names, a repro line carries and ``--case`` reads."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

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
    """The parameters that :func:`text` wrote. :class:`BadCase` names the fields that are wrong, and what is possible.

    Types are those of the fields' annotations, to the letter: no text for a number, no fraction for a whole one.
    """
    if case in operation.cases:
        return operation.cases[case]
    if not case.startswith("{"):
        message = f"{operation.name} has no case {case!r}; it has: {', '.join(operation.cases)}; or give JSON fields"
        raise BadCase(message)
    try:
        _known(operation.params, json.loads(case))
        return TypeAdapter(operation.params).validate_json(case, strict=True)
    except ValidationError as error:
        raise BadCase(_misfit(operation, case, map(_problem, error.errors()))) from error
    except ValueError as error:
        raise BadCase(_misfit(operation, case, [str(error)])) from error


def built(operation: Operation, case: str, scope: Mapping[str, Any], dtype: str) -> None:
    """Build a case that was given as JSON, for a candidate that fixes ``scope``; :class:`BadCase` where it cannot be.

    What types do not tell is found out here: sections that a layout cannot place, an image that does not merge.
    """
    if case in operation.cases:
        return
    params = dataclasses.replace(parse(operation, case), **scope)
    try:
        if operation.supports(params) is None:
            operation.build(params, getattr(torch, dtype), torch.device("cpu"))
    except Exception as error:
        raise BadCase(_misfit(operation, case, [str(error) or type(error).__name__])) from error


def _known(params: type[Any], fields: Mapping[str, Any]) -> None:
    names = [field.name for field in dataclasses.fields(params)]
    strange = [name for name in fields if name not in names]
    if strange:
        message = f"no field {', '.join(map(repr, strange))}; there are: {', '.join(names)}"
        raise ValueError(message)


def _misfit(operation: Operation, case: str, problems: Iterable[str]) -> str:
    return f"case {case!r} does not fit {operation.params.__name__} of {operation.name}: {'; '.join(problems)}"


def _problem(error: Any) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"])
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{''.join(parts).lstrip('.')}: {message[:1].lower()}{message[1:]}, got {error['input']!r}"
