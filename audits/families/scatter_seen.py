"""What a family's forward hands to its text model, seen on the way, and what follows from it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


class Reached(Exception):
    """Raised where the text model is called, to leave the forward with what it was given."""


@dataclass
class Seen:
    """What a run came by: the embeddings of the ids, and what the text model was called with.

    ``rewritten``: how many rows of the embedding table are others afterwards.
    """

    text: Tensor | None = None
    merged: Tensor | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    rewritten: int = 0


@contextlib.contextmanager
def watched(model: Any, ids: Tensor) -> Iterator[Seen]:
    """Sees what the embedding layer gives, and leaves the forward where the text model is called with embeddings."""
    seen = Seen()

    def embedded(_module: Any, _args: Any, output: Tensor) -> Tensor:
        if output.shape[:2] == ids.shape:
            seen.text = output  # the last one counts: some look ids up twice
            return output.clone()  # which the forward may write to
        return output

    def reached(_module: Any, args: Any, kwargs: Mapping[str, Any], *, layer: bool) -> None:
        merged = kwargs.get("inputs_embeds")
        if merged is None and layer and seen.text is not None:  # a model that is its own text model
            merged = kwargs.get("hidden_states", args[0] if args else None)
        if isinstance(merged, Tensor) and merged.shape[:2] == ids.shape and merged.is_floating_point():
            seen.merged, seen.given = merged, kwargs
            raise Reached

    layer = model.get_input_embeddings()
    handles = [layer.register_forward_hook(embedded)]
    layers = {part for module in model.modules() if isinstance(module, torch.nn.ModuleList) for part in module}
    handles += [
        part.register_forward_pre_hook(functools.partial(reached, layer=part in layers), with_kwargs=True)
        for name, part in model.named_modules() if name and part is not layer
    ]  # fmt: skip
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def upstream_of(merged: Tensor) -> Tensor:
    """The gradient that the backward pass begins with: no element is one, none like another."""
    draw = torch.Generator().manual_seed(7919)
    return (1.5 * torch.randn(merged.shape, generator=draw) + 0.25).to(merged.dtype)


def inner_gradients(seen: Seen, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``grad:deepstack:LAYER:MODALITY`` [N,H], for the rows of ``upstream`` at the places where that layer adds."""
    given, mask = seen.given.get("deepstack_visual_embeds"), seen.given.get("visual_pos_masks")
    if given is None or mask is None:
        return {}
    assert seen.merged is not None
    upstream = upstream_of(seen.merged)[mask[..., 0] if mask.ndim == 3 else mask]
    visual = {name: rows for name, rows in features.items() if name != "audio"}
    found = {}
    for layer, rows in enumerate(given):
        asked = rows.requires_grad and rows.shape == upstream.shape
        grads = (
            torch.autograd.grad(rows, list(visual.values()), upstream.to(rows), retain_graph=True, allow_unused=True)
            if asked else [None] * len(visual)
        )  # fmt: skip
        for (name, leaf), grad in zip(visual.items(), grads, strict=True):
            found[f"grad:deepstack:{layer}:{name}"] = torch.zeros_like(leaf) if grad is None else grad
    return found


def deepstack(seen: Seen, ids: Tensor) -> dict[str, Tensor]:
    """What each layer is to add, [B,S,H], from the mask and the rows that the text model was given."""
    given, mask = seen.given.get("deepstack_visual_embeds"), seen.given.get("visual_pos_masks")
    if given is None or mask is None:
        return {}
    assert seen.merged is not None
    mask = mask[..., 0] if mask.ndim == 3 else mask
    placed = {}
    for layer, rows in enumerate(given):
        out = torch.zeros_like(seen.merged)
        out[mask] = rows.detach().to(out)
        placed[f"deepstack:{layer}"] = out.detach()
    return placed | {"deepstack:mask": mask.expand_as(ids).clone()}
