"""Liger's fused linear cross-entropy scores a label beyond the vocabulary, and spoils the gradient of other rows.

The kernel reads and writes the logit at the label's place, which is in the next row's memory. Right is an error, as
from PyTorch's loss and from Liger's own unfused one. Exit status 1: the bug shows.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch
from liger_kernel.transformers.functional import liger_cross_entropy, liger_fused_linear_cross_entropy

generator = torch.Generator().manual_seed(0)
hidden = torch.randn(4, 8, generator=generator)
head = torch.randn(5, 8, generator=generator)  # five columns: labels 0 to 4
bad = torch.tensor([1, 7, 2, 3])  # of the second row; its eighth column is the third of the next row
without = torch.tensor([1, -100, 2, 3])


def gradient(labels):
    """Loss and gradient of the hidden states."""
    own = hidden.clone().requires_grad_()
    loss = liger_fused_linear_cross_entropy(own, head, labels, reduction="sum")
    loss.backward()
    return float(loss.detach()), own.grad


def refusal(function):
    """The name of the error that a function raises, None if it raises none."""
    try:
        function((hidden @ head.T).requires_grad_(), bad)
    except Exception as error:
        return type(error).__name__
    return None


print(f"label 7 of 5 columns: PyTorch {refusal(torch.nn.functional.cross_entropy)}, "
      f"Liger's unfused loss {refusal(liger_cross_entropy)}")  # fmt: skip
try:
    loss, found = gradient(bad)
except Exception as error:
    print(f"Liger's fused loss {type(error).__name__}")
    raise SystemExit(0) from None
print(f"Liger's fused loss returns {loss:.4f}")
_, wanted = gradient(without)
for row in (0, 2, 3):
    print(f"row {row}, whose label is right: its gradient moves by {float((found - wanted)[row].abs().max()):.4f}")
raise SystemExit(1)
