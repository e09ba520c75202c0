"""Multimodal rotary embedding of queries and keys: which axis turns which lane, the tables, and the rotation.

Letters: A axes of a position (time, height, width, ...), B batch, S tokens, H heads, D channels of a head, R rotated
channels (R <= D), R/2 lanes. A lane is a pair of channels that turn together. Lane `i` of token `s` turns by
`positions[axes[i], b, s] * inv_freq[i]`: the layout says only who owns a lane, the frequencies are those of the lane
number, whatever the axis. `reference/rope_frequencies.py` makes them, `reference/mrope_positions.py` the positions.

Sources: Qwen2-VL (arXiv 2409.12191) for M-RoPE and the chunked layout; Qwen3-VL (2511.21631) for the interleaved one;
ERNIE 4.5's technical report for the alternating one; RoFormer (2104.09864) for the rotation itself.
"""

import math
from collections.abc import Sequence

import torch

__all__ = ["LAYOUTS", "PAIRINGS", "apply", "expand_tables", "lane_axes", "lane_channels", "rotate", "tables"]

LAYOUTS = ("chunked", "interleaved", "alternating", "even_odd")
"""The names that `lane_axes` knows."""

PAIRINGS = ("half", "adjacent", "half_per_axis")
"""The names that `lane_channels` knows."""


def lane_axes(layout: str, sections: Sequence[int], *, axes: int | None = None) -> torch.Tensor:
    """The axis that owns each lane: int64 [R/2], where R/2 is the sum of the sections.

    Layouts, by the models that use them:

    * `chunked` - consecutive runs, section `i` to axis `i mod axes`. Qwen2-VL, Qwen2.5-VL, Qwen2.5-Omni, GLM-4V (MoE,
      4.6V), GLM-OCR, GLM-Image, PaddleOCR-VL; HunYuan-VL with four axes (sequence, width, height, image).
    * `interleaved` - time everywhere, except height at lanes 1, 4, 7, ... and width at lanes 2, 5, 8, ..., as many as
      their sections say. Sections are (time, height, width). Qwen3-VL (MoE, Omni), Qwen3.5 (MoE), Qwen4-Exp, Cohere
      Compass, Cosmos3-Edge, and what borrows their text model (Cosmos3-Omni, MiniCPM-V 4.7).
    * `alternating` - height, width, height, width, ..., then time at the end. Sections are (height, width, time), the
      order of the model's configuration; the axes of the positions stay (time, height, width). ERNIE 4.5 VL.
    * `even_odd` - two axes, row at even lanes, column at odd ones. NeoMME.

    Args:
        layout: one of `LAYOUTS`.
        sections: lanes of each section, in the order above; every one at least 0, their sum at least 1.
        axes: number of position axes; only `chunked` may have more sections than axes. Default: one per section.

    Raises:
        TypeError: sections that are not ints.
        ValueError: an unknown layout, or sections which that layout cannot place. A section is never shortened.
    """
    sizes = _sections(sections)
    if layout == "chunked":
        count = len(sizes) if axes is None else axes
        if not 1 <= count <= len(sizes):
            raise ValueError(f"axes: expected 1 to {len(sizes)} (the number of sections), got {axes}")
        owners = torch.arange(len(sizes)) % count
        return owners.repeat_interleave(torch.tensor(sizes))
    placed = {"interleaved": _interleaved, "alternating": _alternating, "even_odd": _even_odd}
    if layout not in placed:
        raise ValueError(f"layout: expected one of {list(LAYOUTS)}, got {layout!r}")
    expected = 2 if layout == "even_odd" else 3
    if len(sizes) != expected or axes not in (None, expected):
        raise ValueError(f"sections: {layout} has {expected} sections and axes, got {list(sizes)} and axes={axes}")
    return placed[layout](sizes)


def _interleaved(sizes: Sequence[int]) -> torch.Tensor:
    lanes = torch.arange(sum(sizes))
    owner = torch.zeros_like(lanes)
    for axis in (1, 2):
        mine = (lanes % 3 == axis) & (lanes < 3 * sizes[axis])
        if int(mine.sum()) != sizes[axis]:
            raise ValueError(
                f"sections: {list(sizes)} has {len(lanes)} lanes, so axis {axis} can own {int(mine.sum())} of its"
                f" {sizes[axis]} lanes at every third place"
            )
        owner[mine] = axis
    return owner


def _alternating(sizes: Sequence[int]) -> torch.Tensor:
    height, width, time = sizes
    if height != width:
        raise ValueError(f"sections: alternating needs as many height as width lanes, got {height} and {width}")
    return torch.cat([torch.tensor([1, 2]).repeat(height), torch.zeros(time, dtype=torch.int64)])


