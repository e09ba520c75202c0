"""A second backward pass through Liger's losses gives another gradient: the stored one was scaled in place.

Reachable with ``retain_graph=True`` and a loss that is multiplied (gradient accumulation, loss scaling, several
objectives). Right is the same gradient each time, as PyTorch's loss gives. Exit status 1: the bug shows.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch
from liger_kernel.transformers.functional import liger_cross_entropy, liger_fused_linear_cross_entropy

generator = torch.Generator().manual_seed(0)
start = torch.randn(6, 8, generator=generator)
head = torch.randn(5, 8, generator=generator)
target = torch.tensor([1, 2, -100, 3, 0, 4])

losses = {
    "PyTorch": lambda hidden: torch.nn.functional.cross_entropy(hidden @ head.T, target),
    "Liger cross-entropy": lambda hidden: liger_cross_entropy(hidden @ head.T, target),
    "Liger fused linear": lambda hidden: liger_fused_linear_cross_entropy(hidden, head, target),
}
broken = False
for name, function in losses.items():
    hidden = start.clone().requires_grad_()
    loss = function(hidden) * 0.25
    passes = [torch.autograd.grad(loss, hidden, retain_graph=True)[0].clone() for _ in range(3)]
    norms = [float(one.norm()) for one in passes]
    print(f"{name:20} norm of the gradient of 0.25 * loss, three times:", *(f"{norm:.6f}" for norm in norms))
    broken |= not torch.allclose(passes[0], passes[1])
raise SystemExit(int(broken))
