"""Where in a model the audited operations live, and the live objects there in the installed release."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

ROPE_INDEX = "get_rope_index"


@dataclass(frozen=True, kw_only=True)
class Sites:
    """Paths from the model that ``Family.build`` returns. Where releases differ, alternatives in order of preference.

    ``package`` is the family's module (``qwen2_vl.modeling_qwen2_vl``), in which ``text_apply`` and ``vision_apply``
    name the functions that rotate queries and keys.
    """

    package: str
    text_model: tuple[str, ...] = ("model.language_model",)
    text_rotary: tuple[str, ...] = ("model.language_model.rotary_emb",)
    positions: tuple[str, ...] = ("model",)
    vision_rotary: tuple[str, ...] = ("model.visual.rotary_pos_emb",)
    text_apply: tuple[str, ...] = ("apply_multimodal_rotary_pos_emb", "apply_rotary_pos_emb")
    vision_apply: tuple[str, ...] = ("apply_rotary_pos_emb_vision",)


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """The live objects. What a release lacks is None, and ``missing`` says in words what and why.

    ``text_apply_name`` and ``vision_apply_name`` are ``module:function``: what a patch has to replace.
    """

    text_model: Any
    text_rotary: Any
    positions_owner: Any
    positions: Callable[..., Any] | None
    vision_rotary: Any
    text_apply: Callable[..., Any] | None
    text_apply_name: str
    vision_apply: Callable[..., Any] | None
    vision_apply_name: str
    missing: tuple[str, ...] = field(default=())


def resolve(model: Any, sites: Sites) -> Resolved:
    """Look every site up in ``model``."""
    missing: list[str] = []
    text_model = _module(model, sites.text_model, "text model", missing)
    owner = _module(model, sites.positions, "owner of get_rope_index", missing)
    positions = getattr(owner, ROPE_INDEX, None)
    if owner is not None and positions is None:
        missing.append(f"positions: {type(owner).__name__} has no {ROPE_INDEX}")
    vision_rotary = _module(model, sites.vision_rotary, "vision rotary", missing)
    text_apply, text_name = _function(sites, sites.text_apply, text_model, "text rotation", missing)
    vision = _parent(model, sites.vision_rotary)
    vision_apply, vision_name = _function(sites, sites.vision_apply, vision, "vision rotation", missing)
    return Resolved(
        text_model=text_model,
        text_rotary=_module(model, sites.text_rotary, "text rotary", missing),
        positions_owner=owner,
        positions=positions,
        vision_rotary=vision_rotary,
        text_apply=text_apply,
        text_apply_name=text_name,
        vision_apply=vision_apply,
        vision_apply_name=vision_name,
        missing=tuple(missing),
    )


@dataclass(frozen=True, kw_only=True)
class RotaryParameters:
    """What the text rotary of a model is parametrised by. ``rotary_dim`` counts channels: twice the frequencies."""

    inv_freq: Any
    sections: tuple[int, ...]
    rotary_dim: int
    attention_scaling: float


def rotary_parameters(model: Any, sites: Sites) -> RotaryParameters:
    """Read the live parameters off the text rotary, and off its configuration where the module does not keep them."""
    rotary = _module(model, sites.text_rotary, "text rotary", missing := [])
    if rotary is None:
        raise LookupError(missing[0])
    sections = getattr(rotary, "mrope_section", None) or _configured_sections(rotary.config)
    return RotaryParameters(
        inv_freq=rotary.inv_freq,
        sections=tuple(int(section) for section in sections),
        rotary_dim=2 * rotary.inv_freq.numel(),
        attention_scaling=float(rotary.attention_scaling),
    )


def _configured_sections(config: Any) -> tuple[int, ...]:
    """``rope_scaling`` is what releases before 5.0 call ``rope_parameters``."""
    for name in ("rope_parameters", "rope_scaling"):
        settings = getattr(config, name, None) or {}
        for key in ("mrope_section", "xdrope_section"):
            if settings.get(key):
                return tuple(settings[key])
    return ()


def _module(model: Any, paths: tuple[str, ...], what: str, missing: list[str]) -> Any:
    for path in paths:
        try:
            return model.get_submodule(path)
        except AttributeError:
            continue
    missing.append(f"{what}: {type(model).__name__} has no {' or '.join(paths) or 'such module'}")
    return None


def _parent(model: Any, paths: tuple[str, ...]) -> Any:
    return _module(model, tuple(path.rpartition(".")[0] for path in paths), "", [])


def _function(
    sites: Sites, names: tuple[str, ...], under: Any, what: str, missing: list[str]
) -> tuple[Callable[..., Any] | None, str]:
    """The first of ``names`` that code of the modules under ``under`` really reads as a global: not merely defined."""
    module_name = f"transformers.models.{sites.package}"
    module = sys.modules.get(module_name)
    for name in names:
        if hasattr(module, name) and under is not None and _reads(under, name):
            return getattr(module, name), f"{module_name}:{name}"
    missing.append(
        f"{what}: no attention of the model calls {' or '.join(names) or 'a known function'} of {module_name}"
    )
    return None, ""


def _reads(root: Any, name: str) -> bool:
    """Whether the ``forward`` of some module under ``root`` mentions the global ``name``."""
    kinds = {type(module) for module in root.modules()}
    codes = (getattr(inspect.unwrap(kind.forward), "__code__", None) for kind in kinds)
    return any(code is not None and name in code.co_names for code in codes)
