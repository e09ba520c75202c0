"""``rotary``: queries and keys of one layer turned by their positions, forward and backward.

Letters: S tokens, Hq and Hk heads, D channels, R of them rotated. One batch row, as packed training has it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from assay.benchmarks.nouns import Floor, Mode, Problem, Shape, Tensors
from assay.reference import mrope

NAME = "rotary"
AUDITED = "mrope.rotate"
NOTHING: tuple[str, ...] = ("no-sample",)
"""Cases of its audit in which there is nothing to do."""
MODELS = {
    "Qwen2.5-VL-7B": {"heads": 28, "kv_heads": 4, "channels": 128, "layout": "chunked", "sections": (16, 24, 24)},
    "Qwen2.5-VL-72B": {"heads": 64, "kv_heads": 8, "channels": 128, "layout": "chunked", "sections": (16, 24, 24)},
    "Qwen3-VL-8B": {"heads": 32, "kv_heads": 8, "channels": 128, "layout": "interleaved", "sections": (24, 20, 20)},
    "Qwen3.5-like": {"heads": 16, "kv_heads": 2, "channels": 256, "layout": "interleaved", "sections": (11, 11, 10)},
}
"""From the released configurations; the last one turns 64 of 256 channels."""
LAYOUTS = ("view", "packed", "dense")
"""``view``: [B,S,H,D] storage seen as [B,H,S,D], as models have it; ``packed``: slices of one [B,S,(Hq+2Hk)D] product;
``dense``: [B,H,S,D]."""
BASE = 1e6
EXACT = 1 << 17
"""Tokens up to which the truth is computed."""


def shapes(grid: str) -> Iterator[Shape]:
    """The shapes of a grid, the most telling first: ``full``, ``small`` for a CPU, ``tiny`` for a rehearsal."""
    sizes = {"full": (16384, 4096, 131072, 32768, 2048, 8192), "small": (512, 2048), "tiny": (5,)}[grid]
    for tokens in sizes:
        for model, settings in MODELS.items():
            if grid == "full" or model in ("Qwen2.5-VL-7B", "Qwen3.5-like"):
                yield Shape(model=model, tokens=tokens, settings=settings, layout="view")
    for layout in LAYOUTS[1:]:
        for tokens in sizes[:2]:
            yield Shape(model="Qwen2.5-VL-7B", tokens=tokens, settings=MODELS["Qwen2.5-VL-7B"], layout=layout)


def problem(shape: Shape, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Problem:
    """Queries and keys of random numbers, positions of a text with one image in its middle, tables of both kinds.

    Tensors: ``q`` [1,Hq,S,D], ``k`` [1,Hk,S,D]; ``cos``, ``sin`` [1,S,R] merged, each lane twice, as Hugging Face has
    them; ``cos_half``, ``sin_half`` [1,S,R/2]; ``cos_axes``, ``sin_axes`` [3,1,S,R]; ``positions`` [3,1,S] int64;
    ``inv_freq`` [R/2] float32; ``axes`` [R/2] int64 on the CPU.
    """
    settings = shape.settings
    draw = torch.Generator(device=device).manual_seed(shape.tokens)
    q, k = _queries_and_keys(shape, device, dtype, draw)
    lanes = sum(settings["sections"])
    axes = mrope.lane_axes(settings["layout"], settings["sections"])
    positions = _positions(shape.tokens).to(device)
    inv_freq = (BASE ** -(torch.arange(lanes, dtype=torch.float64) / lanes)).to(device)
    tables = _tables(positions, inv_freq, axes.to(device), dtype)
    upstream = tuple(
        torch.randn(x.shape[0], x.shape[2], x.shape[1], x.shape[3], generator=draw, device=device, dtype=dtype)
        .transpose(1, 2) for x in (q, k)
    )  # fmt: skip
    tensors = {
        "q": q.requires_grad_(), "k": k.requires_grad_(), **tables, "positions": positions,
        "inv_freq": inv_freq.float(), "axes": axes,
    }  # fmt: skip

    def truth() -> Tensors:
        wide = [x.detach().double().requires_grad_() for x in (q, k)]
        turned = mrope.apply(wide[0], wide[1], positions, inv_freq, axes.to(device))
        grads = torch.autograd.grad(list(turned), wide, [x.double() for x in upstream])
        made = (*turned, *grads)
        return {name: x.detach() for name, x in zip(("q", "k", "grad:q", "grad:k"), made, strict=True)}

    return Problem(
        shape=shape, tensors=tensors, outputs=("q", "k"), differentiable=("q", "k"), upstream=upstream,
        floors=floors(shape, dtype.itemsize), truth=truth if shape.tokens <= EXACT else None,
    )  # fmt: skip


def floors(shape: Shape, size: int) -> dict[Mode, Floor]:
    """What is turned is read and written once, and the merged half tables are read once."""
    settings = shape.settings
    rotated = 2 * sum(settings["sections"])
    moved = shape.tokens * size * (2 * (settings["heads"] + settings["kv_heads"]) * rotated + rotated)
    return {"forward": Floor(bytes=moved), "backward": Floor(bytes=moved), "both": Floor(bytes=2 * moved)}


def _queries_and_keys(
    shape: Shape, device: torch.device, dtype: torch.dtype, draw: torch.Generator
) -> tuple[Tensor, Tensor]:
    heads, kv_heads, channels = (shape.settings[name] for name in ("heads", "kv_heads", "channels"))
    if shape.layout == "packed":
        count = heads + 2 * kv_heads
        qkv = torch.randn(1, shape.tokens, count, channels, generator=draw, device=device, dtype=dtype)
        return qkv[:, :, :heads].transpose(1, 2), qkv[:, :, heads : heads + kv_heads].transpose(1, 2)
    made = [
        torch.randn(1, shape.tokens, count, channels, generator=draw, device=device, dtype=dtype).transpose(1, 2)
        for count in (heads, kv_heads)
    ]
    return tuple(x.contiguous() for x in made) if shape.layout == "dense" else tuple(made)  # type: ignore[return-value]  # as many as counts of heads: two


def _positions(tokens: int) -> Tensor:
    """[3,1,S]: a third of the row is one square image, the rest is text."""
    side = math.isqrt(tokens // 3)
    before = (tokens - side * side) // 2
    after = tokens - side * side - before
    image = torch.stack([
        torch.zeros(side * side, dtype=torch.int64), torch.arange(side * side) // max(side, 1),
        torch.arange(side * side) % max(side, 1),
    ]) + before  # fmt: skip
    text = torch.arange(before).expand(3, -1)
    rest = torch.arange(after).expand(3, -1) + before + side
    return torch.cat([text, image, rest], dim=1)[:, None]


def _tables(positions: Tensor, inv_freq: Tensor, axes: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    angles = positions[..., None].double() * inv_freq  # [3,1,S,R/2]
    own = angles.movedim(0, -1).gather(-1, axes.expand(1, angles.shape[2], -1)[..., None])[..., 0]
    made = {
        "cos_half": own.cos(), "sin_half": own.sin(),
        "cos": own.cos().repeat(1, 1, 2), "sin": own.sin().repeat(1, 1, 2),
        "cos_axes": angles.cos().repeat(1, 1, 1, 2), "sin_axes": angles.sin().repeat(1, 1, 1, 2),
    }  # fmt: skip
    return {name: x.to(dtype).contiguous() for name, x in made.items()}
