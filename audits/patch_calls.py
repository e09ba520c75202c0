"""Counts how often a replaced callable really runs, in the forward and in the backward pass."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook


@dataclass(frozen=True)
class Calls:
    """Calls of one site: ``forward`` of them began, ``backward`` of those received a gradient.

    A call that is repeated in the backward pass (gradient checkpointing) counts as a further forward call.
    """

    forward: int = 0
    backward: int = 0


class Meter:
    """Counts by site name. Counting changes no value, no signature and no gradient."""

    def __init__(self) -> None:
        """Start at zero."""
        self._counts: dict[str, list[int]] = {}
        self._lock = threading.Lock()

    def expect(self, site: str) -> None:
        """Name a site, so that it is reported as never called unless it is."""
        self._counts.setdefault(site, [0, 0])

    @property
    def calls(self) -> Mapping[str, Calls]:
        """What has been counted so far."""
        with self._lock:
            return {site: Calls(*pair) for site, pair in sorted(self._counts.items())}

    def wrap(self, site: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` with its calls counted under ``site``."""
        self.expect(site)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.enter(site)
            return self.leave(site, function(*args, **kwargs))

        try:
            return functools.wraps(function)(counted)
        except AttributeError:
            return counted

    def watch(self, site: str, module: nn.Module) -> Any:
        """Count the forward and backward passes of a module; the returned handle removes the hooks."""
        self.expect(site)

        def passed(_module: nn.Module, _args: Any, output: Any) -> None:
            self.enter(site)
            self.leave(site, output)

        return module.register_forward_hook(passed)

    def enter(self, site: str) -> None:
        """One more forward call of a site."""
        self._add(site, 0)

    def leave(self, site: str, output: Any) -> Any:
        """Have the gradient of what a call returned counted, and return it as it is."""
        live = [tensor for tensor in _tensors(output) if tensor.requires_grad]
        if live and torch.is_grad_enabled():
            register_multi_grad_hook(live, lambda _grad: self._add(site, 1), mode="any")
        return output

    def _add(self, site: str, column: int) -> None:
        with self._lock:
            self._counts.setdefault(site, [0, 0])[column] += 1


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of what a callable returned: alone, in sequences, in mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
