"""Reads ``waivers.toml``, and says what is wrong with it: the file, the table and the key."""

from __future__ import annotations

import datetime as dt
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from assay.audits.terms import Waiver
from assay.audits.usage import BadUsage
from assay.audits.waive import LONGEST, version_range

_FIELDS = tuple(field.name for field in fields(Waiver))
_REQUIRED = ("rule", "candidate", "reason", "issue", "until")


class WaiverError(BadUsage):
    """A waiver file that cannot be used: one line for each thing that is wrong."""


def load(path: Path, today: dt.date) -> tuple[Waiver, ...]:
    """The waivers of a file. :class:`WaiverError` names the file, the table and the key of everything wrong."""
    tables = _tables(path)
    problems = [
        f"{path}: {problem}" for number, table in enumerate(tables, 1) for problem in _check(number, table, today)
    ]
    if problems:
        raise WaiverError("\n".join(problems))
    return tuple(Waiver(**(dict(table) | {"until": _date(table["until"]).isoformat()})) for table in tables)


def _tables(path: Path) -> list[Mapping[str, Any]]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        message = f"{path}: cannot be read: {error}"
        raise WaiverError(message) from error
    except tomllib.TOMLDecodeError as error:
        message = f"{path}: not TOML: {error}"
        raise WaiverError(message) from error
    if unknown := sorted(set(document) - {"waiver"}):
        message = f"{path}: unknown key {unknown[0]!r}: a waiver file holds [[waiver]] tables only"
        raise WaiverError(message)
    found = document.get("waiver", [])
    if not isinstance(found, list) or not all(isinstance(table, dict) for table in found):
        message = f"{path}: 'waiver' is not an array of tables: write [[waiver]], with two brackets"
        raise WaiverError(message)
    return found


def _check(number: int, table: Mapping[str, Any], today: dt.date) -> Iterator[str]:
    place = f"[[waiver]] {number} ({table.get('rule', 'no rule')})"
    for key in sorted(set(table) - set(_FIELDS)):
        yield f"{place}: unknown key {key!r}; the keys are {', '.join(_FIELDS)}"
    for key in (key for key in _REQUIRED if key not in table):
        yield f"{place}: {key!r} is missing"
    for key in (key for key in _FIELDS if key in table):
        if problem := _problem(key, table[key], today):
            yield f"{place}: {key!r}: {problem}"


def _problem(key: str, value: Any, today: dt.date) -> str:
    if key == "worst":
        number = isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
        return "" if number else f"expected a number, got {value!r}"
    if key == "until":
        return _problem_of_date(value, today)
    if not isinstance(value, str):
        return f"expected text, got {value!r}"
    if key in _REQUIRED and not value.strip():
        return "is empty"
    return _problem_of_range(value) if key == "versions" and value else ""


def _problem_of_date(value: Any, today: dt.date) -> str:
    try:
        until = _date(value)
    except (TypeError, ValueError):
        return f"expected a date such as 2027-01-31, got {str(value)!r}"
    latest = today + LONGEST
    return f"{until} is more than {LONGEST.days} days ahead; at most {latest}" if until > latest else ""


def _problem_of_range(value: str) -> str:
    try:
        version_range(value)
    except ValueError as error:
        return str(error)
    return ""


def _date(value: Any) -> dt.date:
    """A TOML date or the text of one; not a date with a time."""
    if isinstance(value, dt.date) and not isinstance(value, dt.datetime):
        return value
    return dt.date.fromisoformat(value)
