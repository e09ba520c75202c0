"""A replacement of a model's rotary-apply function, for one live model or for every model of a family."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import threading
from collections.abc import Callable
from typing import Any

from torch import nn

from assay.audits.families import discovery, sites
from assay.audits.patch_calls import Meter
from assay.audits.patch_sites import callers, in_site_form
from assay.audits.patch_slots import Slot
from assay.audits.terms import Family

_INSIDE = threading.local()
"""The modules of patched models whose forward is running in this thread."""


class RotaryPatch:
    """One replacement of a model's rotary-apply function."""

    def __init__(self, target: nn.Module | str, mrope: str | Callable[..., Any]) -> None:
        """Find the site; nothing is changed yet."""
        family, model = _known(target)
        found = _resolved(model, family)
        module, _, name = found.text_apply_name.partition(":")
        self.site = f"{module}.{name}"
        self._slot = Slot(importlib.import_module(module), name, self.site)
        function = mrope if callable(mrope) else in_site_form(mrope, family, self._slot.original)
        self._within = callers(found.text_model, name) if isinstance(target, nn.Module) else None
        self.meter = Meter()
        self._counted = self.meter.wrap(self.site, function)
        self._hooks: list[Any] = []

    def apply(self) -> None:
        """Put the replacement in. RuntimeError when it is in already."""
        self._slot.fill(self._dispatch())
        self._hooks = [hook for caller in self._within or () for hook in _marked(caller, self)]

    def undo(self) -> None:
        """Put back exactly what was there. Does nothing when the replacement is not in."""
        if self._slot.clear():
            for hook in self._hooks:
                hook.remove()
            self._hooks = []

    def _dispatch(self) -> Callable[..., Any]:
        """What stands in the module: the replacement, or what was there before for models that are not ours."""

        @functools.wraps(self._slot.original)
        def site(*args: Any, **kwargs: Any) -> Any:
            if self._within is None or self in getattr(_INSIDE, "patches", ()):
                return self._counted(*args, **kwargs)
            return self._slot.below(*args, **kwargs)

        return site


def _known(target: nn.Module | str) -> tuple[Family, nn.Module]:
    """The family of a target, and a model in which its sites can be looked up."""
    if isinstance(target, str):
        family = _family(target, f"no family {target!r}")
        return family, family.build(0)
    kinds = [getattr(getattr(module, "config", None), "model_type", "") for module in target.modules()]
    kinds = list(dict.fromkeys(kind for kind in kinds if kind))
    named = [name for kind in kinds for name in (kind, kind.partition("_thinker")[0], kind.removesuffix("_text"))]
    name = next((name for name in named if name in discovery.installed_families()), "")
    what = f"{type(target).__name__} (model type {(kinds or ['unknown'])[0]!r})"
    return _family(name, f"{what} is of no known family"), target


def _family(name: str, problem: str) -> Family:
    families = discovery.families()
    found = families.get(name, "")
    if isinstance(found, Family):
        return found
    known = ", ".join(name for name, item in families.items() if isinstance(item, Family))
    message = f"{problem}{f' ({found})' if found else ''}; families of the installed transformers: {known}"
    raise LookupError(message)


def _resolved(model: nn.Module, family: Family) -> sites.Resolved:
    """The sites of a model: the one with a head, the one without, or either inside wrappers (adapters, trainers)."""
    paths = family.sites.text_model
    either = dataclasses.replace(family.sites, text_model=(*paths, *(path.removeprefix("model.") for path in paths)))
    first = None
    for module in model.modules():
        found = sites.resolve(module, either)
        if found.text_apply is not None:
            return found
        first = first or found
    assert first is not None
    message = f"{family.name}: {'; '.join(first.missing)}"
    raise LookupError(message)


def _marked(caller: nn.Module, owner: RotaryPatch) -> list[Any]:
    """Hooks that say, while ``caller`` runs, that it belongs to ``owner``; gradient checkpointing runs them again."""

    def enter(*_: Any) -> None:
        _INSIDE.patches = [*getattr(_INSIDE, "patches", ()), owner]

    def leave(*_: Any) -> None:
        patches = list(getattr(_INSIDE, "patches", ()))
        if owner in patches:
            patches.remove(owner)
        _INSIDE.patches = patches

    return [caller.register_forward_pre_hook(enter), caller.register_forward_hook(leave, always_call=True)]
