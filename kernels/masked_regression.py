"""Regression on masked tokens or elements in one kernel: gather, LayerNorm of the target, loss and gradient.

D is the number of channels, [...] the shape of the tokens. The readable form, which says what each option means, is
`assay.reference.masked_regression`.

* Tokens that the mask leaves out are not read. Whatever stands there, or in a single element that it leaves out,
  changes nothing, and the gradient there is exactly 0.
* All arithmetic is fp32 (the logarithm of a power other than 1 and 2: fp64), the gradient is rounded once, and losses
  are added in a fixed order, so equal inputs give equal bits.
* The device is not waited for, except to look for indices outside the grid where `check` asks for it.
* The forward pass reads prediction and target once and stores nothing but the loss; the backward pass reads them once
  more, computes the gradient with the upstream gradient, one number or one per entry, and stores it. `inplace` does all
  of it in the forward pass.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from assay.kernels import masked_regression_ops as ops
from assay.kernels.loss_arguments import Loss, check_tensor, divisor_of_mean
from assay.kernels.masked_regression_triton import MOST_CHANNELS
from assay.kernels.operands import FLOATS, layout, overlaps_itself, refuse

__all__ = ["KINDS", "Loss", "masked_regression"]

KINDS = ("l1", "smooth_l1", "mse", "power", "cosine")


def masked_regression(
    prediction: Tensor, target: Tensor, mask: Tensor, *, kind: str, beta: float = 1.0, power: float = 2.0,
    normalise_target: bool = False, eps: float = 1e-5, indices: Tensor | None = None, weight: Tensor | None = None,
    reduction: str = "mean", normaliser: Tensor | float | None = None, inplace: bool = False, check: bool | None = None,
) -> Loss:  # fmt: skip
    """The loss between prediction [..., D] and target where the mask is True.

    prediction: fp32, bf16 or fp16; at most 8,192 channels for "cosine" and `normalise_target`. Batch and tokens may
        have any strides; a prediction or target whose channels have a stride other than 1, or with more dimensions
        than [B, M, D] that cannot be viewed as such, is copied first.
    target: the shape of `prediction`, or with `indices` the full grid [B, T, D]; fp32, bf16 or fp16, not necessarily
        that of the prediction. No gradient flows to it: one that requires grad is an error.
    mask: bool, [...] or, but for "cosine" and `normalise_target`, [..., D]. True is what counts. Copied where it is not
        contiguous.
    kind, beta, power, normalise_target, eps: as for `assay.reference.masked_regression`.
    indices: int64 [B, M], row (b, m) is compared with target[b, indices[b, m]]; read only where the mask is True.
    weight: floating [...], one per token; used in fp32; carries no gradient.
    reduction: "none" (the losses, shaped as `prediction`, for "cosine" as its tokens), "sum" or "mean".
    normaliser: a number above 0 or a 0-d tensor on the device. None: the sum over entries of their weights, without
        weights their number.
    inplace: the gradient may be written over the prediction. For "sum" and "mean" in fp32 and bf16 that happens in the
        forward pass: 6 bytes per bf16 element instead of 10 and no memory for the gradient. The backward pass then
        multiplies by what comes (1 costs nothing; another number that is no power of two rounds a second time).
        From the call on the prediction holds nothing of use, and a second backward through it is an error. Where no
        gradient is wanted, and under torch.compile, the prediction stays as it is.
    check: what becomes of an index outside the grid where the mask is True. True: ValueError, which waits for the
        device. False: loss and gradient of its row are NaN, and so is every sum over it. None: True where the indices
        lie on the CPU, else False.

    Returns the value, fp32, and the number of entries that count, int64. Where there is none, or where the weights that
    normaliser=None divides by sum to 0, the value is 0 and every gradient exactly 0.

    Raises TypeError or ValueError naming the argument, what was expected and what came; RuntimeError for CPU tensors
    without Triton's interpreter.
    """
    _check_options(kind, beta, power, eps, normalise_target=normalise_target)
    _check_tensors(prediction, target, indices)
    _check_entries(prediction, mask, weight)
    if prediction.numel() // prediction.shape[-1] >= 2**30:
        refuse(ValueError, "prediction", "fewer than 1,073,741,824 tokens", list(prediction.shape))
    if kind == "cosine" or normalise_target:
        _check_whole_rows(prediction, mask, kind, normalise_target=normalise_target)
    divisor = divisor_of_mean(reduction, normaliser, prediction)
    check = (indices is not None and indices.device.type == "cpu") if check is None else check
    number = {"smooth_l1": beta, "power": power}.get(kind, 0.0)
    rows = _rows(prediction)
    tokens = rows.shape[:2]
    arguments = (
        rows, _rows(target), mask.reshape(*tokens, *mask.shape[prediction.dim() - 1 :]), indices,
        None if weight is None else weight.reshape(tokens), divisor, reduction, check, kind, float(number),
        normalise_target, float(eps),
    )  # fmt: skip
    if inplace:
        _check_writable(prediction, target)
        if prediction.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return _shaped(*ops.OPERATORS.inplace(*arguments), prediction, kind, reduction)
    value, count, _ = ops.forward_op(*arguments)
    return _shaped(value, count, prediction, kind, reduction)


def _rows(x: Tensor) -> Tensor:
    """Rows [..., D] as [outer, inner, D] with stride 1 in D; a view where that is possible."""
    if x.shape[-1] > 1 and x.stride(-1) != 1:
        x = x.contiguous()
    if x.dim() < 3:
        return x.reshape(1, -1, x.shape[-1])
    return x.flatten(0, -3)


def _shaped(value: Tensor, count: Tensor, prediction: Tensor, kind: str, reduction: str) -> Loss:
    if reduction == "none":
        value = value.reshape(prediction.shape[:-1] if kind == "cosine" else prediction.shape)
    return Loss(value, count)


def _check_options(kind: str, beta: float, power: float, eps: float, *, normalise_target: bool) -> None:
    if kind not in KINDS:
        refuse(ValueError, "kind", " or ".join(map(repr, KINDS)), repr(kind))
    if not 0 < beta < math.inf:
        refuse(ValueError, "beta", "a finite number above 0", beta)
    if not 0 < power < math.inf:
        refuse(ValueError, "power", "a finite number above 0", power)
    if not 0 <= eps < math.inf:
        refuse(ValueError, "eps", "a finite number of at least 0", eps)
    if beta != 1.0 and kind != "smooth_l1":
        refuse(ValueError, "beta", f"1.0 with kind={kind!r}, which has none", beta)
    if power != 2.0 and kind != "power":
        refuse(ValueError, "power", f"2.0 with kind={kind!r}, which has none", power)
    if eps != 1e-5 and not normalise_target:
        refuse(ValueError, "eps", "1e-5 without normalise_target, which alone has one", eps)


def _check_tensors(prediction: Tensor, target: Tensor, indices: Tensor | None) -> None:
    for name, x in (("prediction", prediction), ("target", target)):
        if x.dtype not in FLOATS:
            refuse(TypeError, name, "torch.float32, torch.bfloat16 or torch.float16", x.dtype)
    if not prediction.dim() or not prediction.shape[-1]:
        refuse(ValueError, "prediction", "shape [..., D]", list(prediction.shape))
    if target.requires_grad and torch.is_grad_enabled():
        refuse(ValueError, "target", "a tensor without gradient (none flows to it; detach it)", "requires_grad=True")
    if indices is None:
        check_tensor("target", target, prediction.shape, prediction)
        return
    if prediction.dim() != 3:
        refuse(ValueError, "prediction", "shape [B, M, D] with indices", list(prediction.shape))
    if indices.dtype != torch.int64:
        refuse(TypeError, "indices", "torch.int64", indices.dtype)
    check_tensor("indices", indices, prediction.shape[:-1], prediction)
    batch, _, channels = prediction.shape
    if target.dim() != 3 or not target.shape[1]:
        refuse(ValueError, "target", f"shape [{batch}, T, {channels}] with indices", list(target.shape))
    check_tensor("target", target, (batch, target.shape[1], channels), prediction)


def _check_entries(prediction: Tensor, mask: Tensor, weight: Tensor | None) -> None:
    if mask.dtype != torch.bool:
        refuse(TypeError, "mask", "torch.bool", mask.dtype)
    by_token = mask.dim() < prediction.dim()
    check_tensor("mask", mask, prediction.shape[:-1] if by_token else prediction.shape, prediction)
    if weight is None:
        return
    if not weight.is_floating_point():
        refuse(TypeError, "weight", "a floating dtype", weight.dtype)
    check_tensor("weight", weight, prediction.shape[:-1], prediction)
    if weight.requires_grad:
        refuse(ValueError, "weight", "a tensor without gradient (none flows to it; detach it)", "requires_grad=True")


def _check_whole_rows(prediction: Tensor, mask: Tensor, kind: str, *, normalise_target: bool) -> None:
    what = "normalise_target" if normalise_target else f"kind={kind!r}"
    if mask.dim() == prediction.dim():
        refuse(ValueError, "mask", f"one entry per token with {what}", list(mask.shape))
    if prediction.shape[-1] > MOST_CHANNELS:
        refuse(ValueError, "prediction", f"at most {MOST_CHANNELS} channels with {what}", prediction.shape[-1])


def _check_writable(prediction: Tensor, target: Tensor) -> None:
    if prediction.requires_grad and prediction.is_leaf and torch.is_grad_enabled():
        refuse(ValueError, "prediction", "for inplace=True no leaf that requires grad", "one; use inplace=False")
    if torch.compiler.is_compiling():
        return
    if prediction.numel() and _rows(prediction).data_ptr() != prediction.data_ptr():
        expected = "for inplace=True channels of stride 1 and rows that two strides reach"
        refuse(ValueError, "prediction", expected, layout(prediction))
    if overlaps_itself(prediction.shape, prediction.stride()):
        expected = "for inplace=True a tensor whose elements do not share memory"
        refuse(ValueError, "prediction", expected, layout(prediction))
    if target.untyped_storage().data_ptr() == prediction.untyped_storage().data_ptr():
        refuse(ValueError, "target", "for inplace=True memory apart from the prediction's", "the same storage")
