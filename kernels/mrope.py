"""Fused multimodal rotary embedding: turns q and k in one launch, forward and backward, from tables or from positions.

Letters in shapes: B batch, Hq and Hk heads, S sequence, D head dimension, R rotated dimensions, L = R / 2 lanes,
A position axes (3 for time, height and width). A lane is one pair of dimensions that turn together by one angle:
dimensions l and l + L with pairing "half" (Llama, Qwen), 2l and 2l + 1 with "adjacent" (GPT-J, GLM). Lane l turns by
positions[axes[l]] * inv_freq[l]; the map `axes` expresses every section layout, chunked, interleaved or other.

All arithmetic is fp32 with one rounding at the end. Dimensions past R are copied bit for bit. Inputs may have any
strides. Gradients flow to q and k only; the backward pass is the same kernel turning the other way, and may itself be
differentiated. The readable form of all this is `assay.reference.mrope`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from assay.kernels import mrope_ops
from assay.kernels.operands import FLOATS, layout, overlaps_itself, refuse

PAIRINGS = ("half", "adjacent")
INTEGERS = (torch.int32, torch.int64)


def rotate(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, axes: Tensor | None = None, rotary_dim: int | None = None,
    pairing: str = "half", inplace: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Turn q and k by stored cosines and sines.

    q [B, Hq, S, D], k [B, Hk, S, D]: fp32, bf16 or fp16, the same dtype, any strides.
    cos, sin: fp32, bf16 or fp16, one of
        merged tables [B or 1, S, width], with axes None;
        a table per axis [A, B or 1, S, width] and `axes` [L], integers in 0..A-1: which axis' table each lane reads.
          `axes` is checked where it lies on the CPU; on a GPU that would wait for the device, so a wrong entry turns
          its lane into NaN instead. Per-axis tables are read with narrow loads; prefer merged ones (`tables`).
    rotary_dim: R. width = R means that each lane stands twice in the table (as Hugging Face builds it: two equal
        halves with pairing "half", neighbours with "adjacent"; the first copy is read), width = R / 2 that it stands
        once. None means R = D and full width; every other combination must be said, since a width alone cannot tell
        a half table from a full one for half the dimensions.
    inplace: change q and k themselves and return them. For autograd this costs one launch for each of them.

    Returns new tensors in the layout of q and k ([B, S, H, D] storage for transposed views of it, else [B, H, S, D]).

    Raises TypeError or ValueError naming the argument, what was expected and what came; RuntimeError for CPU tensors
    without Triton's interpreter.
    """
    _check_heads(q, k, pairing)
    rotated = _check_tables(q, cos, sin, axes, rotary_dim)
    first, second = (cos, sin) if cos.stride() == sin.stride() else (cos.contiguous(), sin.contiguous())
    if axes is None:
        first, second = first.unsqueeze(0), second.unsqueeze(0)
    axes = _check_axes(axes, rotated // 2, first.shape[0], q.device)
    return _rotate(q, k, first, second, axes, (rotated // 2, pairing == "adjacent", False, True, 1.0), inplace)


def rotate_from_positions(
    q: Tensor, k: Tensor, positions: Tensor, inv_freq: Tensor, *, axes: Tensor | None = None, pairing: str = "half",
    attention_scaling: float = 1.0, exact_product: bool = True, inplace: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Turn q and k by positions; cosines and sines are never stored, and backward keeps the positions alone.

    q, k, pairing, inplace, layouts, errors: as for `rotate`. R is twice the number of inverse frequencies.
    positions: int32 or int64, [B or 1, S], or [A, B or 1, S] with `axes` [L] saying which axis each lane reads
        (None: A is 1).
    inv_freq: fp32 [L], radians per position.
    attention_scaling: multiplies cosine and sine (YaRN and its kin).
    exact_product: add back what fp32 drops from position * inv_freq. At position 1,000,000 the fp32 product is wrong by
        up to 0.03 radians, which no later step can repair; the repair costs two instructions per lane and token,
        shared by all heads, so it is on by default. False gives the angle that eager fp32 code has.

    With exact_product the cosine and sine are within 1.2e-7 of those of the exact angle for |position| <= 16,777,216
    and angles up to 4,194,304 quarter turns (6.5 million radians); beyond either bound the lane is NaN.
    """
    _check_heads(q, k, pairing)
    first = _check_positions(positions, inv_freq, axes)
    if first.shape[1] not in (1, q.shape[0]) or first.shape[2] != q.shape[2]:
        refuse(ValueError, "positions", f"shape [.., {q.shape[0]} or 1, {q.shape[2]}]", list(positions.shape))
    if 2 * inv_freq.numel() > q.shape[3]:
        refuse(ValueError, "inv_freq", f"at most {q.shape[3] // 2} frequencies for {q.shape[3]} dims", inv_freq.numel())
    _check_device(q, positions=positions, inv_freq=inv_freq)
    axes = _check_axes(axes, inv_freq.numel(), first.shape[0], q.device)
    settings = (inv_freq.numel(), pairing == "adjacent", True, exact_product, float(attention_scaling))
    return _rotate(q, k, first, inv_freq.contiguous(), axes, settings, inplace)


def tables(
    positions: Tensor, inv_freq: Tensor, *, axes: Tensor | None = None, attention_scaling: float = 1.0,
    exact_product: bool = True, dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Merged half tables (cos, sin) [B, S, L] in one launch, for `rotate(..., rotary_dim=2 * L)` in every layer.

    positions, inv_freq, axes, attention_scaling, exact_product, accuracy: as for `rotate_from_positions`.
    dtype: fp32, bf16 or fp16. The tables carry no gradient.
    """
    first = _check_positions(positions, inv_freq, axes)
    if dtype not in FLOATS:
        refuse(TypeError, "dtype", "torch.float32, torch.bfloat16 or torch.float16", dtype)
    _check_device(positions, inv_freq=inv_freq)
    axes = _check_axes(axes, inv_freq.numel(), first.shape[0], positions.device)
    cos, sin = mrope_ops.tables_op(first, inv_freq.contiguous(), axes, dtype, exact_product, float(attention_scaling))
    return cos, sin


def _rotate(
    q: Tensor, k: Tensor, first: Tensor, second: Tensor, axes: Tensor | None, settings: tuple[Any, ...], inplace: bool
) -> tuple[Tensor, Tensor]:
    if not inplace:
        half, adjacent, *rest = settings
        layouts = (mrope_ops.is_token_major(q), mrope_ops.is_token_major(k))
        q_out, k_out = mrope_ops.rotate_op(q, k, first, second, axes, half, adjacent, False, *rest, *layouts)
        return q_out, k_out
    _check_writable(q, k)
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad):
        return mrope_ops.rotate_inplace(q, first, second, axes, settings), mrope_ops.rotate_inplace(
            k, first, second, axes, settings
        )
    mrope_ops.rotate_inplace_op(q, k, first, second, axes, *settings)
    return q, k


def _check_device(anchor: Tensor, **others: Tensor) -> None:
    for name, other in others.items():
        if other.device != anchor.device:
            refuse(ValueError, name, f"a tensor on {anchor.device} like the others", other.device)


def _check_heads(q: Tensor, k: Tensor, pairing: str) -> None:
    if pairing not in PAIRINGS:
        refuse(ValueError, "pairing", " or ".join(map(repr, PAIRINGS)), repr(pairing))
    for name, x in (("q", q), ("k", k)):
        if x.dim() != 4:
            refuse(ValueError, name, "4 dimensions [B, H, S, D]", f"shape {list(x.shape)}")
        if x.dtype not in FLOATS:
            refuse(TypeError, name, "torch.float32, torch.bfloat16 or torch.float16", x.dtype)
    if k.dtype != q.dtype:
        refuse(TypeError, "k", f"the dtype of q, {q.dtype}", k.dtype)
    if (k.shape[0], k.shape[2], k.shape[3]) != (q.shape[0], q.shape[2], q.shape[3]):
        refuse(ValueError, "k", f"batch, sequence and head dimension of q, {list(q.shape)}", list(k.shape))
    _check_device(q, k=k)


def _check_tables(q: Tensor, cos: Tensor, sin: Tensor, axes: Tensor | None, rotary_dim: int | None) -> int:
    """The number of rotated dimensions."""
    batch, _, tokens, dim = q.shape
    rank = 3 if axes is None else 4
    for name, table in (("cos", cos), ("sin", sin)):
        if table.dtype not in FLOATS:
            refuse(TypeError, name, "torch.float32, torch.bfloat16 or torch.float16", table.dtype)
        if table.requires_grad:
            refuse(
                ValueError,
                name,
                "a table without gradient (they flow to q and k only; detach it)",
                "requires_grad=True",
            )
        if table.dim() != rank or table.shape[-3] not in (1, batch) or table.shape[-2] != tokens:
            kind = "[B or 1, S, width]" if axes is None else "[A, B or 1, S, width] with axes"
            refuse(ValueError, name, f"shape {kind} with B={batch} and S={tokens}", list(table.shape))
    if sin.shape != cos.shape or sin.dtype != cos.dtype:
        refuse(
            ValueError,
            "sin",
            f"shape and dtype of cos, {list(cos.shape)} {cos.dtype}",
            f"{list(sin.shape)} {sin.dtype}",
        )
    _check_device(q, cos=cos, sin=sin)
    width = cos.shape[-1]
    if rotary_dim is None and width != dim:
        hint = f"width {dim}, the head dimension, or rotary_dim to say what the width means"
        refuse(ValueError, "cos", hint, f"width {width} and rotary_dim=None")
    rotated = dim if rotary_dim is None else rotary_dim
    if rotated % 2 or not 2 <= rotated <= dim:
        refuse(ValueError, "rotary_dim", f"an even number from 2 to the head dimension {dim}", rotated)
    if width not in (rotated, rotated // 2):
        refuse(ValueError, "cos", f"width {rotated} or {rotated // 2} for rotary_dim={rotated}", width)
    return rotated


def _check_positions(positions: Tensor, inv_freq: Tensor, axes: Tensor | None) -> Tensor:
    """Positions as [A, B, S]."""
    if positions.dtype not in INTEGERS:
        why = "int32 or int64 (floats lose integers: bf16 above 256, fp16 above 2,048, fp32 above 16,777,216)"
        refuse(TypeError, "positions", why, positions.dtype)
    if positions.dim() not in (2, 3) or not positions.shape[0]:
        refuse(ValueError, "positions", "shape [B, S] or [A, B, S]", list(positions.shape))
    if positions.dim() == 3 and positions.shape[0] > 1 and axes is None:
        refuse(ValueError, "axes", f"which of the {positions.shape[0]} axes of positions each lane reads", None)
    if inv_freq.dtype != torch.float32:
        refuse(TypeError, "inv_freq", "torch.float32", inv_freq.dtype)
    if inv_freq.dim() != 1 or not inv_freq.numel():
        refuse(ValueError, "inv_freq", "shape [L], at least one frequency", list(inv_freq.shape))
    if inv_freq.requires_grad:
        refuse(ValueError, "inv_freq", "no gradient (they flow to q and k only; detach it)", "requires_grad=True")
    return positions if positions.dim() == 3 else positions.unsqueeze(0)


def _check_axes(axes: Tensor | None, lanes: int, count: int, device: torch.device) -> Tensor | None:
    """The axis map on the device of the data; its entries are looked at only where that does not wait for a GPU."""
    if axes is None:
        return None
    if axes.dtype not in INTEGERS:
        refuse(TypeError, "axes", "int32 or int64", axes.dtype)
    if tuple(axes.shape) != (lanes,):
        refuse(ValueError, "axes", f"shape [{lanes}], one entry per lane", list(axes.shape))
    if axes.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = int(axes.min()), int(axes.max())
        if low < 0 or high >= count:
            refuse(ValueError, "axes", f"entries from 0 to {count - 1}", f"entries from {low} to {high}")
    return axes.to(device).contiguous()


def _check_writable(q: Tensor, k: Tensor) -> None:
    for name, x in (("q", q), ("k", k)):
        if x.requires_grad and x.is_leaf and torch.is_grad_enabled():
            refuse(
                ValueError,
                name,
                "for inplace=True no leaf that requires grad",
                "one; rotate a copy or use inplace=False",
            )
        if x.requires_grad and _from_split(x):
            refuse(
                ValueError,
                name,
                "for inplace=True no output of split, chunk or unbind",
                "one; slice the tensor instead",
            )
        if overlaps_itself(x.shape, x.stride()):
            refuse(ValueError, name, "for inplace=True a tensor whose elements do not share memory", layout(x))
    if not _apart(q, k):
        refuse(
            ValueError,
            "k",
            "for inplace=True memory apart from that of q",
            "tensors that overlap or cannot be told apart",
        )


def _from_split(x: Tensor) -> bool:
    """Whether autograd will refuse to have x changed, as one of several views that one call returned."""
    if torch.compiler.is_compiling():
        return False
    meta = torch._C._autograd
    return x._is_view() and meta._get_creation_meta(x) != meta.CreationMeta.DEFAULT


def _apart(q: Tensor, k: Tensor) -> bool:
    """Whether q and k provably share no element: by address range, or as slices of heads of one packed tensor."""
    if torch.compiler.is_compiling() or not q.numel() or not k.numel():
        return True  # a traced tensor has no address
    if q.untyped_storage().data_ptr() != k.untyped_storage().data_ptr():
        return True
    lower, upper = (q, k) if q.storage_offset() <= k.storage_offset() else (k, q)
    gap = upper.storage_offset() - lower.storage_offset()
    reach = sum(stride * (size - 1) for size, stride in zip(lower.shape, lower.stride(), strict=True))
    if gap > reach:
        return True
    head = lower.stride(1)
    if lower.stride() != upper.stride() or not head or gap % head or gap // head < lower.shape[1]:
        return False
    packed = torch.Size((lower.shape[0], gap // head + upper.shape[1], *lower.shape[2:]))
    return not overlaps_itself(packed, lower.stride())
