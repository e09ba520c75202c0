"""Turns a candidate's target, a small mapping, into the implementation that it names."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from assay.audits import registry
from assay.audits.terms import Form, Implementation, Inexpressible, Outputs


def implementation(target: Mapping[str, Any], form: str = "") -> Implementation:
    """The callable (inputs record in, named tensors out) that a target names.

    Kinds: ``import`` (``ref`` is ``package.module:function``), ``fault`` (``operation``, ``name``), ``factory``
    (``ref`` names a function that is given the target and returns the implementation). ``form`` is the call form of
    ``target["operation"]`` through which an imported function is called; empty when it takes the record itself. What
    is imported late may be named in ``requires``: without it nothing is loaded.
    """
    for module in target.get("requires", ()):
        importlib.import_module(module)
    kind = target["kind"]
    if kind == "import":
        function = imported(target["ref"])
        return _through(registry.form(target["operation"], form), function) if form else function
    if kind == "fault":
        return registry.fault(target["operation"], target["name"]).wrong
    if kind == "factory":
        made: Implementation = imported(target["ref"])(target)
        return made
    message = f"target kind must be import, fault or factory, got {kind!r}"
    raise ValueError(message)


def _through(form: Form, function: Any) -> Implementation:
    """The function behind its form, which is asked about every call: laws make others than those of the cases."""

    def call(inputs: Any) -> Outputs:
        if reason := form.accepts(inputs):
            raise Inexpressible(reason)
        return form.call(function, inputs)

    return call


def imported(ref: str) -> Any:
    """The object named ``package.module:attribute``. ValueError when the form is wrong; import errors pass through."""
    module, colon, qualname = ref.partition(":")
    if not colon or not module or not qualname:
        message = f"expected package.module:function, got {ref!r}"
        raise ValueError(message)
    found: Any = importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    return found
