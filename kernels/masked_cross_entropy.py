"""Cross-entropy of a language model that reads scored rows only: fp32 inside, any row stride, gradient in one pass.

V is the vocabulary, [...] the shape of the labels. The readable form, which says what each option means, is
`assay.reference.masked_cross_entropy`.

* Rows whose label is ignored are not read; their gradient is exactly 0, whatever stands in them.
* All arithmetic is fp32. The loss is no difference of large rounded numbers, so moving all logits by 120 costs nothing;
  the gradient, its entry at the label included, is rounded once. Losses are summed in a fixed order.
* The device is not waited for, except to look for labels outside the vocabulary where `check` asks for it.
* The upstream gradient, one number or one per token, is folded into the gradient before it is rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from assay.kernels import masked_cross_entropy_ops as ops
from assay.kernels.loss_arguments import Loss, check_labels, check_options, divisor_of_mean
from assay.kernels.operands import FLOATS, layout, overlaps_itself, refuse, rows_of

__all__ = ["Loss", "cross_entropy"]


def cross_entropy(
    logits: Tensor, labels: Tensor, *, shift: bool = False, ignore_index: int = -100, weight: Tensor | None = None,
    softcap: float | None = None, label_smoothing: float = 0.0, z_loss: float = 0.0, reduction: str = "mean",
    normaliser: Tensor | float | None = None, inplace: bool = False, check: bool | None = None,
) -> Loss:  # fmt: skip
    """Cross-entropy of logits [..., V] against labels [...].

    logits: fp32, bf16 or fp16. V has stride 1; the rows may lie apart (a slice of a padded vocabulary, logits[:, :-1]).
    labels: int64, each in 0..V-1 or `ignore_index`.
    shift: labels [..., S] stand beside their own inputs: position s is scored against label s + 1, the last one against
        none. Nothing is copied.
    ignore_index: any int, also one in 0..V-1, which then is no label.
    weight: floating [...], one for each token of `labels` and shifted with them; used in fp32; carries no gradient.
    softcap, label_smoothing, z_loss: c > 0 in c * tanh(x / c); in [0, 1), as torch has it; factor >= 0 of lse^2.
    reduction: "none" (losses in the shape of `labels`), "sum", or "mean": the weighted sum over the normaliser.
    normaliser: a number above 0 or a 0-d tensor on the device. None: the sum of the weights of the scored tokens,
        without weights their number.
    inplace: the gradient may be written over the logits, which saves their memory and (for "sum" and "mean" in fp32 and
        bf16) a third of the traffic. From the call on the logits hold nothing of use. A second backward through it is
        an error. Where no gradient is wanted, and under torch.compile, the logits stay as they are.
    check: what becomes of a label that is neither in the vocabulary nor ignored. True: ValueError, which waits for the
        device. False: loss and gradient of its row are NaN, and so is every sum over it. None: True where the labels
        lie on the CPU, else False.

    Returns the value and the number of scored tokens. Where there is none, or where the weights that normaliser=None
    divides by sum to 0, the value is 0 and every gradient exactly 0.

    Raises TypeError or ValueError naming the argument, what was expected and what came; RuntimeError for CPU tensors
    without Triton's interpreter.
    """
    _check_logits(logits)
    check_labels(labels, weight, logits, shift=shift, ignore_index=ignore_index)
    check_options(softcap, label_smoothing, z_loss)
    divisor = divisor_of_mean(reduction, normaliser, logits)
    check = labels.device.type == "cpu" if check is None else check
    settings = (ignore_index, float(softcap or 0), float(label_smoothing), float(z_loss), shift)
    arguments = (logits, labels, weight, divisor, reduction, check, *settings)
    if inplace:
        _check_writable(logits)
        if logits.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return Loss(*ops.OPERATORS.inplace(*arguments))
    value, count, *_ = ops.forward_op(*arguments)
    return Loss(value, count)


def _check_logits(logits: Tensor) -> None:
    if logits.dtype not in FLOATS:
        refuse(TypeError, "logits", "torch.float32, torch.bfloat16 or torch.float16", logits.dtype)
    if not logits.dim() or not logits.shape[-1]:
        refuse(ValueError, "logits", "shape [..., V]", list(logits.shape))
    if logits.shape[-1] > 1 and logits.stride(-1) != 1:
        refuse(ValueError, "logits", "stride 1 in the vocabulary", layout(logits))
    if rows_of(logits) is None:
        refuse(ValueError, "logits", "rows that two strides reach (reshape them to [N, V])", layout(logits))


def _check_writable(logits: Tensor) -> None:
    if logits.requires_grad and logits.is_leaf and torch.is_grad_enabled():
        refuse(ValueError, "logits", "for inplace=True no leaf that requires grad", "one; use inplace=False")
    if overlaps_itself(logits.shape, logits.stride()):
        expected = "for inplace=True a tensor whose elements do not share memory"
        refuse(ValueError, "logits", expected, layout(logits))
