"""A released package as it is audited: how it is installed, and which of its callables are candidates of what.

Each has a file in ``audits/peers/``, which imports nothing of the package: that is not here but in an environment of
its own, where a worker imports it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from assay.audits import registry
from assay.audits.terms import Candidate

FOLDER = "assay.audits.peers"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One release of one package.

    ``requirements`` are what ``peers/locks/NAME.txt`` is resolved from. ``variables`` are environment variables that it
    needs to be imported on a CPU. ``preload`` are its modules that candidates import: where they are not, all are
    UNKNOWN. ``candidates`` are made when they are asked for.
    """

    name: str
    source: str
    requirements: tuple[str, ...]
    candidates: Callable[[], Iterable[Candidate]]
    variables: Mapping[str, str] = field(default_factory=dict)
    preload: tuple[str, ...] = ()


def names() -> tuple[str, ...]:
    """Every peer, by file."""
    folder = Path(__file__).parent / "peers"
    found = (module.name for module in pkgutil.iter_modules([str(folder)]) if not module.name.startswith("_"))
    return tuple(sorted(name.replace("_", "-") for name in found))


def peer(name: str) -> Peer:
    """One peer. :class:`registry.Unknown` names those that there are."""
    if name not in names():
        message = f"no peer named {name!r}; there are: {', '.join(names())}"
        raise registry.Unknown(message)
    found: Peer = importlib.import_module(f"{FOLDER}.{name.replace('-', '_')}").PEER
    return found


def candidates(found: Peer, operation: str) -> tuple[Candidate, ...]:
    """What a peer has for an operation, each named ``peer:what``."""
    own = (item for item in found.candidates() if item.operation == operation)
    told = {"peer": found.name, "requires": list(found.preload)}
    return tuple(replace(item, target={**item.target, **told}) for item in own)


def calls(operation: str, name: str, ref: str, *, form: str = "", scope: Mapping[str, Any] | None = None,
          costly: bool = False) -> Candidate:  # fmt: skip
    """A callable ``package.module:function``, or what a peer's file makes of one, through a call form.

    ``scope`` are case parameters that it leaves no choice of.
    """
    target = {"kind": "import", "ref": ref, "operation": operation}
    return Candidate(
        operation=operation, name=name, form=form, origin=ref, target=target, scope=scope or {}, costly=costly
    )


def batches(name: str, ref: str) -> Candidate:
    """The pipeline that ``ref`` makes, in the peer's environment."""
    found = registry.pipeline_candidate("pipeline.batch", ref)
    assert found is not None
    return replace(found, name=name, by_name=False)


def patched(operation: str, name: str, family: str, patch: str) -> Candidate:
    """What a family's model does for an operation under the patch ``package.module:apply``."""
    found = registry.family_candidate(operation, family, patch)
    if found is None:
        message = f"operation: {operation} does not judge models of {family}"
        raise ValueError(message)
    return replace(found, name=name)


def unrunnable(operation: str, name: str, reason: str) -> Candidate:
    """A callable that cannot be run here, and why: UNKNOWN, never left out."""
    target = {"kind": "factory", "ref": "assay.audits.peer:refuse", "operation": operation, "reason": reason}
    return Candidate(operation=operation, name=name, target=target)


def refuse(target: Mapping[str, Any]) -> NoReturn:
    """Say why there is nothing to call."""
    raise RuntimeError(target["reason"])
