"""Puts a function into a model that places features at their placeholders, in the stead of ``Tensor.masked_scatter``.

While a patched model's forward runs, each scatter of whole rows [B,S,H] goes to the function. ``masked_scatter`` itself
takes what it finds: features that are left over are dropped without a word.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from assay.audits.families import scattering
from assay.audits.patch_calls import Meter
from assay.audits.patch_slots import Slot
from assay.reference.masked_scatter import scatter_features

Place = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(embeddings [B,S,H], mask [B,S], features [N,H])`` to embeddings [B,S,H]."""
_ONE = "placeholder"


class ScatterPatch:
    """One replacement of how a model places features, for one live model or for every model of a family's class."""

    def __init__(self, target: nn.Module | str, masked_scatter: str | Place) -> None:
        """Find the forward that scatters; nothing is changed yet."""
        place = masked_scatter if callable(masked_scatter) else _named(masked_scatter)
        model = _holder(scattering.build(target) if isinstance(target, str) else target)
        kind = type(model)
        self.site = f"{kind.__module__}.{kind.__qualname__}.forward:{scattering.SCATTERS}"
        self._only = None if isinstance(target, str) else weakref.ref(model)
        self._slot = Slot(kind, "forward", f"{kind.__qualname__}.forward")
        self.meter = Meter()
        self._place = self.meter.wrap(self.site, place)

    def apply(self) -> None:
        """Put the replacement in. RuntimeError when it is in already."""

        @functools.wraps(self._slot.original)
        def forward(model: Any, *args: Any, **kwargs: Any) -> Any:
            if self._only is not None and self._only() is not model:
                return self._slot.below(model, *args, **kwargs)
            with _Placing(self._place):
                return self._slot.below(model, *args, **kwargs)

        self._slot.fill(forward)

    def undo(self) -> None:
        """Put back exactly what was there. Does nothing when the replacement is not in."""
        self._slot.clear()


def reference(model: nn.Module) -> None:
    """The readable scatter as a user's patch."""
    ScatterPatch(model, "reference").apply()


class _Placing(TorchFunctionMode):
    """Sends scatters of whole rows to a function."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self._place = place

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func not in (Tensor.masked_scatter, torch.masked_scatter):
            return func(*args, **given)
        x, mask, source = (*args, *(given[name] for name in ("mask", "source") if name in given))
        rows = _whole_rows(x, mask)
        if rows is None:
            return func(*args, **given)
        width = x.shape[-1]
        if source.numel() % width:
            raise ValueError(f"features: expected rows of {width} numbers, got the shape {list(source.shape)}")
        return self._place(x, rows, source.reshape(-1, width))


def _whole_rows(x: Tensor, mask: Tensor) -> Tensor | None:
    """[B,S]: the rows of ``x`` [B,S,H] that a mask is for; None where it is for something else."""
    if x.ndim != 3 or mask.ndim != 3 or not x.is_floating_point() or mask.shape[:2] != x.shape[:2]:
        return None
    rows = mask[..., 0]
    return rows if mask.shape[-1] == 1 or bool((mask == rows[..., None]).all()) else None


def _reference(embeddings: Tensor, mask: Tensor, features: Tensor) -> Tensor:
    return scatter_features(mask.long(), embeddings, {_ONE: features}, {_ONE: 1})


def _named(name: str) -> Place:
    if name != "reference":
        message = f"masked_scatter: expected 'reference' or a callable, got {name!r}"
        raise ValueError(message)
    return _reference


def _holder(model: nn.Module) -> nn.Module:
    """The module whose own code scatters: the model itself, or one inside it."""
    for module in model.modules():
        if _scatters(type(module)):
            return module
    message = f"{type(model).__name__}: no class in it calls {scattering.SCATTERS}, so there is none to replace"
    raise LookupError(message)


def _scatters(kind: type[nn.Module]) -> bool:
    functions = [inspect.unwrap(value) for value in vars(kind).values() if inspect.isfunction(value)]
    return any(scattering.SCATTERS in function.__code__.co_names for function in functions)
