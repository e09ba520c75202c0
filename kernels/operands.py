"""What every kernel asks of the tensors that it is given, and how it walks their memory.

Errors name the argument, what was expected and what came. Nothing here reads a tensor's values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""What the Triton kernels read."""


def refuse(kind: type[Exception], argument: str, expected: str, came: object) -> NoReturn:
    """Raise an error of this kind."""
    raise kind(f"{argument}: expected {expected}, got {came}")


def require_runnable(x: Tensor, reference: str, *, interpreted: bool) -> None:
    """RuntimeError for a CPU tensor, unless the kernels were decorated for Triton's interpreter.

    reference: the file in `assay.reference` that computes the same anywhere.
    """
    if not (x.is_cuda or interpreted):
        raise RuntimeError(
            f"this kernel runs on CUDA tensors, got one on {x.device}: move it to a GPU, use "
            f"assay.reference.{reference} instead, or set TRITON_INTERPRET=1 before Triton is imported to interpret "
            "the kernel (slow, for tests)"
        )


def layout(x: Tensor) -> str:
    """Strides and shape, for a message."""
    return f"strides {x.stride()} for shape {list(x.shape)}"


def rows_of(x: Tensor) -> Tensor | None:
    """A view [outer, inner, V] of the memory of x [..., V], or None where its rows need more than two strides."""
    sizes: list[tuple[int, int]] = []
    for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True):
        if size == 1:
            continue
        if sizes and sizes[-1][1] == size * stride:
            sizes[-1] = (sizes[-1][0] * size, stride)
        else:
            sizes.append((size, stride))
    if len(sizes) > 2:
        return None
    (outer, far), (inner, near) = ((1, 0), (1, 0), *sizes)[-2:]
    return x.as_strided((outer, inner, x.shape[-1]), (far, near, 1))


def checked_rows(x: Tensor) -> Tensor:
    """`rows_of` a tensor that is known to have them."""
    rows = rows_of(x)
    assert rows is not None, "checked before"
    return rows


def flat(x: Tensor) -> Tensor:
    """The elements [N] of x next to each other; a view where that is how they lie."""
    return x.reshape(-1).contiguous()  # the reshaped view of an expanded tensor has stride 0


def flat_or_none(x: Tensor | None) -> Tensor | None:
    """As `flat`; None stays None."""
    return None if x is None else flat(x)


def overlaps_itself(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether elements may share memory: exact for strides that nest, as those of slices do, else cautious."""
    reach = 0
    for stride, size in sorted((stride, size) for size, stride in zip(shape, strides, strict=True) if size != 1):
        if size == 0:
            return False
        if stride <= reach:
            return True
        reach += stride * (size - 1)
    return False
