"""Where in a model the audited operations live, and the live objects there in the installed release."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

ROPE_INDEX = "get_rope_index"


@dataclass(frozen=True, kw_only=True)
class Sites:
    """Paths from the model that ``Family.build`` returns.

    Where releases differ, alternatives in order of preference; where a family has none (a vision tower with learned
    positions only), an empty tuple.

    ``text_apply`` and ``vision_apply`` name the functions that rotate queries and keys, as the attention's own module
    calls them.
    """

    text_model: tuple[str, ...] = ("model.language_model",)
    text_rotary: tuple[str, ...] = ("model.language_model.rotary_emb",)
    positions: tuple[str, ...] = ("model",)
    vision_rotary: tuple[str, ...] = ("model.visual.rotary_pos_emb",)
    text_apply: tuple[str, ...] = ("apply_multimodal_rotary_pos_emb", "apply_rotary_pos_emb")
    vision_apply: tuple[str, ...] = ("apply_rotary_pos_emb_vision",)


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """The live objects.

    What the family never has is None; what it should have and this release lacks is None, and ``missing`` says so.

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
    owners = [_module(model, (path,), "owner of get_rope_index", []) for path in sites.positions]
    owner = next((owner for owner in owners if hasattr(owner, ROPE_INDEX)), None)
    positions = getattr(owner, ROPE_INDEX, None)
    if positions is None and sites.positions:
        missing.append(f"positions: none of {', '.join(map(repr, sites.positions))} has {ROPE_INDEX}")
    vision_rotary = _module(model, sites.vision_rotary, "vision rotary", missing)
    text_apply, text_name = _function(sites.text_apply, text_model, "text rotation", missing)
    vision = _parent(model, sites.vision_rotary)
    vision_apply, vision_name = _function(sites.vision_apply, vision, "vision rotation", missing)
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
    """The frequencies and scaling that the text rotary has, and the sections that its configuration asks for."""
    missing: list[str] = []
    rotary = _module(model, sites.text_rotary, "text rotary", missing)
    if rotary is None:
        raise LookupError(missing[0])
    if not hasattr(rotary, "inv_freq"):
        return _of_layer_type(rotary)
    sections = _configured_sections(rotary.config) or getattr(rotary, "mrope_section", ())
    return _parameters(rotary.inv_freq, sections, rotary.attention_scaling)


def _of_layer_type(rotary: Any) -> RotaryParameters:
    """A rotary with parameters of its own for each type of layer: those of the first type, by name, that is rotated."""
    kind = min(rotary.rope_type)
    sections = getattr(rotary, "mrope_section", {}).get(kind) or _configured_sections(rotary.config, kind)
    return _parameters(getattr(rotary, f"{kind}_inv_freq"), sections, getattr(rotary, f"{kind}_attention_scaling"))


def _parameters(inv_freq: Any, sections: Iterable[Any], attention_scaling: float) -> RotaryParameters:
    """A matrix of frequencies (axis, lane), of which each lane has one that is not zero, is folded into its lanes."""
    lanes = inv_freq.sum(0) if inv_freq.dim() == 2 else inv_freq
    return RotaryParameters(
        inv_freq=lanes,
        sections=tuple(int(section) for section in sections),
        rotary_dim=2 * lanes.numel(),
        attention_scaling=float(attention_scaling),
    )


def _configured_sections(config: Any, kind: str = "") -> tuple[int, ...]:
    """``rope_scaling`` is what releases before 5.0 call ``rope_parameters``."""
    for name in ("rope_parameters", "rope_scaling"):
        settings = getattr(config, name, None) or {}
        settings = settings.get(kind, {}) if kind else settings
        for key in ("mrope_section", "xdrope_section"):
            if settings.get(key):
                return tuple(settings[key])
    return ()


def _module(model: Any, paths: tuple[str, ...], what: str, missing: list[str]) -> Any:
    if not paths:
        return None
    for path in paths:
        try:
            return model.get_submodule(path)
        except AttributeError:
            continue
    missing.append(f"{what}: {type(model).__name__} has no {' or '.join(paths)}")
    return None


def _parent(model: Any, paths: tuple[str, ...]) -> Any:
    return _module(model, tuple(path.rpartition(".")[0] for path in paths), "", [])


def _function(
    names: tuple[str, ...], under: Any, what: str, missing: list[str]
) -> tuple[Callable[..., Any] | None, str]:
    """The first of ``names`` that code of the modules under ``under`` really reads as a global: not merely defined."""
    for name in names:
        for code, namespace in _forwards(under):
            if name in code.co_names and name in namespace:
                return namespace[name], f"{namespace['__name__']}:{name}"
    if names:
        where = type(under).__name__ if under is not None else "the model"
        missing.append(f"{what}: no attention of {where} calls {' or '.join(names)}")
    return None, ""


def _forwards(root: Any) -> Iterator[tuple[CodeType, dict[str, Any]]]:
    """Code and globals of the undecorated ``forward`` of each class of module under ``root``."""
    kinds = {type(module): None for module in root.modules()} if root is not None else {}
    for kind in kinds:
        forward = inspect.unwrap(kind.forward)
        if hasattr(forward, "__code__"):
            yield forward.__code__, forward.__globals__
