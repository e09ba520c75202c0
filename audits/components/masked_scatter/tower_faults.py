"""Wrong towers: those of right families, with pixels, features or the tower itself changed in one way in each."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from assay.audits.components.masked_scatter.tower import DEFAULT_FAMILY, NAME
from assay.audits.families.tower_run import TowerCall, TowerModel
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs

WINDOWED = "qwen2_5_vl"
"""A family whose tower has windows."""
Rows = Callable[[Tensor, TowerCall], Tensor]
"""From rows of patches [P,C], or features [N,H], to others."""


class _Broken(TowerModel):
    """The tower of a family with other patches in front of it, or other features behind it."""

    before: Rows = staticmethod(lambda rows, _call: rows)
    after: Rows = staticmethod(lambda rows, _call: rows)

    def features(self, call: TowerCall, rows: Tensor) -> Any:
        given = super().features(call, self.before(rows, call))
        whole = torch.cat(list(given.pooler_output)) if hasattr(given, "pooler_output") else torch.cat(given[0])
        return self.after(whole, call)


@functools.lru_cache(maxsize=2)
def _model(family: str) -> _Broken:
    """One for all calls, in both dtypes: building a model takes longer than a call."""
    model = _Broken(family)
    model.model("float32")
    return model


def _with(call: TowerCall, *, before: Rows | None = None, after: Rows | None = None, family: str = "") -> Outputs:
    model = _model(family or DEFAULT_FAMILY)
    model.before, model.after = before or _Broken.before, after or _Broken.after
    return model(call)


def _hooked(call: TowerCall, ending: str, register: Callable[[Any], Any]) -> Outputs:
    """With a hook, which ``register`` puts on every module whose name ends so."""
    modules = [m for model in _model(DEFAULT_FAMILY).models.values() for m in model.named_modules()]
    handles = [register(module) for name, module in modules if name.endswith(ending)]
    try:
        return _with(call)
    finally:
        for handle in handles:
            handle.remove()


def _sizes(call: TowerCall, merge: int = 1) -> list[tuple[int, int, int]]:
    """Steps, rows and columns of each medium, in patches or in cells."""
    return [(getattr(part, "steps", 1), part.height // merge, part.width // merge) for part in call.media]


def _each(rows: Tensor, call: TowerCall, change: Callable[[Tensor], Tensor], merge: int = 1) -> Tensor:
    """``change`` [T,H,W,...] to the same number of rows, done to the rows of each medium."""
    sizes = _sizes(call, merge)
    parts = torch.split(rows, [steps * high * wide for steps, high, wide in sizes])
    grids = (part.reshape(*size, *part.shape[1:]) for part, size in zip(parts, sizes, strict=True))
    return torch.cat([change(grid).reshape(-1, *rows.shape[1:]) for grid in grids])


@fault(NAME, "cells", link="https://github.com/lablup/mlxcel/issues/1610")
def in_reading_order(call: TowerCall) -> Outputs:
    """Patches come line by line where the tower expects blocks that are merged.

    Effect: each feature is made of four patches of one line; counts and shapes are right.
    """

    def lines(rows: Tensor, call: TowerCall) -> Tensor:
        sizes = _sizes(call)
        parts = torch.split(rows, [steps * high * wide for steps, high, wide in sizes])
        made = [
            part.reshape(steps, high // 2, wide // 2, 2, 2, -1).transpose(2, 3).reshape(part.shape)
            for part, (steps, high, wide) in zip(parts, sizes, strict=True)
        ]
        return torch.cat(made)

    return _with(call, before=lines)


@fault(NAME, "cells")
def left_in_windows(call: TowerCall) -> Outputs:
    """Features stay in the order of the windows in which the layers had them.

    Effect: pictures larger than a window are read window by window.
    """

    def windows(grid: Tensor) -> Tensor:
        steps, high, wide = grid.shape[:3]
        order = sorted(range(high * wide), key=lambda i: (i // wide // 2, i % wide // 2, i // wide, i % wide))
        return grid.reshape(steps, high * wide, -1)[:, order]

    return _with(call, after=lambda rows, call: _each(rows, call, windows, merge=2), family=WINDOWED)


@fault(NAME, "cells")
def columns_first(call: TowerCall) -> Outputs:
    """Features are handed on column by column.

    Effect: a picture lies on its side for the text model, whose positions say otherwise; square counts hide it.
    """
    return _with(call, after=lambda rows, call: _each(rows, call, lambda x: x.transpose(1, 2), merge=2))


@fault(NAME, "cells")
def steps_exchanged(call: TowerCall) -> Outputs:
    """The steps of a video come last first.

    Effect: what happened is told backwards; images are right.
    """
    return _with(call, after=lambda rows, call: _each(rows, call, lambda x: x.flip(0), merge=2))


@fault(NAME, "cells", "order")
def largest_first(call: TowerCall) -> Outputs:
    """Pictures are sorted by size for the tower, and their features stay so.

    Effect: samples exchange pictures in every batch with two of unequal size.
    """

    def sort(rows: Tensor, call: TowerCall) -> Tensor:
        counts = [steps * high * wide for steps, high, wide in _sizes(call, 2)]
        parts = torch.split(rows, counts)
        return torch.cat([parts[i] for i in sorted(range(len(parts)), key=lambda i: -counts[i])])

    return _with(call, after=sort)


@fault(NAME, "cells")
def last_row_lost(call: TowerCall) -> Outputs:
    """The last patch of each picture is overwritten with the one before it, by an index that is one short.

    Effect: the lower right corner is never seen.
    """
    return _with(call, before=lambda rows, call: _each(rows, call, _without_last))


def _without_last(grid: Tensor) -> Tensor:
    rows = grid.flatten(0, 2)
    return torch.cat([rows[:-1], rows[-2:-1]])


@fault(NAME, "cells")
def detached_tower(call: TowerCall) -> Outputs:
    """Pixels are detached after the first layer, to save memory.

    Effect: nothing before it is trained, adapters included.
    """
    return _with(call, after=lambda rows, _call: rows.detach())


@fault(NAME, "cells")
def blended_neighbours(call: TowerCall) -> Outputs:
    """Each feature is averaged with the one before it, a smoothing that was meant for video frames.

    Effect: neighbouring words in a scanned page run into one another.
    """
    return _with(call, after=lambda rows, _call: (rows + rows.roll(1, 0)) / 2)


def _table(call: TowerCall, change: Callable[[Tensor], Tensor]) -> Outputs:
    """With what is looked up in the table of positions changed."""
    return _hooked(call, "pos_embed", lambda m: m.register_forward_hook(lambda _module, _args, out: change(out)))


@fault(NAME, "positions", link="https://github.com/vllm-project/vllm/pull/52932")
def positions_of_other_patches(call: TowerCall) -> Outputs:
    """Each patch has the learned position of the one two further on, as if patches lay line by line.

    Effect: the text in a picture is found in the wrong place; every answer is fluent.
    """
    return _table(call, lambda out: out.roll(2, 0))


@fault(NAME, "positions")
def one_position(call: TowerCall) -> Outputs:
    """All patches have the position of the middle of the table: the grid that is interpolated has one point.

    Effect: the tower sees a bag of patches.
    """
    return _table(call, lambda out: out.mean(0, keepdim=True).expand_as(out))


@fault(NAME, "alone", link="https://github.com/alibaba/Pai-Megatron-Patch/issues/552")
def attends_across(call: TowerCall) -> Outputs:
    """Attention is given one length for all pictures of the batch.

    Effect: pictures see one another in training, and nothing but themselves at inference.
    """

    def whole(_module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        ends = kwargs["cu_seqlens"]
        return args, {**kwargs, "cu_seqlens": torch.stack([ends[0], ends[-1]])}

    return _hooked(call, "blocks.0.attn", lambda m: m.register_forward_pre_hook(whole, with_kwargs=True))


@fault(NAME, "sight")
def sees_only_itself(call: TowerCall) -> Outputs:
    """Attention gives nothing: its output is added with a factor that was left at zero.

    Effect: no patch knows of its neighbours; a letter that lies in two cells is read in neither.
    """
    return _hooked(call, ".attn", lambda m: m.register_forward_hook(lambda _module, _args, out: out * 0))


@fault(NAME, "sight")
def one_channel_read(call: TowerCall) -> Outputs:
    """The first channel alone is handed to the tower, the others are blank.

    Effect: colours cannot be told apart.
    """

    def first(rows: Tensor, _call: TowerCall) -> Tensor:
        return torch.where(torch.arange(rows.shape[-1]) < rows.shape[-1] // 3, rows, 0)

    return _with(call, before=first)


@fault(NAME, "alone")
def normalised_over_the_batch(call: TowerCall) -> Outputs:
    """Features are divided by the largest of the batch.

    Effect: one bright picture dims its neighbours.
    """
    return _with(call, after=lambda rows, _call: rows / rows.detach().abs().max())


@fault(NAME, "training")
def dropped_in_training(call: TowerCall) -> Outputs:
    """In training mode every fourth patch is blanked, an augmentation that is on by default.

    Effect: fine print is trained away; evaluation is right.
    """

    def blank(rows: Tensor, call: TowerCall) -> Tensor:
        kept = torch.arange(len(rows)) % 4 != 3
        return torch.where(kept.view(-1, *(1,) * (rows.ndim - 1)), rows, 0) if call.training else rows

    return _with(call, before=blank)


_calls = itertools.count()


@fault(NAME, "nondeterministic")
def jittered(call: TowerCall) -> Outputs:
    """Features are moved a little by a generator that goes on from call to call.

    Effect: no run can be repeated, and no two of them compared.
    """
    return _with(call, after=lambda rows, _call: rows * (1 + 0.01 * next(_calls)))


@fault(NAME, "leaks")
def default_dtype_left_set(call: TowerCall) -> Outputs:
    """The default dtype is set for the tower and stays set.

    Effect: what is made afterwards, anywhere in the process, is of another dtype.
    """
    torch.set_default_dtype(torch.float64)
    return _with(call)


FAULTS = gathered(globals())
