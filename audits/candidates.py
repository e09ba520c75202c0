"""Candidates that the project itself puts forward: functions by name, and what a family of transformers does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from assay.audits.terms import Candidate


def of_function(operation: str, name: str, ref: str, *, origin: str, form: str = "", costly: bool = False) -> Candidate:
    """The function ``package.module:function``, called as ``form`` says; ``origin`` is the package it comes from."""
    target = {"kind": "import", "ref": ref, "operation": operation}
    return Candidate(operation=operation, name=name, form=form, origin=origin, costly=costly, target=target)


def of_reference(operation: str, ref: str, *, origin: str, form: str = "") -> Candidate:
    """The specification, which runs in the judge's own process; without a form it takes the inputs record itself."""
    target = {"kind": "import", "ref": ref, "operation": operation}
    return Candidate(operation=operation, name="reference", form=form, origin=origin, trusted=True, target=target)


def of_family(
    operation: str, family: str, patch: str, *, factory: str, scope: Mapping[str, Any], site: str = ""
) -> Candidate:
    """What the installed transformers does for ``family``, under ``patch`` if there is one.

    ``factory`` makes it in the worker; ``site`` tells it which of the family's functions, where there are several.
    ``scope`` are the case parameters that belong to the family.
    """
    told = {"family": family, "patch": patch, **({"site": site} if site else {})}
    return Candidate(
        operation=operation, name=f"{family}+{patch}" if patch else family, origin="transformers", scope=scope,
        target={"kind": "factory", "ref": factory, "operation": operation, **told},
    )  # fmt: skip