def _even_odd(sizes: Sequence[int]) -> torch.Tensor:
    if sizes[0] != sizes[1]:
        raise ValueError(f"sections: even_odd needs as many row as column lanes, got {sizes[0]} and {sizes[1]}")
    return torch.arange(sum(sizes)) % 2


def lane_channels(pairing: str, rotary_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The two channels of each lane: int64 [R/2] first and second; the pair turns from the first towards the second.

    * `half` - lane `i` is channels `i` and `i + R/2` (GPT-NeoX; nearly all models here).
    * `adjacent` - lane `i` is channels `2 i` and `2 i + 1` (GPT-J; GLM-4V, GLM-OCR, ERNIE 4.5 VL, some vision towers).
    * `half_per_axis` - `half` within the first half of the channels, and again within the second (Gemma 4's vision
      tower); `rotary_dim` is a multiple of 4.
    """
    if isinstance(rotary_dim, bool) or not isinstance(rotary_dim, int):
        raise TypeError(f"rotary_dim: expected an int, got {type(rotary_dim).__name__}")
    if rotary_dim <= 0 or rotary_dim % 2:
        raise ValueError(f"rotary_dim: expected an even positive number, got {rotary_dim}")
    lanes = torch.arange(rotary_dim // 2)
    if pairing == "half":
        return lanes, lanes + rotary_dim // 2
    if pairing == "adjacent":
        return 2 * lanes, 2 * lanes + 1
    if pairing != "half_per_axis":
        raise ValueError(f"pairing: expected one of {list(PAIRINGS)}, got {pairing!r}")
    quarter, rest = divmod(rotary_dim, 4)
    if rest:
        raise ValueError(f"rotary_dim: half_per_axis needs a multiple of 4, got {rotary_dim}")
    first = lanes + (lanes >= quarter) * quarter
    return first, first + quarter


def tables(
    positions: torch.Tensor,
    inv_freq: torch.Tensor,
    axes: torch.Tensor,
    *,
    attention_scaling: float = 1.0,
    dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of every lane's angle, times `attention_scaling`: two tensors [B, S, R/2].

    Args:
        positions: [A, B, S], an integer dtype, or float64 for the one rule with fractional times (Qwen3-Omni). Narrower
            floats are refused: bfloat16 has no 257.
        inv_freq: [R/2] radians per position, a floating dtype; the angles are computed in it.
        axes: [R/2] int64, the owner of each lane, in [0, A).
        attention_scaling: finite factor on both tables.
        dtype: dtype of the result, rounded once at the end; None keeps that of `inv_freq`.

    Raises:
        TypeError, ValueError: wrong dtypes, shapes, devices or ranges, or a position that `inv_freq`'s dtype lacks.
    """
    _positions(positions)
    _vector("inv_freq", inv_freq, floating=True)
    _vector("axes", axes, floating=False)
    if len(axes) != len(inv_freq):
        raise ValueError(f"axes: expected {len(inv_freq)} lanes like inv_freq, got {len(axes)}")
    lowest, highest = int(axes.min()), int(axes.max())
    if lowest < 0 or highest >= len(positions):
        raise ValueError(f"axes: expected 0 to {len(positions) - 1}, got {lowest} to {highest}")
    _same_device("inv_freq", inv_freq, "positions", positions)
    if not math.isfinite(attention_scaling):
        raise ValueError(f"attention_scaling: expected a finite number, got {attention_scaling}")
    exact = positions.to(inv_freq.dtype)
    if not torch.equal(exact.to(positions.dtype), positions):
        raise ValueError(f"positions: not every position has a value in {inv_freq.dtype}; use a wider inv_freq")
    angle_BSR = exact[axes.to(positions.device)].permute(1, 2, 0) * inv_freq
    cos, sin = angle_BSR.cos() * attention_scaling, angle_BSR.sin() * attention_scaling
    return (cos, sin) if dtype is None else (cos.to(dtype), sin.to(dtype))


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, pairing: str = "half") -> torch.Tensor:
    """Turn every lane of `x` by its angle; channels beyond R pass through untouched.

    Args:
        x: [B, H, S, D], a floating dtype.
        cos, sin: [B, S, R/2] with R <= D, in the dtype and on the device of `x`. Nothing is cast: for the truth pass
            everything in float64, for the ordinary low-precision form everything in that precision.
        pairing: one of `PAIRINGS`.

    Returns:
        [B, H, S, D], a new tensor; differentiable in `x`, `cos` and `sin`.
    """
    _rotated(x, cos, sin)
    first, second = (lane.to(x.device) for lane in lane_channels(pairing, 2 * cos.shape[-1]))
    cos, sin = cos[:, None], sin[:, None]
    a, b = x[..., first], x[..., second]
    out = x.clone()
    out[..., first] = a * cos - b * sin
    out[..., second] = b * cos + a * sin
    return out


