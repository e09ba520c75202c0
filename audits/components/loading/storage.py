"""What a layer holds in memory, and the weights that it computes with, whoever quantised it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

TABLE = 256
"""Tensors of no more elements are tables of levels or the like: they do not grow with the layer."""
_DEPTH = 5


def stored(module: nn.Module, *, without_bias: bool = False) -> int:
    """Bytes of all tensors that a module holds, in attributes and tensor subclasses too, each memory counted once."""
    found: dict[object, int] = {}
    for part in module.modules():
        bias = getattr(part, "bias", None) if without_bias else None
        for value in _held(part):
            if value is not bias:
                found |= dict(_plain(value, _DEPTH))
    return sum(size for size in found.values())


def _held(part: nn.Module) -> Iterator[Any]:
    yield from part._parameters.values()  # noqa: SLF001 - named_parameters() leaves out what is no tensor of its own
    yield from part._buffers.values()  # noqa: SLF001 - as above
    hidden = {"_parameters", "_buffers", "_modules"}
    yield from (value for name, value in vars(part).items() if name not in hidden and "hook" not in name)


def _plain(value: Any, depth: int) -> Iterator[tuple[object, int]]:
    """Memory and size of the ordinary tensors within."""
    if isinstance(value, Tensor):
        yield from _of_tensor(value, depth)
    elif depth and isinstance(value, Mapping):
        for item in value.values():
            yield from _plain(item, depth - 1)
    elif depth and isinstance(value, tuple | list):
        for item in value:
            yield from _plain(item, depth - 1)
    elif depth and hasattr(value, "__dict__") and not isinstance(value, nn.Module | type) and not callable(value):
        for item in vars(value).values():
            yield from _plain(item, depth - 1)


def _of_tensor(value: Tensor, depth: int) -> Iterator[tuple[object, int]]:
    inner = getattr(value, "__tensor_flatten__", None)
    names: list[str] = []
    if inner is not None and type(value) not in {Tensor, nn.Parameter}:
        with contextlib.suppress(Exception):  # a subclass that cannot be taken apart counts as a whole
            names = list(inner()[0])
    if names and depth:
        for name in names:
            yield from _plain(getattr(value, name), depth - 1)
        return
    if value.numel() > TABLE and not value.is_meta:
        size = value.numel() * value.element_size()
        yield (value.data_ptr() or id(value), size), size
    if depth:
        for item in vars(value).values() if hasattr(value, "__dict__") else ():
            yield from _plain(item, depth - 1)


def weights(module: nn.Module, width: int, dtype: torch.dtype) -> Tensor | str:
    """The weights [out, in] of a linear layer in float32, by what it makes of each unit vector; else why not."""
    reasons = []
    for kind in dict.fromkeys((dtype, torch.bfloat16, torch.float16, torch.float32)):
        try:
            with torch.no_grad():
                out = module(torch.eye(width, dtype=kind))
        except Exception as error:  # noqa: BLE001 - kernels say in ways of their own what they cannot do
            reasons.append(f"{type(error).__name__}: {str(error)[:80]}")
            continue
        found: Tensor = out.float().T.contiguous()
        return found
    return reasons[0]


def rounded(weight: Tensor, bits: int, group: int, *, floating: bool) -> Tensor:
    """The ordinary form: each group of columns rounded to the nearest of ``2**bits`` even steps, or to a small float.

    ``group`` 0 is a whole row.
    """
    rows, width = weight.shape
    size = group if group and width % group == 0 else width
    parts = weight.float().reshape(rows, width // size, size)
    if floating and bits == 8:
        scale = parts.abs().amax(-1, keepdim=True).clamp(min=1e-12) / torch.finfo(torch.float8_e4m3fn).max
        return ((parts / scale).to(torch.float8_e4m3fn).float() * scale).reshape(rows, width)
    most = 2 ** (bits - 1) - 1 if bits > 1 else 1
    scale = parts.abs().amax(-1, keepdim=True).clamp(min=1e-12) / most
    return ((parts / scale).round() * scale).reshape(rows, width)


def levels(weight: Tensor, window: int) -> int:
    """The most distinct values in any ``window`` columns of a row that start at a multiple of it."""
    rows, width = weight.shape
    most = 0
    for start in range(0, width - window + 1, window):
        part = weight[:, start : start + window].sort(dim=1).values
        most = max(most, int((part[:, 1:] != part[:, :-1]).sum(1).max()) + 1 if rows else 0)
    return most
