"""The rotation in float64 and in its ordinary form, and the heads, positions and layouts that it is asked about.

Letters in shapes: B batch, H heads, S sequence, D head dimension, L lanes (pairs of dimensions), A position axes.
"""

# mypy: allow-untyped-calls
# Some of torch's own methods carry no types.

from collections.abc import Callable
from dataclasses import dataclass

import torch
from kernel_device import DEVICE
from torch import Tensor

from assay.kernels import mrope


@dataclass(frozen=True)
class Sizes:
    """Heads and dimensions of a case, and why it is there."""

    heads: int
    kv_heads: int
    dim: int
    rotated: int
    tokens: int = 3
    batch: int = 2


SIZES = {
    "qwen2.5-vl": Sizes(28, 4, 128, 128),  # 28 heads are no power of two
    "qwen3-vl": Sizes(32, 8, 128, 128),
    "qwen3.5": Sizes(16, 2, 256, 64),  # partial rotary, one tail piece padded, heads shared out over programs
    "vision": Sizes(5, 5, 80, 80),  # 40 lanes in a block of 64
    "mqa": Sizes(3, 1, 64, 64, tokens=17, batch=1),  # a sequence that ends inside a block
    "narrow": Sizes(5, 5, 6, 6),  # fewer lanes than one access holds
    "uneven-tail": Sizes(3, 1, 96, 34, tokens=1),  # 17 lanes, a tail of 62 = 32 + 30
    "shared-out": Sizes(64, 4, 16, 16, tokens=1, batch=1),
}


@dataclass(frozen=True)
class Data:
    """Queries, keys, positions, frequencies, the axis of each lane, and gradients that come back."""

    q: Tensor
    k: Tensor
    positions_ABS: Tensor
    inv_freq_L: Tensor
    axes_L: Tensor
    grad_q: Tensor
    grad_k: Tensor


def make(sizes: Sizes, dtype: torch.dtype, *, start: int = 0, layout: str = "interleaved", seed: int = 0) -> Data:
    generator = torch.Generator().manual_seed(seed)

    def heads(n: int) -> Tensor:
        x_BSHD = torch.randn(sizes.batch, sizes.tokens, n, sizes.dim, generator=generator)
        return x_BSHD.to(DEVICE, dtype).transpose(1, 2)

    lanes = sizes.rotated // 2
    axes = torch.arange(lanes) % 3 if layout == "interleaved" else (torch.arange(lanes) * 3) // lanes
    positions = start + torch.randint(0, 97, (3, sizes.batch, sizes.tokens), generator=generator)
    inv_freq = 1e4 ** -(torch.arange(lanes, dtype=torch.float64) / lanes)
    q, k, grad_q, grad_k = heads(sizes.heads), heads(sizes.kv_heads), heads(sizes.heads), heads(sizes.kv_heads)
    return Data(q, k, positions.to(DEVICE), inv_freq.float().to(DEVICE), axes.to(DEVICE), grad_q, grad_k)


def angles(data: Data) -> Tensor:
    """[B, S, L] in float64, the truth."""
    return data.positions_ABS[data.axes_L].permute(1, 2, 0).double() * data.inv_freq_L.double()


def turned(x: Tensor, angle_BSL: Tensor, pairing: str, *, back: bool = False) -> Tensor:
    """The rotation as a complex product in float64: one lane is one complex number."""
    rotated = 2 * angle_BSL.shape[-1]
    head, tail = x[..., :rotated].double(), x[..., rotated:].double()
    pairs = head.unflatten(-1, (2, -1)).movedim(-2, -1) if pairing == "half" else head.unflatten(-1, (-1, 2))
    factor = torch.polar(torch.ones_like(angle_BSL), -angle_BSL if back else angle_BSL)[:, None]
    product = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * factor)
    product = product.movedim(-1, -2) if pairing == "half" else product
    return torch.cat([product.flatten(-2), tail], dim=-1)


def eager(x: Tensor, cos: Tensor, sin: Tensor, pairing: str) -> Tensor:
    """The ordinary form: every step rounded to the dtype of x."""
    rotated = 2 * cos.shape[-1]
    head, tail = x[..., :rotated], x[..., rotated:]
    c, s = (table.to(x.dtype)[:, None] for table in (cos, sin))
    a, b = head.chunk(2, -1) if pairing == "half" else (head[..., ::2], head[..., 1::2])
    parts = (a * c - b * s, b * c + a * s)
    return torch.cat([torch.cat(parts, -1) if pairing == "half" else torch.stack(parts, -1).flatten(-2), tail], -1)


def plain(name: str = "mqa", dtype: torch.dtype = torch.float32) -> tuple[Data, Tensor, Tensor]:
    """Data and half tables."""
    data = make(SIZES[name], dtype)
    return data, *mrope.tables(data.positions_ABS, data.inv_freq_L, axes=data.axes_L)


def packed(data: Data) -> tuple[Tensor, Tensor]:
    x = torch.cat([data.q, data.k, torch.full_like(data.k, torch.nan)], dim=1)
    x = x.transpose(1, 2).contiguous().transpose(1, 2)
    heads = data.q.shape[1]
    return x[:, :heads], x[:, heads : heads + data.k.shape[1]]


def every_other(x: Tensor) -> Tensor:
    wide = torch.full((*x.shape[:3], 2 * x.shape[3]), torch.nan, dtype=x.dtype, device=x.device)
    wide[..., ::2] = x
    return wide[..., ::2]


STRIDES: dict[str, Callable[[Data], tuple[Tensor, ...]]] = {
    "dense": lambda d: (d.q.contiguous(), d.k.contiguous()),
    "packed": packed,
    "one of each": lambda d: (d.q.contiguous(), packed(d)[1]),
    "dimension stride 2": lambda d: (every_other(d.q), every_other(d.k)),
    "dimensions outermost": lambda d: tuple(x.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0) for x in (d.q, d.k)),
    "reversed axes": lambda d: tuple(x.permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3) for x in (d.q, d.k)),
    "offset by one": lambda d: tuple(torch.cat([x[..., :1], x], -1)[..., 1:] for x in (d.q, d.k)),
}
