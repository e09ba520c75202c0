"""Liger's fused linear cross-entropy gives the head no gradient where the hidden states need none.

That is a frozen backbone of which only the head is trained. Right is what PyTorch's own loss gives, and what the same
function gives with ``reduction="none"``. Exit status 1: the bug shows.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch
from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

generator = torch.Generator().manual_seed(0)
hidden = torch.randn(6, 8, generator=generator)
target = torch.tensor([1, 2, -100, 3, 0, 4])
start = torch.randn(5, 8, generator=generator)


def head_gradient(reduction: str, *, fused: bool):
    """The gradient of the head, summed over rows where there is one loss for each."""
    head = start.clone().requires_grad_()
    if fused:
        loss = liger_fused_linear_cross_entropy(hidden, head, target, reduction=reduction)
    else:
        loss = torch.nn.functional.cross_entropy(hidden @ head.T, target, reduction=reduction)
    loss.sum().backward()
    return head.grad


broken = False
for reduction in ("mean", "sum", "none"):
    wanted, found = head_gradient(reduction, fused=False), head_gradient(reduction, fused=True)
    told = "None" if found is None else f"{found.norm():.6f} (largest difference {(found - wanted).abs().max():.1e})"
    print(f"{reduction:5} norm of the head's gradient: PyTorch {wanted.norm():.6f}, Liger {told}")
    broken |= found is None
raise SystemExit(int(broken))
