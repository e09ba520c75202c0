"""Why a changed callable was never called, as far as the code of the model tells."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import CodeType, ModuleType
from typing import Any

from torch import nn

from assay.audits.families import sites
from assay.audits.patch_changes import Change
from assay.audits.terms import Family


def why(change: Change, model: nn.Module, family: Family) -> str:
    """One sentence, without a full stop."""
    if change.kind == "function" and isinstance(change.owner, ModuleType):
        return _of_function(change, change.owner, model, family)
    if change.kind == "class":
        return f"no module of the model is a {change.value.__name__}" if isinstance(change.value, type) else "not used"
    if change.kind == "method":
        return _of_method(change, model)
    if change.kind == "entry":
        return "nothing looked the entry up while the model ran"
    return "the model did not call this module"


def _of_function(change: Change, module: ModuleType, model: nn.Module, family: Family) -> str:
    names = sorted({reader for reader, code in _codes(module) if change.name in _names(code)})
    if names:
        return f"in {module.__name__} it is read by {', '.join(names[:3])}, which did not run"
    text = f"no code in {module.__name__} reads this name"
    live = sites.resolve(model, family.sites).text_apply_name.partition(":")[2]
    rotary = live and "rotary" in change.name and live != change.name
    return f"{text}; the attention of the installed release calls {live}" if rotary else text


def _of_method(change: Change, model: nn.Module) -> str:
    users = [type(module) for module in model.modules() if change.owner in type(module).__mro__]
    if not users:
        return f"no module of the model is a {change.owner.__name__}"
    defined = next(kind for kind in users[0].__mro__ if change.name in vars(kind))
    if defined is not change.owner:
        return f"{users[0].__name__} takes {change.name} from {defined.__name__}"
    return f"the model has {len(users)} modules of the class, and none called it"


def _codes(module: ModuleType) -> Iterator[tuple[str, CodeType]]:
    """Name and code of the functions and methods that look their globals up in ``module``."""
    for name, value in list(vars(module).items()):
        members = vars(value).items() if isinstance(value, type) and value.__module__ == module.__name__ else ()
        for label, item in ((name, value), *((f"{name}.{key}", member) for key, member in members)):
            function = _plain(item)
            if function is not None and function.__globals__ is vars(module):
                yield label, function.__code__


def _plain(value: Any) -> Any:
    value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    try:
        value = inspect.unwrap(value)
    except ValueError:
        return None
    return value if inspect.isfunction(value) else None


def _names(code: CodeType) -> set[str]:
    """Every global or attribute name that a function mentions, its inner functions included."""
    inner = [name for const in code.co_consts if isinstance(const, CodeType) for name in _names(const)]
    return {*code.co_names, *inner}
