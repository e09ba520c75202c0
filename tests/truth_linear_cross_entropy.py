"""Cross-entropy through a head in float64: the formula, data to ask it about, and the fused form beside it.

Letters in shapes: B batch, S sequence, H hidden width, V vocabulary.
"""

# mypy: allow-untyped-calls
# Some of torch's own methods carry no types.

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
import truth_masked_cross_entropy as of_logits
from kernel_device import DEVICE
from torch import Tensor

from assay.audits.laws import limits
from assay.kernels import linear_cross_entropy_chunks as chunks
from assay.kernels.linear_cross_entropy import linear_cross_entropy

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "shift": {"shift": True},
    "softcap": {"softcap": 2.0},
    "label_smoothing": {"label_smoothing": 0.3},
    "z_loss": {"z_loss": 0.1},
    "all": {"shift": True, "softcap": 3.0, "label_smoothing": 0.2, "z_loss": 0.01},
}
B, S, H, V = 2, 7, 8, 33
BUDGET = 2 * V * 8
"""Two rows a chunk in float64, more in others."""


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE, dtype)


class Data:
    """Leaves in one dtype, labels of which five in seven are ignored in the first row, weights, upstream gradients."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.hidden, self.head = random(B, S, H, seed=0, dtype=dtype), random(V, H, seed=1, dtype=dtype)
        self.bias, self.upstream = random(V, seed=2, dtype=dtype), random(B, S, seed=3)
        self.labels = torch.randint(0, V, (B, S), generator=torch.Generator().manual_seed(4)).to(DEVICE)
        self.labels[0, :5] = self.labels[1, 0] = self.labels[1, 4] = -100
        self.labels[0, 6], self.labels[1, 1] = 0, V - 1
        self.weight = random(B, S, seed=5).abs().float() + 0.1

    def redrawn(self, seed: int) -> "Data":
        """The same with other hidden states."""
        other = copy.copy(self)
        other.hidden = random(B, S, H, seed=seed, dtype=self.hidden.dtype)
        return other

    def leaves(self, *, bias: bool = True) -> list[Tensor]:
        return [x.detach().requires_grad_() for x in (self.hidden, self.head, *([self.bias] if bias else []))]


def truth(
    hidden: Tensor, head: Tensor, labels: Tensor, *, bias: Tensor | None = None, dtype: torch.dtype = torch.float64,
    **options: Any,
) -> Tensor:  # fmt: skip
    """The formula in float64; in another dtype the ordinary form, with logits of that dtype and fp32 from there on."""
    logits = torch.nn.functional.linear(hidden.to(dtype), head.to(dtype), None if bias is None else bias.to(dtype))
    return of_logits.truth(logits, labels, dtype=torch.promote_types(dtype, torch.float32), **options)


def outcome(function: Callable[..., Any], data: Data, *, bias: bool = True, **options: Any) -> list[Tensor]:
    """Value and gradients, for an upstream gradient that is never 1."""
    hidden, head, *more = leaves = data.leaves(bias=bias)
    found = function(hidden, head, data.labels, bias=more[0] if more else None, **options)
    value = found if isinstance(found, Tensor) else found.value
    upstream = data.upstream if value.dim() else data.upstream[0, 0]
    return [value.detach(), *torch.autograd.grad(value, leaves, upstream.to(value.dtype))]


OWN = ("memory_budget", "num_valid", "check")
"""Options that the formula has not."""


def compare(data: Data, **options: Any) -> None:
    """Value and gradients against float64: at most twice the ordinary form's error, or the floor of the arithmetic."""
    plain = {name: option for name, option in options.items() if name not in OWN}
    dtype = data.hidden.dtype

    def errors(got: list[Tensor], truths: list[Tensor]) -> list[Tensor]:
        return [limits.relative(limits.difference(a, b), reach(b)) for a, b in zip(got, truths, strict=True)]

    @functools.cache
    def usual() -> list[list[Tensor]]:
        draws = [data, data.redrawn(seed=8), data.redrawn(seed=9)]
        return [errors(outcome(truth, x, **plain, dtype=dtype), outcome(truth, x, **plain)) for x in draws]

    def ordinary(at: int) -> list[Tensor]:
        return [draw[at] for draw in usual()]

    got, expected = outcome(linear_cross_entropy, data, **options), outcome(truth, data, **plain)
    for at, (a, b, error) in enumerate(zip(got, expected, errors(got, expected), strict=True)):
        assert a.shape == b.shape
        assert a.dtype == (dtype if at else chunks.arithmetic(dtype))
        allowed = limits.floor([b], reach(b), a.dtype)
        found = limits.excess(f"output {at}", error, allowed, functools.partial(ordinary, at), "too far from float64")
        assert found is None, found


def reach(expected: Tensor) -> Tensor:
    """What enters: the largest result, and logits and slopes of about 1."""
    return expected.double().abs().max() + 1.0
