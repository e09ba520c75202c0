"""Where the tests of kernels run: on the GPU where there is one, else in Triton's interpreter.

Import it before anything of `assay.kernels`: Triton decides for or against its interpreter when a kernel is decorated.
"""

import os
import tempfile
from typing import Any

import pytest
import torch
from torch import Tensor

from assay.audits import interpreter

GPU = torch.cuda.is_available()
INTERPRETATION = interpreter.Interpretation(False, False, "") if GPU else interpreter.enable()
if not (GPU or INTERPRETATION.active):
    raise RuntimeError(f"{INTERPRETATION.reason}; run this file by itself or set TRITON_INTERPRET=1")

DEVICE = "cuda" if GPU else "cpu"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def needs(dtype: torch.dtype) -> None:
    """Skip where the arithmetic of a dtype means nothing here."""
    if dtype == torch.bfloat16 and not (GPU or INTERPRETATION.bf16):
        pytest.skip(INTERPRETATION.reason)


def here(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same arguments with their tensors on the device; those without data stay what they are."""
    return {key: x.to(DEVICE) if isinstance(x, Tensor) and not x.is_meta else x for key, x in arguments.items()}


def sparse(elements: int) -> Tensor:
    """That many fp32 zeros of address space, of which only the pages that are touched take memory."""
    with tempfile.NamedTemporaryFile() as file:
        os.truncate(file.name, 4 * elements)
        return torch.from_file(file.name, shared=True, size=elements, dtype=torch.float32)


def distant(x: Tensor, strides: list[int], far: int) -> Tensor:
    """A copy in fp32 with these strides, but for dimension `far`: its last index lies past 2**31."""
    strides = strides.copy()
    strides[far] = 2**31 // (x.shape[far] - 1) + 1000
    size = 1 + sum(stride * (n - 1) for stride, n in zip(strides, x.shape, strict=True))
    assert size > 2**31
    return sparse(size).as_strided(x.shape, strides).copy_(x)
