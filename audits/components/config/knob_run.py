"""Answers about the knobs of something that is built: which there are, and what each of them changes."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from assay.audits.components.config.knob_probe import Change, Probe, compared, probe
from assay.audits.making import called
from assay.audits.patch_runs import as_bytes
from assay.audits.terms import Outputs
from assay.audits.usage import BadUsage

CONTEXTS = 12
"""Other knobs under whose second values one that seems dead is tried again."""

SWITCHES = re.compile(r"_step$|_interval$|_pattern$|_every|_freq$|first_k|_period$")
"""Whole numbers that say in which layers something is."""


@dataclass(frozen=True, kw_only=True)
class KnobCall:
    """What one ``knob`` changes; without, which knobs there are and whether building twice gives the same."""

    knob: str = ""


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """``build(**settings)`` makes what is judged. ``settings`` has the usual value of each knob and others to try.

    ``batches`` are what it is run on. ``together`` has, for a knob, further settings under which it acts; ``inert``
    the knobs that are not judged, each with the reason. ``tolerant``: a value that cannot be built is passed over.
    """

    build: Callable[..., Any]
    settings: Mapping[str, Sequence[Any]]
    batches: Sequence[Any]
    together: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    inert: Mapping[str, str] = field(default_factory=dict)
    tolerant: bool = False


def checked(made: Any) -> Knobs:
    """What ``make()`` returned. BadUsage names the part that is missing or wrong."""
    parts = {name: made.get(name) if isinstance(made, Mapping) else getattr(made, name, None)
             for name in ("build", "settings", "batch", "batches", "together", "inert")}  # fmt: skip
    if not callable(parts["build"]):
        raise _wrong("build", "expected a function that takes settings by name and returns a module or a function")
    settings = parts["settings"]
    if not isinstance(settings, Mapping) or not settings:
        raise _wrong("settings", "expected a mapping from a setting's name to two of its values")
    for name, values in settings.items():
        if not isinstance(values, tuple | list) or len(values) < 2 or repr(values[0]) == repr(values[1]):
            raise _wrong("settings", f"{name}: expected its usual value and another one, got {values!r}")
    batches = parts["batches"] if parts["batches"] is not None else [parts["batch"]]
    if not batches or any(batch is None for batch in batches):
        raise _wrong("batch", "expected what the built thing is called with: a mapping, a tuple, or a tensor")
    together = {name: (more,) if isinstance(more, Mapping) else tuple(more) for name, more in
                dict(parts["together"] or {}).items()}  # fmt: skip
    inert = parts["inert"] or {}
    inert = dict(inert) if isinstance(inert, Mapping) else dict.fromkeys(inert, "named as inert")
    return Knobs(build=parts["build"], settings=dict(settings), batches=list(batches), together=together, inert=inert)


def _wrong(field_: str, what: str) -> BadUsage:
    return BadUsage(f"make(): {field_}: {what}")


class Runner:
    """Knobs that are asked about one after another."""

    def __init__(self, knobs: Knobs) -> None:
        """Nothing is built yet."""
        self._knobs = knobs
        self._probes: dict[str, Probe] = {}

    def __call__(self, call: KnobCall) -> Outputs:
        """``record``, JSON as bytes."""
        return {"record": as_bytes(self._one(call.knob) if call.knob else self._all())}

    def _all(self) -> dict[str, Any]:
        knobs = self._knobs
        first = self._probe({}, keep=False)
        self._probes[repr({})] = first
        change = compared(first, self._probe({}, keep=False))
        names = [name for name in knobs.settings if name not in knobs.inert]
        return {"knobs": names, "inert": dict(knobs.inert), "raised": first.raised,
                "unlike": [*change.does, *change.held][:5]}  # fmt: skip

    def _probe(self, changes: Mapping[str, Any], *, keep: bool = True, until: Probe | None = None) -> Probe:
        usual = {name: values[0] for name, values in self._knobs.settings.items()}
        key = repr(sorted(changes.items(), key=lambda item: item[0]))
        if keep and key in self._probes:
            return self._probes[key]
        found = probe(lambda: self._knobs.build(**{**usual, **changes}), self._knobs.batches, until)
        if keep and len(self._probes) < CONTEXTS:
            self._probes[key] = found
        return found

    def _one(self, name: str) -> dict[str, Any]:
        """What a knob changes as things stand, or else with something else changed too."""
        usual, *others = self._knobs.settings[name]
        refused = ""
        best: Change | None = None
        used: Any = None
        for more in self._contexts(name):
            for other in others:
                try:
                    base = self._probe(more)
                    change = compared(base, self._probe({**more, name: other}, keep=False, until=base))
                except Exception as error:
                    if not self._knobs.tolerant:
                        raise
                    refused = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
                    continue
                if best is None or (best.dead and not change.dead) or (best.unread and change.does):
                    best, used = change, other
                if not change.dead and not change.unread:
                    return _told(usual, other, change, more)
        if best is None:
            return {"refused": refused or "no other value of it is known"}
        return _told(usual, used, best, {})

    def _contexts(self, name: str) -> list[Mapping[str, Any]]:
        declared = list(self._knobs.together.get(name, ()))
        others = [other for other in self._knobs.settings if other != name]
        if self._knobs.tolerant:  # of many: switches beside it
            head = name.rpartition(".")[0]
            others = [other for other in others if other.rpartition(".")[0] == head and self._switches(other)]
        pairs = [{other: self._knobs.settings[other][1]} for other in others]
        return [{}, *declared, *pairs][: CONTEXTS + 1]

    def _switches(self, name: str) -> bool:
        return isinstance(self._knobs.settings[name][0], bool) or bool(SWITCHES.search(name))


def _told(usual: Any, other: Any, change: Change, more: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "usual": repr(usual)[:60],
        "other": repr(other)[:60],
        "dead": change.dead,
        "unread": change.unread,
        "changes": [*change.does, *change.held][:4],
        "under": repr(dict(more)) if more else "",
    }


@functools.lru_cache(maxsize=1)
def _runner(make: Callable[[], Any]) -> Runner:
    return Runner(called(lambda: checked(make())))


def answer(make: Callable[[], Any], call: KnobCall) -> Outputs:
    """The answer about what ``make()`` returns, which is called once."""
    return _runner(make)(call)
