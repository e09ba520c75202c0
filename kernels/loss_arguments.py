"""What the loss kernels ask of their arguments, and what they return.

Errors name the argument, what was expected and what came. Nothing here but `raise_stranger` reads a tensor's values.
"""

from __future__ import annotations

import math
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from assay.kernels.operands import refuse

REDUCTIONS = ("none", "sum", "mean")


class Loss(NamedTuple):
    """What a loss returns."""

    value: Tensor
    """float32 (float64 for float64 inputs): 0-d; for "none" one loss per entry, 0 where nothing is scored."""
    count: Tensor  # type: ignore[assignment]  # tuple has a method of this name, which nobody needs here
    """int64 0-d on the device: how many entries were scored, whatever their weights."""


def check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """ValueError for another shape than this one, or another device than that of `like`."""
    if tuple(tensor.shape) != tuple(shape):
        refuse(ValueError, name, f"shape {list(shape)}", list(tensor.shape))
    if tensor.device != like.device:
        refuse(ValueError, name, f"a tensor on {like.device} like the others", tensor.device)


def check_labels(labels: Tensor, weight: Tensor | None, scored: Tensor, *, shift: bool, ignore_index: int) -> None:
    """Dtypes, shapes and devices of what `scored` [..., channels] is scored against."""
    if labels.dtype != torch.int64:
        refuse(TypeError, "labels", "torch.int64", labels.dtype)
    check_tensor("labels", labels, scored.shape[:-1], scored)
    if shift and not labels.dim():
        refuse(ValueError, "labels", "shape [..., tokens] with shift=True", "a 0-d tensor")
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        refuse(TypeError, "ignore_index", "an int", type(ignore_index).__name__)
    if weight is None:
        return
    if not weight.is_floating_point():
        refuse(TypeError, "weight", "a floating dtype", weight.dtype)
    check_tensor("weight", weight, labels.shape, scored)
    if weight.requires_grad:
        refuse(ValueError, "weight", "a tensor without gradient (none flows to it; detach it)", "requires_grad=True")


def check_options(softcap: float | None, label_smoothing: float, z_loss: float) -> None:
    """Ranges of the options that change the loss of a token."""
    if softcap is not None and not 0 < softcap < math.inf:
        refuse(ValueError, "softcap", "a finite number above 0, or None", softcap)
    if not 0 <= label_smoothing < 1:
        refuse(ValueError, "label_smoothing", "a number in [0, 1)", label_smoothing)
    if not 0 <= z_loss < math.inf:
        refuse(ValueError, "z_loss", "a finite number of at least 0", z_loss)


def divisor_of_mean(reduction: str, normaliser: Tensor | float | None, like: Tensor) -> Tensor | None:
    """The normaliser as a 0-d tensor on the device of `like`, without waiting for it; None stays None."""
    if reduction not in REDUCTIONS:
        refuse(ValueError, "reduction", " or ".join(map(repr, REDUCTIONS)), repr(reduction))
    if normaliser is None:
        return None
    if reduction != "mean":
        refuse(ValueError, "normaliser", f"None with reduction={reduction!r}", normaliser)
    if isinstance(normaliser, Tensor):
        if normaliser.dtype == torch.bool or normaliser.is_complex():
            refuse(TypeError, "normaliser", "an integer or floating dtype", normaliser.dtype)
        check_tensor("normaliser", normaliser, (), like)
        if normaliser.requires_grad:
            refuse(ValueError, "normaliser", "a tensor without gradient (detach it)", "requires_grad=True")
        return normaliser
    if isinstance(normaliser, bool) or not isinstance(normaliser, int | float):
        refuse(TypeError, "normaliser", "a tensor or a number", type(normaliser).__name__)
    if not 0 < normaliser < math.inf:
        refuse(ValueError, "normaliser", "a finite number above 0", normaliser)
    return torch.full((), float(normaliser), dtype=torch.float64, device=like.device)


def raise_stranger(labels: Tensor, vocabulary: int, ignore_index: int, *, shift: bool) -> NoReturn:
    """ValueError for the first label [...] outside the vocabulary, after one was counted; waits for the device."""
    outside = (labels != ignore_index) & ((labels < 0) | (labels >= vocabulary))
    if shift:
        outside[..., :1] = False
    place = outside.nonzero()[0].tolist()
    expected = f"0 to {vocabulary - 1} or ignore_index={ignore_index}"
    refuse(ValueError, "labels", expected, f"{int(labels[tuple(place)])} at {place}")
