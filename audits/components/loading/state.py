"""What a loaded model consists of: its tensors by name, which of them are one, and its configuration."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_WRAPS = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.|$)")
"""Parts of names that compiling, sharding and checkpointing put in."""


@dataclass(frozen=True, kw_only=True)
class State:
    """Tensors by name. ``ties`` are the sets of parameters that are one; ``merged``: adapters were added to weights."""

    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    ties: frozenset[frozenset[str]]
    merged: bool = False

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Parameters and buffers."""
        return {**self.parameters, **self.buffers}

    def within(self, prefix: str) -> State:
        """The same with a wrapper's prefix taken off the names that have it."""

        def named(name: str) -> str:
            return name.removeprefix(prefix)

        return State(
            parameters={named(name): value for name, value in self.parameters.items()},
            buffers={named(name): value for name, value in self.buffers.items()},
            ties=frozenset(frozenset(map(named, tie)) for tie in self.ties),
            merged=self.merged,
        )


def state(model: nn.Module) -> State:
    """The state of a model, adapters merged into a copy where it has any, names without what wrappers put in."""
    merged = callable(getattr(model, "merge_and_unload", None))
    held: Any = copy.deepcopy(model).merge_and_unload() if merged else model  # type: ignore[operator]
    parameters = {_plain(name): value for name, value in held.named_parameters(remove_duplicate=False)}
    buffers = {_plain(name): value for name, value in held.named_buffers(remove_duplicate=False)}
    return State(parameters=parameters, buffers=buffers, ties=_ties(parameters), merged=merged)


def _plain(name: str) -> str:
    return _WRAPS.sub("", name).removeprefix(".")


def _ties(parameters: Mapping[str, Tensor]) -> frozenset[frozenset[str]]:
    groups: dict[object, set[str]] = {}
    for name, value in parameters.items():
        groups.setdefault(_memory(value), set()).add(name)
    return frozenset(frozenset(names) for names in groups.values() if len(names) > 1)


def _memory(value: Tensor) -> object:
    """What is the same for two parameters that are one tensor, also where each has an object of its own."""
    try:
        address = value.untyped_storage().data_ptr()
    except Exception:  # noqa: BLE001 - tensor subclasses may have no storage
        address = 0
    return (address, value.storage_offset(), value.numel()) if address and value.numel() else id(value)


def prefixes(training: State, inference: State) -> tuple[str, str]:
    """The prefix that a wrapper puts before the names of either side; two empty ones where names agree."""
    here, there = set(training.tensors), set(inference.tensors)
    if len(here & there) * 2 >= min(len(here), len(there)):
        return "", ""
    left, right = _prefix(here, there), _prefix(there, here)
    return (left[0], "") if left[1] >= right[1] else ("", right[0])


def _prefix(wrapped: set[str], plain: set[str]) -> tuple[str, int]:
    """The prefix under which most plain names are found among the wrapped ones, and how many."""
    counts = Counter(
        name[: len(name) - len(tail)] for name in wrapped for tail in _tails(name) if tail != name and tail in plain
    )
    return min(counts.items(), key=lambda item: (-item[1], item[0]), default=("", 0))


def _tails(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from (".".join(parts[place:]) for place in range(len(parts)))


@dataclass(frozen=True, kw_only=True)
class Apart:
    """How far two tensors of one name lie apart: by the largest element, over the largest magnitude of the first."""

    count: int
    worst: float
    reach: float
    index: tuple[int, ...]


def apart(left: Tensor, right: Tensor) -> Apart | None:
    """None where two tensors of one shape are alike in the narrower of their dtypes, NaN equal to NaN."""
    left, right = (value.detach().cpu() for value in (left, right))
    if left.dtype != right.dtype and left.is_floating_point() and right.is_floating_point():
        narrow = min((left.dtype, right.dtype), key=lambda dtype: torch.finfo(dtype).bits)
        left, right = left.to(narrow), right.to(narrow)
    here, there = (value.double() for value in (left, right))
    wrong = (here != there) & ~(here.isnan() & there.isnan())
    count = int(wrong.sum())
    if not count:
        return None
    gap = (here - there).abs().nan_to_num(nan=torch.inf)
    gap = torch.where(wrong, gap, 0.0)
    place = int(gap.argmax())
    reach = float(here.abs().nan_to_num(posinf=0.0).max())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), gap.shape))
    return Apart(count=count, worst=float(gap.flatten()[place]), reach=reach, index=index)
