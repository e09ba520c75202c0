"""Correctness audits for the components that train vision-language models."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from assay.audits.guard import guard as guard
    from assay.audits.guard_callback import GuardCallback as GuardCallback
    from assay.audits.guard_terms import GuardStop as GuardStop
    from assay.audits.guard_terms import GuardWarning as GuardWarning
    from assay.audits.patches import patch as patch
    from assay.audits.pipelines import Pipeline as Pipeline

__version__ = "0.1.0"

_HERE = Path(__file__).parent
_BROKEN = [name for name in ("audits", "kernels", "reference") if not (_HERE / name).is_dir()]
if _BROKEN:
    raise ImportError(
        f"{', '.join(str(_HERE / name) for name in _BROKEN)}: expected a folder, or a symbolic link to one. The "
        "checkout or archive has turned the links into text files, or lost them: clone with git config core.symlinks "
        "true, or install a wheel."
    )

_LAZY = {
    "GuardCallback": "assay.audits.guard_callback",
    "GuardStop": "assay.audits.guard_terms",
    "GuardWarning": "assay.audits.guard_terms",
    "Pipeline": "assay.audits.pipelines",
    "guard": "assay.audits.guard",
    "patch": "assay.audits.patches",
}
"""Public names, and the module that each comes from when it is first used: importing assay imports no torch."""


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _LAZY:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    """The public names, those not yet imported included."""
    return sorted([*globals(), *_LAZY])
