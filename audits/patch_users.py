"""A user's patch: applied before or after the model is built, its changes recorded, its callables counted."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from assay.audits.patch_calls import Meter
from assay.audits.patch_changes import Change, code_snapshot, difference, model_snapshot
from assay.audits.resolve import imported
from assay.audits.terms import Family


@dataclass(frozen=True, kw_only=True)
class Applied:
    """A model with a patch in effect: the model to run, what the patch changed, and the counter of its calls."""

    model: nn.Module
    changes: tuple[Change, ...]
    meter: Meter = field(default_factory=Meter)

    @contextlib.contextmanager
    def counted(self) -> Iterator[nn.Module]:
        """The model, while every changed callable is counted; afterwards all is as the patch left it."""
        undo: list[Callable[[], None]] = []
        try:
            for change in self.changes:
                undo.extend(_count(change, self.model, self.meter))
            yield self.model
        finally:
            for put_back in reversed(undo):
                put_back()


def apply_users(ref: str, family: Family, model: nn.Module | None = None) -> Applied:
    """Apply the patch ``package.module:function`` as its author would, and say what it changed.

    A function without required parameters runs before the model is built; one with a required parameter gets the
    model after that. What it returns takes the model's place when it is a module. ``model`` is the model to patch
    (for the second kind) or to search for changes (for the first); a fresh one is built when none is given. The model
    of the result is the one to run. TypeError when the function needs more than a model; what the patch raises
    passes through. Nothing is undone: call this in a process of its own.
    """
    function = imported(ref)
    given = model if model is not None else family.build(0)
    arguments = _arguments(function, ref, given)
    before = {**code_snapshot(given), **model_snapshot(given)}
    returned = function(*arguments.args, **arguments.kwargs)
    changes = difference(before, {**code_snapshot(given), **model_snapshot(given)})
    if not (arguments.args or arguments.kwargs):
        return Applied(model=_rebuilt(family, given), changes=changes)
    return Applied(model=returned if isinstance(returned, nn.Module) else given, changes=changes)


_IN_EFFECT: set[str] = set()
"""Patches without parameters that this process has applied: code is changed once, models each for itself."""


def patched_model(ref: str, family: Family) -> nn.Module:
    """A fresh tiny model under a user's patch, any number of times in one process, nothing recorded or counted."""
    if needs_model(ref):
        return apply_users(ref, family).model
    if ref in _IN_EFFECT:
        model: nn.Module = family.build(0)
        return model
    _IN_EFFECT.add(ref)
    return apply_users(ref, family).model


def _rebuilt(family: Family, like: nn.Module) -> nn.Module:
    """A model built by patched code with the weights, dtype and mode of one that was built before."""
    model: nn.Module = family.build(0)
    old = like.state_dict()
    fitting = {name: old[name] for name, value in model.state_dict().items() if _fits(value, old.get(name))}
    model.load_state_dict(fitting, strict=False)
    return model.to(next(like.parameters()).dtype).train(like.training)


def _fits(value: Any, old: Any) -> bool:
    return old is not None and value.shape == old.shape


def needs_model(ref: str) -> bool:
    """Whether a patch takes a model. TypeError when it needs anything else."""
    function = imported(ref)
    bound = _arguments(function, ref, None)
    return bool(bound.args or bound.kwargs)


def _arguments(function: Any, ref: str, model: Any) -> inspect.BoundArguments:
    if not callable(function):
        message = f"patch {ref}: expected a function, got {type(function).__name__}"
        raise TypeError(message)
    signature = inspect.signature(function)
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [p for p in signature.parameters.values() if p.default is p.empty and p.kind not in several]
    if len(required) > 1:
        message = f"patch {ref}: expected no required parameter or one, the model; got {signature}"
        raise TypeError(message)
    if required and required[0].kind is inspect.Parameter.KEYWORD_ONLY:
        return signature.bind(**{required[0].name: model})
    return signature.bind(*([model] if required else []))


def _count(change: Change, model: nn.Module, meter: Meter) -> Iterable[Callable[[], None]]:
    """Begin to count one change; gives what ends it. Nothing for values that cannot be called."""
    value = change.value
    if change.kind in ("submodule", "type", "tensor"):
        module = value if change.kind == "submodule" else change.owner
        return [meter.watch(change.site, module).remove] if isinstance(module, nn.Module) else []
    if isinstance(value, type):
        return _count_class(change.site, value, model, meter)
    return _count_function(change, meter)


def _count_class(site: str, kind: type, model: nn.Module, meter: Meter) -> Iterable[Callable[[], None]]:
    """A class of modules by the passes of its instances in the model, another one by the objects made of it."""
    meter.expect(site)
    if issubclass(kind, nn.Module):
        return [meter.watch(site, module).remove for module in model.modules() if isinstance(module, kind)]
    made = kind.__dict__.get("__init__")
    try:
        # Replacing a class's constructor is what is meant here: every object made of it counts.
        kind.__init__ = meter.wrap(site, kind.__init__)  # type: ignore[method-assign]  # replacing the constructor is the purpose
    except TypeError:
        return []
    if made is None:
        return [lambda: delattr(kind, "__init__")]
    return [lambda: setattr(kind, "__init__", made)]


def _count_function(change: Change, meter: Meter) -> Iterable[Callable[[], None]]:
    owner, name, value = change.owner, change.name, change.value
    wrapped = _wrapped(change, meter)
    if wrapped is None:
        return []
    if change.kind == "entry":
        owner[name] = wrapped
        return [lambda: owner.__setitem__(name, value)]
    if change.kind == "attribute":
        vars(owner)[name] = wrapped
        return [lambda: vars(owner).__setitem__(name, value)]
    setattr(owner, name, wrapped)
    return [lambda: setattr(owner, name, value)]


def _wrapped(change: Change, meter: Meter) -> Any:
    """The counted form of a changed callable, which binds as the callable does; None for what is none."""
    site, value = change.site, change.value
    if isinstance(value, staticmethod):
        return staticmethod(meter.wrap(site, value.__func__))
    if isinstance(value, classmethod):
        return classmethod(meter.wrap(site, value.__func__))
    if isinstance(value, property):
        return property(meter.wrap(site, value.fget), value.fset, value.fdel) if value.fget else None
    if change.kind == "method" and not inspect.isfunction(value):
        return None
    return meter.wrap(site, value) if callable(value) else None
