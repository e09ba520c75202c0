"""Cross-entropy from hidden states and the weight of a language-model head, without storing the logits.

H is the hidden width, V the vocabulary, [...] the shape of the labels. The readable form is
`assay.reference.linear_cross_entropy`; options and their meaning are those of `cross_entropy`.

* Scored tokens are picked first. Time and memory follow their number: with nine labels in ten ignored, a tenth.
* Their logits exist one chunk at a time, and become their own gradient where they are. Chunks are large (3 GiB of
  logits on a GPU, 256 MiB elsewhere): each reads the head twice and adds to its gradient, which is then fp32.
* Gradients are made in forward. A frozen head, hidden states that need no gradient, and a pass without gradients skip
  their products. "none" and fp16, whose gradients depend on what backward brings, compute the logits again there.
* On a GPU the cross-entropy of a chunk is the Triton kernel. Everywhere else, the CPU included, and in float64, it is
  plain torch: there the saving is memory, and time where labels are ignored.
"""

from __future__ import annotations

import torch
from torch import Tensor

from assay.kernels import linear_cross_entropy_ops as ops
from assay.kernels.loss_arguments import Loss, check_labels, check_options, check_tensor, divisor_of_mean
from assay.kernels.operands import refuse

__all__ = ["Loss", "linear_cross_entropy"]

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def linear_cross_entropy(
    hidden: Tensor, head: Tensor, labels: Tensor, *, bias: Tensor | None = None, shift: bool = False,
    ignore_index: int = -100, weight: Tensor | None = None, softcap: float | None = None, label_smoothing: float = 0.0,
    z_loss: float = 0.0, reduction: str = "mean", normaliser: Tensor | float | None = None,
    memory_budget: int | None = None, num_valid: int | None = None, check: bool | None = None,
) -> Loss:  # fmt: skip
    """Cross-entropy of hidden [..., H] under head [V, H] against labels [...]: `cross_entropy(hidden @ head.T + bias)`.

    hidden: fp32, bf16, fp16 or float64, any strides; rows without a label are not read. head, bias [V]: its dtype.
        Under autocast all three are cast to its dtype, as torch's linear does.
    labels, shift, ignore_index, weight, softcap, label_smoothing, z_loss, reduction, normaliser: as for
        `cross_entropy`.
    memory_budget: bytes that the logits of a chunk may take, what is made of them included; at least one row is taken.
    num_valid: at least as many labels as are scored. None: the host counts them and waits for the device once (again
        in backward for "none" and fp16). Given, nothing is waited for, and rows beyond the scored ones cost time; too
        small a number turns loss and gradients into NaN.
    check: True: ValueError for a label outside the vocabulary or too small a num_valid. False: such a label turns the
        loss and gradients into NaN. None: True where that waits for nothing more (num_valid is None, or the labels
        lie on the CPU), else False.

    Returns the value, fp32 or float64 like the arithmetic, and the number of scored tokens. Where there is none, or
    where the weights that normaliser=None divides by sum to 0, the value is 0 and every gradient exactly 0.

    Raises TypeError or ValueError naming the argument, what was expected and what came.
    """
    hidden, head, bias = _cast_for_autocast(hidden, head, bias)
    _check_head(hidden, head, bias)
    check_labels(labels, weight, hidden, shift=shift, ignore_index=ignore_index)
    check_options(softcap, label_smoothing, z_loss)
    _check_bound("memory_budget", memory_budget, 1)
    _check_bound("num_valid", num_valid, 0)
    divisor = divisor_of_mean(reduction, normaliser, hidden)
    check = (num_valid is None or labels.device.type == "cpu") if check is None else check
    now = torch.is_grad_enabled() and reduction != "none" and hidden.dtype != torch.float16
    wanted = [now and x is not None and x.requires_grad for x in (hidden, head, bias)]
    settings = (ignore_index, float(softcap or 0), float(label_smoothing), float(z_loss), shift)
    value, count, *_ = ops.forward_op(
        hidden, head, bias, labels, weight, divisor, *wanted, reduction, check, num_valid, memory_budget, *settings
    )
    return Loss(value, count)


def _cast_for_autocast(hidden: Tensor, head: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    device = hidden.device.type
    if device == "meta" or not torch.is_autocast_enabled(device) or hidden.dtype == torch.float64:
        return hidden, head, bias
    dtype = torch.get_autocast_dtype(device)
    return hidden.to(dtype), head.to(dtype), None if bias is None else bias.to(dtype)


def _check_head(hidden: Tensor, head: Tensor, bias: Tensor | None) -> None:
    if hidden.dtype not in FLOATS:
        refuse(TypeError, "hidden", "torch.float32, bfloat16, float16 or float64", hidden.dtype)
    if not hidden.dim():
        refuse(ValueError, "hidden", "shape [..., H]", "a 0-d tensor")
    for name, tensor in (("head", head), ("bias", bias)):
        if tensor is not None and tensor.dtype != hidden.dtype:
            refuse(TypeError, name, f"the dtype of hidden, {hidden.dtype}", tensor.dtype)
    if head.dim() != 2 or not len(head):
        refuse(ValueError, "head", f"shape [V, {hidden.shape[-1]}]", list(head.shape))
    check_tensor("head", head, (len(head), hidden.shape[-1]), hidden)
    if bias is not None:
        check_tensor("bias", bias, (len(head),), hidden)


def _check_bound(name: str, value: int | None, low: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        refuse(TypeError, name, "an int or None", type(value).__name__)
    if value < low:
        refuse(ValueError, name, f"at least {low}", value)
