"""One run of a pipeline's model on a batch: the loss, a score for each token, the positions that were really used."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from assay.audits.terms import Inexpressible, Outputs

ROWS = 512
"""Tokens whose probabilities are computed together: a vocabulary is wide."""
_VISION = ("vision", "visual", "audio")


def accepted(model: nn.Module, name: str) -> bool:
    """Whether the forward can be handed an argument, by name or among the rest."""
    found = _parameters(model)
    return name in found or any(item.kind is inspect.Parameter.VAR_KEYWORD for item in found.values())


def refused(model: nn.Module, batch: Mapping[str, Any]) -> list[str]:
    """The keys of a batch that the forward does not take."""
    return sorted(str(name) for name in batch if not accepted(model, str(name)))


def _parameters(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    """Of the forward that is called: a wrapper's own, or that of an instance that was patched."""
    return inspect.signature(model.forward).parameters


def forward(model: nn.Module, batch: Mapping[str, Any], *, items: int, gradients: bool) -> Outputs:
    """One forward in eval mode with what the model takes of the batch, the cache turned off as ``Trainer`` does it.

    ``scores`` [B,S]: the log-probability of the next token of the row, 0 at the last. ``loss`` where there are labels.
    ``positions`` [A,B,S] where a rotary module could be watched. With ``gradients``: ``grads`` [P,2], for each
    parameter its gradient's product with a fixed random tensor, and its norm.
    """
    model.eval()
    given = _given(model, batch)
    asked: dict[str, Any] = {"num_items_in_batch": torch.tensor(items)} if items else {}
    model.zero_grad(set_to_none=True)
    with torch.set_grad_enabled(gradients), as_trainer(model), watched(model) as seen:
        answer = model(**given, **asked)
    logits, loss = (_told(answer, name) for name in ("logits", "loss"))
    if logits is None:
        raise Inexpressible("the model's forward returns no logits")
    out = {"scores": scores(logits.detach(), given["input_ids"])}
    if loss is not None:
        out["loss"] = loss.detach().double().reshape(1)
        if gradients and loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            out["grads"] = _projected(model)
    return out | ({"positions": seen[0]} if seen else {})


def _told(answer: Any, name: str) -> Tensor | None:
    """A part of what a forward returned, by key or by attribute."""
    found = answer.get(name) if isinstance(answer, Mapping) else getattr(answer, name, None)
    return found if isinstance(found, Tensor) else None


def _given(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    first = next(model.parameters())
    given = {name: value for name, value in batch.items() if value is not None and accepted(model, name)}
    for name, value in given.items():
        if isinstance(value, Tensor):
            wide = first.dtype if value.is_floating_point() and not name.startswith("second") else value.dtype
            given[name] = value.to(device=first.device, dtype=wide)
    return given


def scores(logits: Tensor, ids: Tensor) -> Tensor:
    """The log-probability [B,S] of each next token, in float64; 0 at the last of a row."""
    logits, ids = logits.reshape(-1, *logits.shape[-2:]), ids.reshape(-1, ids.shape[-1])
    out = torch.zeros(ids.shape, dtype=torch.float64)
    for row in range(len(ids)):
        for start in range(0, ids.shape[1] - 1, ROWS):
            stop = min(start + ROWS, ids.shape[1] - 1)
            wide = logits[row, start:stop].double().log_softmax(-1)
            out[row, start:stop] = wide.gather(-1, ids[row, start + 1 : stop + 1, None])[:, 0].cpu()
    return out


def _projected(model: nn.Module) -> Tensor:
    """[P,2]; a sum of gradients has the sum of their products."""
    found = []
    for place, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
        if parameter.grad is None:
            found.append((0.0, 0.0))
            continue
        draw = torch.Generator().manual_seed(place)
        grad = parameter.grad.detach().double().cpu()
        direction = torch.randn(grad.shape, generator=draw, dtype=torch.float64)
        found.append((float((grad * direction).sum()), float(grad.norm())))
    return torch.tensor(found, dtype=torch.float64).reshape(-1, 2)


@contextlib.contextmanager
def as_trainer(model: nn.Module) -> Iterator[None]:
    """With ``use_cache`` off in the model's configuration, and left as it is in that of its parts."""
    config = getattr(model, "config", None)
    before = getattr(config, "use_cache", None)
    if config is not None:
        config.use_cache = False
    try:
        yield
    finally:
        if config is not None:
            config.use_cache = before


class _Enough(Exception):
    """Ends a forward that has shown its positions."""


def used_positions(model: nn.Module, batch: Mapping[str, Any]) -> Outputs:
    """``positions`` alone, as of :func:`forward`: the run ends where the decoder is told them."""
    model.eval()
    with torch.no_grad(), contextlib.suppress(_Enough), as_trainer(model), watched(model, enough=True) as seen:
        model(**_given(model, batch))
    return {"positions": seen[0]} if seen else {}


@contextlib.contextmanager
def watched(model: nn.Module, *, enough: bool = False) -> Iterator[list[Tensor]]:
    """The ``position_ids`` [A,B,S] that reach the decoder's rotary modules, one entry for each of their calls.

    ``enough``: the first one ends the run.
    """
    seen: list[Tensor] = []

    def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("position_ids", args[1] if len(args) > 1 else None)
        if isinstance(ids, Tensor) and ids.ndim in {2, 3}:
            seen.append(ids.detach().clone().reshape(-1, *ids.shape[-2:]))
            if enough:
                raise _Enough

    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module in rotaries(model)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def rotaries(model: nn.Module) -> list[nn.Module]:
    """The rotary modules of the language model: by their class names and their argument ``position_ids``."""
    found = []
    for name, module in model.named_modules():
        where = f"{name} {type(module).__name__}".lower()
        decoder = "rotary" in where and not any(word in where for word in _VISION)
        if decoder and "position_ids" in inspect.signature(module.forward).parameters:
            found.append(module)
    return found
