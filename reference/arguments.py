"""What the references ask of their arguments; an error names the argument, what was expected and what came."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["accumulation_dtype", "floating", "number", "of_dtype", "one_of", "shaped", "within"]


def floating(name: str, tensor: object) -> Tensor:
    """The argument itself, if it is a floating tensor; TypeError if not."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name}: expected a floating dtype, got {tensor.dtype}")
    return tensor


def of_dtype(name: str, tensor: object, dtype: torch.dtype) -> Tensor:
    """The argument itself, if it is a tensor of this dtype; TypeError if not."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if tensor.dtype != dtype:
        raise TypeError(f"{name}: expected {dtype}, got {tensor.dtype}")
    return tensor


def shaped(name: str, tensor: Tensor, shape: Sequence[int], like: Tensor) -> None:
    """ValueError for another shape than this one, or another device than that of `like`."""
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name}: expected the shape {list(shape)}, got {list(tensor.shape)}")
    if tensor.device != like.device:
        raise ValueError(f"{name}: expected to be on {like.device} like the others, got {tensor.device}")


def number(name: str, value: object, expected: str, *, low: float, high: float = math.inf, open_low: bool) -> None:
    """ValueError for a number outside low (itself excluded if `open_low`) to high (excluded); TypeError for no number.

    `expected` says the range in the message.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")
    if not (low < value < high or (value == low and not open_low)):
        raise ValueError(f"{name}: expected {expected}, got {value}")


def one_of(name: str, value: object, names: Sequence[str]) -> None:
    """ValueError for anything but one of these names."""
    if value not in names:
        raise ValueError(f"{name}: expected one of {list(names)}, got {value!r}")


def within(name: str, values: Tensor, read: Tensor, count: int, expected: str) -> None:
    """ValueError for the first of the `values` that is read (bool, the same shape) and not in 0..count-1."""
    outside = read & ((values < 0) | (values >= count))
    if outside.any():
        first = outside.nonzero()[0].tolist()
        raise ValueError(f"{name}: expected 0 to {count - 1}{expected}, got {int(values[tuple(first)])} at {first}")


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype of the arithmetic and of the value: float32 for bf16, fp16 and fp32, float64 where one is float64."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype
