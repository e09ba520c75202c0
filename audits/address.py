"""The address ``package.module:function`` of a function object, by which another process can import it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from typing import Any

from assay.audits.usage import BadUsage


def of(function: Callable[..., Any]) -> str:
    """The address of a function. BadUsage when another process could not import it from there."""
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", None)
    if not module or not name:
        raise _homeless(function, "it has no name: wrap it in a function at the top of a module")
    if "<" in name:
        raise _homeless(function, "it is a lambda or local to a function: define it at the top of a module")
    if module == "__main__" or not _importable(module):
        raise _homeless(function, f"module {module!r} is not on the import path: move it to one that is")
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is not function:
        raise _homeless(function, f"{module}:{name} is another object: give the one that the module holds")
    return f"{module}:{name}"


def _homeless(function: object, why: str) -> BadUsage:
    shown = getattr(function, "__qualname__", repr(function))
    return BadUsage(f"candidate {shown} cannot be audited: it runs in a worker process, and {why}")


def _importable(module: str) -> bool:
    """Whether a fresh process would find a module: what this one has already loaded does not count."""
    path, parts = None, module.split(".")
    for depth in range(1, len(parts) + 1):
        spec = _spec(".".join(parts[:depth]), path)
        if spec is None:
            return False
        path = spec.submodule_search_locations
    return True


def _spec(name: str, path: Any) -> ModuleSpec | None:
    specs = (finder.find_spec(name, path) for finder in sys.meta_path if hasattr(finder, "find_spec"))
    return next((spec for spec in specs if spec is not None), None)
