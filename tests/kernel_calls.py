"""Calls that any kernel must stand: recomputed in the backward pass, compiled, with arguments that are refused."""

# mypy: allow-untyped-calls
# Some of torch's own methods carry no types.

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_results import assert_same
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Refusal = tuple[dict[str, Any], type[Exception], str]
"""The arguments that are wrong, the error, and a pattern of its message."""


def check_recomputed(block: Callable[..., Tensor], *leaves: Tensor) -> None:
    """The gradients of a number are the same bits under either form of activation checkpointing."""
    expected = torch.autograd.grad(block(*leaves), leaves)
    for reentrant in (False, True):
        for leaf in leaves:
            leaf.grad = None
        checkpoint(block, *leaves, use_reentrant=reentrant).backward()
        gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
        assert_same(gradients, expected)


def check_refused(function: Callable[..., Any], usual: dict[str, Any], refusal: Refusal) -> None:
    """Arguments that are fine but for those of the refusal."""
    changes, kind, message = refusal
    with pytest.raises(kind, match=message):
        function(**(usual | changes))


def compiled(step: Callable[..., Any], backend: str = "aot_eager") -> Callable[..., Any]:
    """A function under torch.compile that fails where the graph would break."""
    torch._dynamo.reset()
    return torch.compile(step, fullgraph=True, backend=backend)
