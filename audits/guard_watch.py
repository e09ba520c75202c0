"""Watches one step of an optimiser: what goes into the forward passes, what comes out, and what is done with it.

The hooks are there for this step alone. They keep small copies where the tensors lie, and wait for nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from assay.audits.components.pipeline.views import IGNORED
from assay.audits.guard_model import Places
from assay.audits.guard_parcel import fetch

SMALL = 1 << 22
"""Elements of a tensor of whole numbers that is copied for the laws: ids, masks, grids. Pixels are not."""
FEW = 4096
"""The same for floating numbers: durations of videos."""


class Watch:
    """The hooks of one checked step. ``pick`` is which of its micro-batches is looked at, the first where it has less.

    ``called`` has the parts that ran, and whether autograd recorded what they gave. ``late`` is called where a forward
    begins after the step was taken: another has begun, but where the optimizer itself runs it (``stepping``).
    ``emptied``: gradients were gone when a later forward began, so a step may have been left out. ``failed`` says how a
    hook broke down, which ends no training.
    """

    def __init__(self, places: Places, pick: int, late: Callable[[], None]) -> None:
        """Put the hooks in."""
        self._places, self._pick, self._late = places, pick, late
        self._opener: nn.Module | None = None
        self._inner_loss: Tensor | None = None
        self.micros = 0
        self.taken = False
        self.stepping = False
        self.emptied = False
        self.scaled = False
        self.failed = ""
        self.called: dict[str, bool] = {}
        self.notes: dict[str, Any] = {}
        self._given: dict[str, Any] = {}
        self._kept: dict[str, Tensor] = {}
        self._media: dict[str, Any] = {}
        self._losses: list[Tensor] = []
        self._counts: list[Tensor] = []
        self._items: list[Tensor | None] = []
        self._handles: list[Any] = []
        try:
            self._hook()
        except BaseException:
            self.close()
            raise

    def _hook(self) -> None:
        places, add, safe = self._places, self._handles.append, self._safe
        for module in places.outer:
            add(module.register_forward_pre_hook(self._beginning, with_kwargs=True))
            add(module.register_forward_hook(safe(self._after), always_call=True))
        for module in places.rotaries:
            add(module.register_forward_pre_hook(safe(self._positions), with_kwargs=True))
        if places.attention is not None:
            add(places.attention.register_forward_pre_hook(safe(self._attended), with_kwargs=True))
        if places.projector is not None:
            add(places.projector.register_forward_hook(safe(self._projected)))
        for name, part in places.parts.items():
            add(part.register_forward_hook(safe(self._noting(name))))

    def _safe(self, hook: Callable[..., None]) -> Callable[..., None]:
        """A hook that ends no training. Where a model is compiled it is traced, and nothing of it is left."""

        def spared(*args: Any) -> None:
            if torch.compiler.is_compiling():
                return
            try:
                hook(*args)
            except Exception as error:  # noqa: BLE001 - what is looked at is foreign, of any kind
                self.failed = f"{type(error).__name__}: {error}"

        return spared

    def _beginning(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        if self._inside:
            self._safe(self._within)(module, args, kwargs)
        elif not self.taken:
            self._safe(self._before)(module, args, kwargs)
        elif not self.stepping:
            self._late()

    @property
    def _inside(self) -> bool:
        return self._opener is not None

    def _within(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The model inside of a wrapper is called: what it is not given, it makes no loss of."""
        if self.looked() and module is not self._opener:
            self.notes["labelled"] = _bound(module, args, kwargs).get("labels") is not None

    def close(self) -> None:
        """Take the hooks out, and let go of what was kept."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._given, self._media, self._kept = {}, {}, {}
        self._opener = self._inner_loss = None

    def hand(self, batch: Mapping[str, Any] | None = None, items: Any = None) -> None:
        """What the next forward is about, beside its own arguments: a trainer may keep labels to itself."""
        self._given = dict(batch or {})
        if items is not None:
            self._given.setdefault("num_items_in_batch", items)

    def looked(self) -> bool:
        """Whether the micro-batch that runs, or ran last, is the one that is looked at."""
        return self.micros - 1 in {0, self._pick}

    def saw(self, batch: Mapping[str, Any] | None, loss: Tensor | None) -> None:
        """More about the micro-batch that ran last: what its forward was not given, and the loss made of it."""
        if not self.micros:
            self._opened(dict(batch or {}))
        elif batch:
            self._opened({**self._media, **batch} if self.looked() else dict(batch), again=True)
        self._lost(loss)

    def finished(self, before: int, loss: Tensor | None) -> None:
        """A trainer's step is over, with this loss, before which ``before`` forwards had been seen."""
        if self.micros == before:
            self._opened({name: value for name, value in self._given.items() if value is not None})
        if len(self._losses) < self.micros:
            self._lost(loss)
        self._given = {}

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._opener, self._inner_loss = module, None
        gone = self.micros and all(one.grad is None for one in module.parameters() if one.requires_grad)
        self.emptied = self.emptied or bool(gone)
        with torch.no_grad():
            own = {name: value for name, value in self._given.items() if value is not None}
            bound = _bound(module, args, kwargs)
            self._opened(own | bound)
            if self.looked():
                self.notes["labelled"] = bound.get("labels") is not None

    def _opened(self, batch: dict[str, Any], *, again: bool = False) -> None:
        batch = {name: value for name, value in batch.items() if value is not None}
        if again:
            self._counts.pop()
            self._items.pop()
        else:
            self.micros += 1
        self._counts.append(_counted(batch))
        items = batch.pop("num_items_in_batch", None)
        self._items.append(items if items is None or isinstance(items, Tensor) else torch.tensor(items))
        if not self.looked():
            return
        self._media = {name: _released(value) for name, value in batch.items()}
        if not again:
            self._kept, self.notes = {}, {}
        self._kept |= {f"batch.{name}": small for name, value in batch.items() if (small := _small(value)) is not None}
        shapes = {name: list(value.shape) for name, value in batch.items() if isinstance(value, Tensor)}
        self.notes |= {"shapes": shapes, "micro": self.micros - 1, "half": _in_half()}

    def _after(self, module: nn.Module, _args: Any, output: Any) -> None:
        if not self._inside or not torch.is_grad_enabled():
            return
        loss = _loss(output)
        if module is not self._opener:
            self._inner_loss = None if loss is None else loss.detach()
            return
        self._lost(self._inner_loss if loss is None else loss)
        self._opener = self._inner_loss = None

    def _lost(self, loss: Tensor | None) -> None:
        if loss is not None:
            self._losses.append(loss.detach().mean().float())

    def _positions(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._looking() or "used.positions" in self._kept:
            return
        ids = kwargs.get("position_ids", args[1] if len(args) > 1 else None)
        if isinstance(ids, Tensor) and ids.ndim in {2, 3}:
            self._kept["used.positions"] = ids.detach().clone().reshape(-1, *ids.shape[-2:])

    def _attended(self, module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        if not self._looking() or "attention" in self.notes:
            return
        mask = kwargs.get("attention_mask")
        # One that is given no mask by this name may have it by another, or by its place.
        none = "none" if "attention_mask" in kwargs else "by another name"
        told = {"by": str(getattr(getattr(module, "config", None), "_attn_implementation", "")), "mask": none}
        if isinstance(mask, Tensor):
            told["mask"] = f"{mask.ndim}d"
            if mask.ndim == 4 and mask.shape[-1] == mask.shape[-2]:
                before = mask.detach()[:, 0].diagonal(-1, -2, -1)
                self._kept["used.sees"] = before.clone() if before.dtype == torch.bool else before == 0
        elif mask is not None:
            told["mask"] = type(mask).__name__
        self.notes["attention"] = told

    def _projected(self, _module: Any, _args: Any, output: Any) -> None:
        if self._looking() and isinstance(output, Tensor):
            self.notes["projected"] = list(output.shape)

    def _noting(self, name: str) -> Callable[..., None]:
        def note(_module: Any, _args: Any, output: Any) -> None:
            if self._inside:
                self.called[name] = self.called.get(name, False) or _recorded(output)

        return note

    def _looking(self) -> bool:
        return self._inside and self.looked()

    def tensors(self) -> dict[str, Tensor]:
        """What was kept, where it lies."""
        empty = torch.zeros(0)
        named = {"loss": self._losses, "counts": self._counts}
        found = {f"step.{name}": _stacked(held) if held else empty for name, held in named.items()}
        if self._items and all(item is not None for item in self._items):
            found["step.items"] = _stacked([item for item in self._items if item is not None])
        return self._kept | found

    def media(self) -> dict[str, Tensor]:
        """All tensors of the batch that was looked at, on the CPU: for the file that is written of a finding."""
        own = {f"batch.{name}": value for name, value in self._media.items() if isinstance(value, Tensor)}
        return fetch(own)


def _stacked(held: list[Tensor]) -> Tensor:
    return torch.stack([one.to(held[0].device) for one in held])


def _bound(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a forward by their names, of a wrapper those that it hands on."""
    if not args:
        return dict(kwargs)
    if len(args) == 1 and isinstance(args[0], Mapping):
        return {**args[0], **kwargs}
    inner = dict(module.named_children())
    owner = inner.get("_orig_mod") or inner.get("module") or module
    names = [
        item.name for item in inspect.signature(owner.forward).parameters.values() if item.kind != item.VAR_KEYWORD
    ]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _small(value: Any) -> Tensor | None:
    """A copy of what laws read, where it lies; None for pixels, masks of four dimensions and all that is no tensor."""
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, (int, float)) for item in value):
        value = torch.tensor(value)
    if not isinstance(value, Tensor) or value.ndim > 3 or value.layout != torch.strided:
        return None
    most = FEW if value.is_floating_point() else SMALL
    return value.detach().clone() if value.numel() <= most else None


def _released(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _counted(batch: Mapping[str, Any]) -> Tensor:
    """How many labels count, int64 [2]: as a causal loss shifts them, and all."""
    shifted, labels = batch.get("shift_labels"), batch.get("labels")
    if isinstance(shifted, Tensor):
        count = shifted.ne(IGNORED).sum()
        return torch.stack([count, count])
    if isinstance(labels, Tensor) and labels.ndim:
        return torch.stack([labels[..., 1:].ne(IGNORED).sum(), labels.ne(IGNORED).sum()])
    return torch.tensor([-1, -1])


def _loss(output: Any) -> Tensor | None:
    """The loss that a forward returns."""
    found = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if found is None:
        found = output[0] if isinstance(output, tuple) and output else output
    scalar = isinstance(found, Tensor) and found.is_floating_point() and found.ndim <= 1
    return found if scalar else None


def _recorded(output: Any) -> bool:
    """Whether autograd knows where an answer comes from, or any tensor in it."""
    if isinstance(output, Tensor):
        return output.requires_grad
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, (list, tuple)) else ()
    return any(_recorded(value) for value in values)


def _in_half() -> bool:
    """Whether the forward runs in float16, whose gradients are scaled and may overflow by design."""
    kinds = ("cuda", "cpu") if torch.cuda.is_available() else ("cpu",)
    return any(torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16 for kind in kinds)
