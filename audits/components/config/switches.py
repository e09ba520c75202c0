"""Reads task switches from a configuration, and from samples whether they hold anything for a task."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from assay.audits.making import called
from assay.audits.patch_runs import as_bytes
from assay.audits.terms import Outputs
from assay.audits.usage import BadUsage

MOST = 4096
"""Samples that are looked at of each split: of more, as many spread evenly."""
EMPTY = frozenset({"", "()", "null", "none", "nan"})
"""Texts that say, in a column of texts, that there is nothing."""
OFF = frozenset({"", "none", "null", "off", "disabled", "never"})
"""Choices that switch a task off."""
_ABSENT = object()


@dataclass(frozen=True, kw_only=True)
class TaskCall:
    """What to ask: there is one question."""


def answer(make: Callable[[], Any], _call: TaskCall) -> Outputs:
    """``record``: for each declared switch what the configuration says, and how many samples hold something for it."""
    return {"record": as_bytes(_read(make))}


@functools.lru_cache(maxsize=1)
def _made(make: Callable[[], Any]) -> tuple[Any, dict[str, list[Any]], dict[str, Any]]:
    made = called(make)
    config, samples, switches = (_part(made, name) for name in ("config", "samples", "switches"))
    if config is None:
        raise _wrong("config", "expected a mapping or an object with the switches, make() returned none")
    if not isinstance(switches, Mapping) or not switches:
        raise _wrong("switches", "expected a mapping from a switch of the configuration to a field of the samples")
    if samples is None or isinstance(samples, str):
        raise _wrong("samples", "expected a sequence of samples, or a mapping from a split to one")
    splits = samples if isinstance(samples, Mapping) else {"samples": samples}
    return config, {str(name): list(_spread(split)) for name, split in splits.items()}, dict(switches)


def _wrong(field: str, what: str) -> BadUsage:
    return BadUsage(f"make(): {field}: {what}")


def _spread(split: Any) -> Iterator[Any]:
    if not (hasattr(split, "__len__") and hasattr(split, "__getitem__")):
        if not isinstance(split, Iterable):
            raise _wrong("samples", f"expected sequences of samples, got a {type(split).__name__}")
        split = list(split)
    count = len(split)
    chosen = range(count) if count <= MOST else [place * (count - 1) // (MOST - 1) for place in range(MOST)]
    yield from (split[place] for place in chosen)


def _read(make: Callable[[], Any]) -> list[dict[str, Any]]:
    config, splits, switches = _made(make)
    return [_switch(config, splits, str(name), field) for name, field in switches.items()]


def _switch(config: Any, splits: Mapping[str, list[Any]], name: str, field: Any) -> dict[str, Any]:
    value = _found(config, name.removeprefix("!"))
    counts = {split: sum(_has(sample, field) for sample in samples) for split, samples in splits.items()}
    first = next((f"{split}[{place}]" for split, samples in splits.items()
                  for place, sample in enumerate(samples) if _has(sample, field)), "")  # fmt: skip
    return {
        "name": name,
        "field": field if isinstance(field, str) else getattr(field, "__name__", "a function"),
        "known": value is not _ABSENT,
        "value": "absent" if value is _ABSENT else repr(value)[:80],
        "on": value is not _ABSENT and state(value) != name.startswith("!"),
        "misread": isinstance(value, str) and value.strip().lower() in {"false", "no", "0", "0.0", "f", "n"},
        "counts": counts,
        "sizes": {split: len(samples) for split, samples in splits.items()},
        "first": first,
    }


def state(value: Any) -> bool:
    """Whether a value switches something on: a number that is not zero, a text that names no way of being off."""
    if isinstance(value, str):
        return value.strip().lower() not in OFF
    if isinstance(value, Mapping) and "enabled" in value:
        return state(value["enabled"])
    return bool(value)


def _part(made: Any, name: str) -> Any:
    return made.get(name) if isinstance(made, Mapping) else getattr(made, name, None)


def _found(config: Any, path: str) -> Any:
    """The value at a dotted path, through mappings and attributes; a key that has dots itself is tried first."""
    if isinstance(config, Mapping) and path in config:
        return config[path]
    for part in path.split("."):
        config = config.get(part, _ABSENT) if isinstance(config, Mapping) else getattr(config, part, _ABSENT)
        if config is _ABSENT:
            return _ABSENT
    return config


def _has(sample: Any, field: Any) -> bool:
    if callable(field):
        return holds(field(sample))
    return any(holds(value) for value in _values(sample, str(field).split(".")))


def _values(value: Any, parts: list[str]) -> Iterator[Any]:
    """What lies at a path; a list on the way is looked into."""
    if isinstance(value, list | tuple) and parts:
        for item in value:
            yield from _values(item, parts)
    elif not parts:
        yield value
    else:
        inner = value.get(parts[0]) if isinstance(value, Mapping) else getattr(value, parts[0], None)
        if inner is not None:
            yield from _values(inner, parts[1:])


def _says(text: str) -> bool:
    """Whether a text has anything in it, which may be the JSON of nothing."""
    text = text.strip()
    if text[:1] in {"[", "{"}:
        try:
            return holds(json.loads(text))
        except (ValueError, RecursionError):
            return True
    return text.lower() not in EMPTY


def holds(value: Any) -> bool:
    """Whether there is anything: not for None, NaN, false, zero, empty texts and collections, columns of nothing."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # a number of numpy's or torch's
        value = value.item()
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, str | bytes):
        return _says(value.decode(errors="replace") if isinstance(value, bytes) else value)
    if isinstance(value, int | float):
        return value != 0 and not math.isnan(value)
    if isinstance(value, Mapping):
        return any(holds(item) for item in value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return any(isinstance(item, int | float) or holds(item) for item in value)
    size = getattr(value, "numel", None) or getattr(value, "size", None)
    count = size() if callable(size) else size
    return count != 0 if isinstance(count, int) else True
