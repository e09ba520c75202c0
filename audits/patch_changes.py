"""What a patch changed: a snapshot of every place where patches are made, and the difference of two of them."""

from __future__ import annotations

import inspect
import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal

from torch import Tensor, nn

from assay.audits.observe import same_bits

Kind = Literal["function", "class", "method", "entry", "attribute", "submodule", "tensor", "type"]
"""Of a module's namespace; of a class; of a registry (a dict of callables); and of the instances in one model:
an attribute that hides a method, a submodule, a parameter or buffer, the class of a module."""

ALWAYS = ("torch", "torch.nn.functional")
FOREIGN = ("torch", "builtins", "typing", "abc")
REGISTRIES = ("_global_mapping", "_local_mapping")
ABSENT: Any = type("Absent", (), {"__repr__": lambda _self: "absent"})()


@dataclass(frozen=True, kw_only=True)
class Place:
    """One name in one owner, and what it held. ``kept`` is a copy of a tensor, to notice changes in place."""

    owner: Any
    name: str
    kind: Kind
    site: str
    value: Any
    kept: Tensor | None = None


Snapshot = Mapping[tuple[int, str], Place]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One place that holds something else than before: ``before`` and ``after`` name what it held and holds."""

    site: str
    kind: Kind
    before: str
    after: str
    owner: Any = field(repr=False, compare=False)
    name: str = field(repr=False, compare=False)
    value: Any = field(repr=False, compare=False)


def code_snapshot(model: nn.Module) -> Snapshot:
    """Functions, classes, methods and registries that a model's code may use.

    All of transformers as far as it is loaded, the modules and classes that the model is made of, torch's functions.
    """
    kinds = {kind: None for module in model.modules() for kind in type(module).__mro__ if kind is not object}
    homes = [sys.modules[kind.__module__] for kind in kinds if kind.__module__ in sys.modules]
    kinds |= {item: None for home in homes if _ours(home) for item in vars(home).values() if _defined_in(item, home)}
    namespaces = {id(module): module for module in (*_loaded(), *filter(_ours, homes))}
    places = [place for namespace in namespaces.values() for place in _namespace(namespace)]
    places += [place for kind in kinds for place in _class(kind)]
    return {(id(place.owner), place.name): place for place in places}


def model_snapshot(model: nn.Module) -> Snapshot:
    """What the modules of one live model hold themselves."""
    places = [place for path, module in model.named_modules() for place in _instance(path, module)]
    return {(id(place.owner), place.name): place for place in places}


def difference(before: Snapshot, after: Snapshot) -> tuple[Change, ...]:
    """The changes from one snapshot to a later one, sorted by site.

    Owners that the first does not know are left out (a module imported in between changed nothing), and so are new
    names for something old (a patch that keeps the original at hand).
    """
    owners = {owner for owner, _ in before}
    old = {id(place.value) for place in before.values()}
    found = [
        _change(place, before[key].value if key in before else ABSENT, place.value)
        for key, place in after.items()
        if key[0] in owners and (_differs(before[key], place) if key in before else id(place.value) not in old)
    ]
    left = {owner for owner, _ in after}
    gone = [_change(place, place.value, ABSENT) for key, place in before.items() if key not in after and key[0] in left]
    return tuple(sorted((*found, *gone), key=lambda change: change.site))


def _change(place: Place, before: Any, after: Any) -> Change:
    return Change(
        site=place.site, kind=place.kind, before=described(before), after=described(after),
        owner=place.owner, name=place.name, value=after,
    )  # fmt: skip


def _differs(before: Place, after: Place) -> bool:
    if before.kept is not None and after.kept is not None:
        return not same_bits(before.kept, after.kept)
    return before.value is not after.value


def described(value: Any) -> str:
    """A callable by its dotted name, a tensor by its shape, anything else by its type."""
    if value is ABSENT:
        return "absent"
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, nn.Module):
        value = type(value)
    plain = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    if inspect.isfunction(plain):  # what functools.wraps copies would name the wrapped function
        return f"{plain.__globals__.get('__name__', '')}.{plain.__code__.co_qualname}"
    name = getattr(plain, "__qualname__", None)
    return f"{plain.__module__}.{name}" if name else type(plain).__name__


def _loaded() -> Iterator[ModuleType]:
    """Modules of transformers that have been imported. Lazy packages gain names whenever one is used: left out."""
    for name, module in sorted(sys.modules.items()):
        if name in ALWAYS or (name.startswith("transformers.") and type(module) is ModuleType):
            yield module


def _ours(module: ModuleType) -> bool:
    """Modules of model code, wherever it lives; torch's own are not searched for classes."""
    return type(module) is ModuleType and module.__name__.partition(".")[0] not in FOREIGN


def _defined_in(item: Any, home: ModuleType) -> bool:
    return isinstance(item, type) and item.__module__ == home.__name__


def _namespace(module: ModuleType) -> Iterator[Place]:
    for name, value in list(vars(module).items()):
        site = f"{module.__name__}.{name}"
        if isinstance(value, type):
            yield Place(owner=module, name=name, kind="class", site=site, value=value)
        elif callable(value) and not name.startswith("__"):
            yield Place(owner=module, name=name, kind="function", site=site, value=value)
        if module.__name__ not in ALWAYS:
            for registry in _registries(value):
                yield from _entries(site, registry)


def _registries(value: Any) -> Iterator[dict[Any, Any]]:
    if type(value) in (dict, OrderedDict):
        yield value
    elif not isinstance(value, type):
        yield from (table for name in REGISTRIES if type(table := _own(value, name)) is dict)


def _own(value: Any, name: str) -> Any:
    """An attribute found without running any code of the object."""
    return inspect.getattr_static(value, name, None)


def _entries(site: str, registry: dict[Any, Any]) -> Iterator[Place]:
    for key, value in list(registry.items()):
        if isinstance(key, str) and (inspect.isfunction(value) or isinstance(value, type)):
            yield Place(owner=registry, name=key, kind="entry", site=f"{site}[{key!r}]", value=value)


def _class(kind: type) -> Iterator[Place]:
    for name, value in list(vars(kind).items()):
        if inspect.isroutine(value) or isinstance(value, (property, staticmethod, classmethod)):
            site = f"{kind.__module__}.{kind.__qualname__}.{name}"
            yield Place(owner=kind, name=name, kind="method", site=site, value=value)


def _instance(path: str, module: nn.Module) -> Iterator[Place]:
    where = path or "model"
    yield Place(owner=module, name="__class__", kind="type", site=f"{where} (class)", value=type(module))
    for name, value in vars(module).items():
        if callable(value) and not isinstance(value, (nn.Module, type)):
            yield Place(owner=module, name=name, kind="attribute", site=f"{where}.{name}", value=value)
    for name, child in vars(module)["_modules"].items():  # named_children leaves out a module that stands twice
        yield Place(owner=module, name=name, kind="submodule", site=f"{where}.{name}", value=child)
    tensors: Iterable[tuple[str, Tensor]] = (
        *module.named_parameters(recurse=False), *module.named_buffers(recurse=False)
    )  # fmt: skip
    for name, tensor in tensors:
        kept = tensor.detach().clone()
        yield Place(owner=module, name=name, kind="tensor", site=f"{where}.{name}", value=tensor, kept=kept)
