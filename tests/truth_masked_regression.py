"""What the fused regression is asked: sizes, poisoned data and layouts; and how it is judged by the specification.

Letters in shapes: B batch, M tokens, T tokens of the target grid, D channels.
"""

# mypy: allow-untyped-calls
# Some of torch's own methods carry no types.

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from kernel_device import DEVICE
from kernel_results import judge
from torch import Tensor

from assay.kernels.masked_regression import masked_regression
from assay.reference import masked_regression as specification

PARAMETERS: dict[str, dict[str, float]] = {
    "l1": {}, "smooth_l1": {"beta": 0.4}, "mse": {}, "power": {"power": 1.5}, "cosine": {},
}  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """Tokens and channels of a case, and why it is there."""

    channels: int
    tokens: int = 5
    grid: int = 7
    batch: int = 2


SIZES = {
    "one": Sizes(1, tokens=131),  # more tokens than one program takes
    "three": Sizes(3, tokens=67, batch=3),
    "eighty": Sizes(80, tokens=13),
    "vit-g": Sizes(1408, tokens=3),  # padded to 2,048, or cut into eleven
    "cut": Sizes(2300, tokens=2),  # more than one program takes, and no multiple of what it takes
}


@dataclass(frozen=True)
class Data:
    """Everything on the device; a third of the tokens is masked, their predictions, weights and indices are poison."""

    prediction: Tensor
    target: Tensor
    grid: Tensor
    mask: Tensor
    elements: Tensor
    indices: Tensor
    weight: Tensor


def make(sizes: Sizes, dtype: torch.dtype = torch.float32, *, poison: float = math.nan, seed: int = 0) -> Data:
    generator = torch.Generator().manual_seed(seed)
    shape = (sizes.batch, sizes.tokens, sizes.channels)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    mask = torch.rand(shape[:2], generator=generator) > 0.33
    mask[0, 0], mask[0, 1] = True, False
    elements = (torch.rand(shape, generator=generator) > 0.4) & mask[..., None]
    indices = torch.randint(0, sizes.grid, shape[:2], generator=generator)
    indices[~mask] = 10**12 if math.isnan(poison) else -1
    prediction, target = random(*shape), random(*shape)
    weight = random(*shape[:2]).abs() + 0.1
    grid = 3 * random(shape[0], sizes.grid, shape[2]) + 1
    for x in (prediction, target, weight):
        x[~mask] = poison
    cast = (x.to(DEVICE, dtype) for x in (prediction, target, grid))
    return Data(*cast, *(x.to(DEVICE) for x in (mask, elements, indices, weight)))


def upstream_like(value: Tensor) -> Tensor:
    """What comes back is never 1."""
    steps = torch.linspace(0.3, 1.7, max(value.numel(), 1), device=value.device)[: value.numel()]
    return steps.reshape(value.shape)


def both(prediction: Tensor, target: Tensor, mask: Tensor, options: dict[str, Any], **ours: Any) -> None:
    """Value, count and gradient of the kernel, judged by the specification in float64."""
    x = prediction.detach().requires_grad_()
    loss = masked_regression(x, target, mask, **options, **ours)
    upstream = upstream_like(loss.value)
    (gradient,) = torch.autograd.grad(loss.value, x, upstream)
    results = []
    for wide in (torch.float64, None):
        y = prediction.detach().to(wide or prediction.dtype).requires_grad_()
        value, count = specification.masked_regression(y, target.to(wide or target.dtype), mask, **options)
        results.append((value, *torch.autograd.grad(value, y, upstream.to(value.dtype))))
    assert torch.equal(loss.count, count)
    judge("value", loss.value, results[0][0], results[1][0])
    judge("gradient", gradient, results[0][1], results[1][1])
    places = mask if mask.dim() == prediction.dim() else mask[..., None].expand_as(prediction)
    assert not gradient[~places].any()


def every_other(x: Tensor, dim: int) -> Tensor:
    wide = x.repeat_interleave(2, dim)
    if x.is_floating_point():
        wide.index_fill_(dim, torch.arange(1, wide.shape[dim], 2, device=x.device), math.nan)
    return wide.unfold(dim, 1, 2).squeeze(-1)


STRIDES: dict[str, Callable[[Tensor], Tensor]] = {
    "batch second": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "channel stride 2": lambda x: every_other(x, 2),
    "token stride 2": lambda x: every_other(x, 1),
    "channels first": lambda x: x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    "offset by one": lambda x: torch.cat([x[..., :1], x], -1)[..., 1:],
    "two dimensions": lambda x: x.flatten(0, 1),
    "five dimensions": lambda x: x.unflatten(1, (1, 1, -1)),
    "not to be viewed": lambda x: x.unflatten(1, (-1, 1)).permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3),
}
