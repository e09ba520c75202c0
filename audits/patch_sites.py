"""The project's own rotations in the call signature of a model's rotary-apply function.

Letters: A axes, B batch, S tokens, H heads, D channels of a head, R rotated channels, L = R/2 lanes.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from assay.audits.terms import Family
from assay.reference.mrope_families import TEXT_ROTARIES

NO_ROTATION = ("hunyuan_vl",)
"""Families in whose tables, as transformers makes them, the two channels of a lane belong to different axes."""
Rotate = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""q [B,Hq,S,D], k [B,Hk,S,D], tables at full width, and the axis of each lane where there is a table per axis."""


def in_site_form(name: str, family: Family, original: Callable[..., Any]) -> Callable[..., Any]:
    """``kernel`` or ``reference`` as a function that can stand where ``original`` stands.

    Both known signatures are served: ``(q, k, cos, sin, mrope_section, unsqueeze_dim)`` with a table per axis, and
    ``(q, k, cos, sin, ...)`` with merged tables, of which the first R channels of a head are rotated. ValueError for
    another name, and for a family whose tables turn the two channels of a lane by different angles.
    """
    rotations = {"kernel": _kernel, "reference": _reference}
    if name not in rotations:
        message = f"mrope: expected 'kernel', 'reference' or a callable, got {name!r}"
        raise ValueError(message)
    if family.name in NO_ROTATION:
        message = (
            f"{family.name}: its tables turn the two channels of a lane by different axes, which is no rotation; "
            f"the {name} cannot stand in for it"
        )
        raise ValueError(message)
    plain = inspect.unwrap(original)
    pairing = TEXT_ROTARIES[family.rule].pairing
    rotate = functools.partial(rotations[name], pairing, _table_order(pairing, plain))
    return _adapted(plain, rotate)


def _table_order(pairing: str, original: Callable[..., Any]) -> str:
    """How a full table repeats its lanes: one copy after the other, or neighbours.

    Adjacent pairing came with halves until the rotary module itself began to repeat each lane; the older apply
    functions did that themselves.
    """
    if pairing == "half":
        return "halves"
    return "halves" if "repeat_interleave" in original.__code__.co_names else "neighbours"


def callers(text_model: nn.Module, name: str) -> list[nn.Module]:
    """The modules whose forward reads the global ``name``: the attentions, for a rotary-apply function."""
    return [module for module in text_model.modules() if name in _names(inspect.unwrap(type(module).forward))]


def _names(function: Any) -> tuple[str, ...]:
    code = getattr(function, "__code__", None)
    return code.co_names if code is not None else ()


def _adapted(original: Callable[..., Any], rotate: Rotate) -> Callable[..., Any]:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def site(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        k, sections = given["k"], given.get("mrope_section")
        order = _head_order(given["q"], given.get("unsqueeze_dim", 1))
        q_BHSD = order(given["q"])
        # One family rotates queries alone: the kernel turns pairs, so a query stands in for the missing key.
        k_BHSD = q_BHSD[:, :1].detach() if k is None else order(k)
        cos, sin = (table[None] if given["q"].dim() == 3 else table for table in (given["cos"], given["sin"]))
        axes = None if sections is None else _axes(tuple(int(size) for size in sections), cos.device)
        q_out, k_out = rotate(q_BHSD, k_BHSD, cos, sin, axes)
        q_out, k_out = order(q_out, back=True), order(k_out, back=True)
        return q_out if k is None else (q_out, k_out)

    return site


def _head_order(q: Tensor, unsqueeze_dim: int) -> Callable[..., Tensor]:
    """What makes [B,H,S,D] of a query or key, and with ``back`` the model's own order again.

    ``unsqueeze_dim`` says where a table gets a dimension for the heads: q may be [B,H,S,D], [B,S,H,D], or either
    without the batch.
    """
    place = unsqueeze_dim + (q.dim() == 3)
    if q.dim() not in (3, 4) or place not in (1, 2):
        message = f"unsqueeze_dim: expected the dimension of the heads, got {unsqueeze_dim!r} for q {list(q.shape)}"
        raise ValueError(message)

    def order(x: Tensor, *, back: bool = False) -> Tensor:
        x = x[None] if q.dim() == 3 and not back else x
        x = x.transpose(1, 2) if place == 2 else x
        return x[0] if q.dim() == 3 and back else x

    return order


@functools.lru_cache(maxsize=64)
def _axes(sections: tuple[int, ...], device: torch.device) -> Tensor:
    from assay.reference import mrope

    return mrope.lane_axes("chunked", sections).to(device)


def _kernel(
    pairing: str, order: str, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, axes: Tensor | None
) -> tuple[Tensor, Tensor]:
    from assay.kernels import mrope

    rotary_dim = cos.shape[-1]
    if pairing == "adjacent" and order == "halves":
        cos, sin = cos[..., : rotary_dim // 2], sin[..., : rotary_dim // 2]
    return mrope.rotate(q, k, cos, sin, axes=axes, pairing=pairing, rotary_dim=rotary_dim)


def _reference(
    pairing: str, order: str, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, axes: Tensor | None
) -> tuple[Tensor, Tensor]:
    from assay.reference import mrope

    tables = [_lanes(table, order, axes) for table in (cos, sin)]
    rotated = []
    for x in (q, k):
        wide = torch.promote_types(x.dtype, cos.dtype)
        cos_BSL, sin_BSL = (table.to(wide).expand(len(x), -1, -1) for table in tables)
        rotated.append(mrope.rotate(x.to(wide), cos_BSL, sin_BSL, pairing=pairing).to(x.dtype))
    return rotated[0], rotated[1]


def _lanes(table: Tensor, order: str, axes: Tensor | None) -> Tensor:
    """One value for each lane, [B,S,L], of a table at full width, merged over the axes where it has them."""
    lanes = table.shape[-1] // 2
    table = table[..., :lanes] if order == "halves" else table[..., 0::2]
    if axes is None:
        return table
    index = axes.view(1, 1, 1, lanes).expand(1, *table.shape[1:])
    return table.gather(0, index)[0]
