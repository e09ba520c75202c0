"""Which families with multi-axis rotary the installed transformers has, and which of them can be audited."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from assay.audits.families import _release

if TYPE_CHECKING:
    from assay.audits.terms import Family

_MULTI_AXIS = (b"mrope_section", b"xdrope_section", b"def get_rope_index")
"""What the source of a family with several position axes in its text model contains, in 4.57 to 5.23."""


@lru_cache(maxsize=1)
def installed_families() -> tuple[str, ...]:
    """Names of all such families, sorted, found by reading source text: transformers is not imported."""
    files = sorted(_release.models_folder().glob("*/modeling_*.py"))
    found = (path.parent.name for path in files if _mentions(path.read_bytes()))
    return tuple(sorted(set(found)))


def _mentions(source: bytes) -> bool:
    return any(word in source for word in _MULTI_AXIS)


def family(name: str) -> Family | str:
    """The family called ``name``, or in words why it cannot be audited here."""
    if name in UNBUILT:
        return UNBUILT[name]
    if name.startswith("_") or find_spec(f"{__package__}.{name}") is None:
        return f"{name}: no tiny model of it is written yet"
    module = import_module(f"{__package__}.{name}")
    found: Family = module.FAMILY
    if found.releases and not _release.within(found.releases):
        return f"{name}: needs transformers {found.releases}, installed is {_release.release()}"
    return found


def loaded(name: str) -> Family:
    """The family called ``name``. LookupError with the reason when it cannot be audited here."""
    return required(family(name))


def required(found: Family | str) -> Family:
    """What was found, LookupError when that is a reason and no family."""
    if isinstance(found, str):
        raise LookupError(found)
    return found


def families() -> dict[str, Family | str]:
    """Every installed family by name, each with its :class:`Family` or the reason why there is none."""
    return {name: family(name) for name in installed_families()}


_ONE_AXIS = "its text model has one position axis, so there is no multi-axis rotary to audit (its vision tower has)"

UNBUILT: dict[str, str] = {
    "glm_image": "glm_image: generates images: its processor appends the grid of a picture to be drawn to every prompt",
    "minicpmv4_7": "minicpmv4_7: cuts images into slices; their positions are not those of one grid",
    "neomme": "neomme: an encoder of either a text or one page; its positions come from the processor, not the model",
    "exaone4_5": f"exaone4_5: {_ONE_AXIS}",
    "lfm3_vl": f"lfm3_vl: {_ONE_AXIS}",
    "video_llama_3": f"video_llama_3: {_ONE_AXIS}",
}
"""Families that are known and have no tiny model here, each with the reason."""
