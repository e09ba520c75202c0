"""Puts an implementation into a model's rotary site, counts how often it runs there, and takes it out again.

For patches that users bring see ``patch_users``; for the audit of a patch ``patch_runs``.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import threading
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Self

from torch import nn

from assay.audits.families import discovery, sites
from assay.audits.patch_calls import Calls, Meter
from assay.audits.patch_runs import implementation
from assay.audits.patch_sites import callers, in_site_form
from assay.audits.patch_users import apply_users, patched_model
from assay.audits.terms import Family

__all__ = ["Calls", "Patch", "apply_users", "implementation", "patch", "patched_model"]

_STACKS: dict[tuple[str, str], list[Patch]] = {}
"""Patches in effect, by module and attribute, the newest last."""
_INSIDE = threading.local()
"""The modules of patched models whose forward is running in this thread."""


def patch(target: nn.Module | str, *, mrope: str | Callable[..., Any] = "kernel") -> Patch:
    """A patch of a model's rotary embedding, to be used in a ``with`` block or by ``apply`` and ``undo``.

    Args:
        target: a live model of a known family (only that model is changed), or the name of a family (every model of
            it in this process, now and later).
        mrope: ``"kernel"`` (fused Triton), ``"reference"`` (plain PyTorch), or a function with the signature of the
            function that it replaces.

    LookupError, naming the families, when the model is of none of them or the installed release lacks the site.
    """
    return Patch(target, mrope)


class Patch:
    """One replacement of a model's rotary-apply function. Patches nest, and are undone in any order."""

    def __init__(self, target: nn.Module | str, mrope: str | Callable[..., Any]) -> None:
        """Find the site; nothing is changed yet."""
        family, model = _known(target)
        found = _resolved(model, family)
        module, _, name = found.text_apply_name.partition(":")
        self._module: ModuleType = importlib.import_module(module)
        self._key = (module, name)
        self._original = getattr(self._module, name)
        self._function = mrope if callable(mrope) else in_site_form(mrope, family, self._original)
        self._within = callers(found.text_model, name) if isinstance(target, nn.Module) else None
        self.site = f"{module}.{name}"
        self._meter = Meter()
        self._meter.expect(self.site)
        self._counted = self._meter.wrap(self.site, self._function)
        self._below: Any = None
        self._mine: Any = None
        self._hooks: list[Any] = []

    @property
    def calls(self) -> Mapping[str, Calls]:
        """Calls of each site since the patch was made, forward and backward."""
        return self._meter.calls

    def apply(self) -> Self:
        """Put the replacement in. RuntimeError when it is in already."""
        if self._mine is not None:
            message = f"{self.site} is already patched by this patch"
            raise RuntimeError(message)
        self._below = getattr(self._module, self._key[1])
        self._mine = self._dispatch()
        self._hooks = [hook for caller in self._within or () for hook in _marked(caller, self)]
        setattr(self._module, self._key[1], self._mine)
        _STACKS.setdefault(self._key, []).append(self)
        return self

    def undo(self) -> None:
        """Put back exactly what was there. Does nothing when the patch is not in.

        RuntimeError when somebody else replaced the function after this patch: undoing that comes first.
        """
        if self._mine is None:
            return
        stack = _STACKS[self._key]
        place = stack.index(self)
        if place + 1 < len(stack):
            stack[place + 1]._below = self._below  # noqa: SLF001 - of the same class
        elif getattr(self._module, self._key[1]) is self._mine:
            setattr(self._module, self._key[1], self._below)
        else:
            message = f"{self.site} was replaced by other code after this patch; undo that first"
            raise RuntimeError(message)
        stack.remove(self)
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._mine, self._below = [], None, None

    def _dispatch(self) -> Callable[..., Any]:
        """What stands in the module: the replacement, or what was there before for models that are not ours."""

        @functools.wraps(self._original)
        def site(*args: Any, **kwargs: Any) -> Any:
            if self._within is None or self in getattr(_INSIDE, "patches", ()):
                return self._counted(*args, **kwargs)
            return self._below(*args, **kwargs)

        return site

    def __enter__(self) -> Self:
        """Apply."""
        return self.apply()

    def __exit__(self, *_: object) -> None:
        """Undo, also after an exception."""
        self.undo()


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


def _marked(caller: nn.Module, owner: Patch) -> list[Any]:
    """Hooks that say, while ``caller`` runs, that it belongs to ``owner``; gradient checkpointing runs them again."""

    def enter(*_: Any) -> None:
        _INSIDE.patches = [*getattr(_INSIDE, "patches", ()), owner]

    def leave(*_: Any) -> None:
        patches = list(getattr(_INSIDE, "patches", ()))
        if owner in patches:
            patches.remove(owner)
        _INSIDE.patches = patches

    return [caller.register_forward_pre_hook(enter), caller.register_forward_hook(leave, always_call=True)]