def expand_tables(cos: torch.Tensor, sin: torch.Tensor, pairing: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The same tables at full width [B, S, R], each lane's value at both of its channels, as Hugging Face has them."""
    if cos.shape != sin.shape or cos.ndim < 1:
        raise ValueError(f"sin: expected the shape of cos, {tuple(cos.shape)}, got {tuple(sin.shape)}")
    first, second = lane_channels(pairing, 2 * cos.shape[-1])
    source = torch.argsort(torch.cat([first, second])) % len(first)
    return cos[..., source.to(cos.device)], sin[..., source.to(sin.device)]


def apply(
    q: torch.Tensor,
    k: torch.Tensor,
    positions: torch.Tensor,
    inv_freq: torch.Tensor,
    axes: torch.Tensor,
    *,
    pairing: str = "half",
    attention_scaling: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate queries [B, Hq, S, D] and keys [B, Hk, S, D] by their positions [A, B, S].

    The tables are computed in `inv_freq`'s dtype and rounded once, to that of `q`; `k` has to have the same.
    """
    if k.dtype != q.dtype:
        raise TypeError(f"k: expected {q.dtype} like q, got {k.dtype}")
    cos, sin = tables(positions, inv_freq, axes, attention_scaling=attention_scaling, dtype=q.dtype)
    return rotate(q, cos, sin, pairing=pairing), rotate(k, cos, sin, pairing=pairing)


def _sections(sections: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(sections)
    if any(isinstance(size, bool) or not isinstance(size, int) for size in sizes):
        raise TypeError(f"sections: expected ints, got {sections!r}")
    if not sizes or min(sizes) < 0 or sum(sizes) < 1:
        raise ValueError(f"sections: expected sizes of at least 0 with a sum of at least 1, got {sections!r}")
    return sizes


def _positions(positions: torch.Tensor) -> None:
    if not isinstance(positions, torch.Tensor):
        raise TypeError(f"positions: expected a tensor, got {type(positions).__name__}")
    integral = not (positions.is_floating_point() or positions.is_complex() or positions.dtype == torch.bool)
    if not integral and positions.dtype != torch.float64:
        raise TypeError(f"positions: expected an integer dtype (or float64), got {positions.dtype}")
    if positions.ndim != 3 or not len(positions):
        raise ValueError(f"positions: expected the shape [axes, batch, tokens], got {tuple(positions.shape)}")


def _vector(name: str, tensor: torch.Tensor, *, floating: bool) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if tensor.is_floating_point() != floating or (not floating and tensor.dtype != torch.int64):
        raise TypeError(f"{name}: expected {'a floating dtype' if floating else 'torch.int64'}, got {tensor.dtype}")
    if tensor.ndim != 1 or not len(tensor):
        raise ValueError(f"{name}: expected the shape [lanes] with at least one lane, got {tuple(tensor.shape)}")


def _same_device(name: str, tensor: torch.Tensor, like: str, other: torch.Tensor) -> None:
    if tensor.device != other.device:
        raise ValueError(f"{name}: expected to be on {other.device} like {like}, got {tensor.device}")


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    if not x.is_floating_point():
        raise TypeError(f"x: expected a floating dtype, got {x.dtype}")
    if x.ndim != 4:
        raise ValueError(f"x: expected the shape [batch, heads, tokens, channels], got {tuple(x.shape)}")
    for name, table in (("cos", cos), ("sin", sin)):
        if table.dtype != x.dtype:
            raise TypeError(f"{name}: expected {x.dtype} like x, got {table.dtype}")
        _same_device(name, table, "x", x)
        expected = (x.shape[0], x.shape[2])
        if table.ndim != 3 or table.shape[:2] != expected or not 0 < 2 * table.shape[-1] <= x.shape[-1]:
            raise ValueError(
                f"{name}: expected the shape [{expected[0]}, {expected[1]}, lanes] with 1 to {x.shape[-1] // 2} lanes,"
                f" got {tuple(table.shape)}"
            )
    if cos.shape != sin.shape:
        raise ValueError(f"sin: expected the shape of cos, {tuple(cos.shape)}, got {tuple(sin.shape)}")
