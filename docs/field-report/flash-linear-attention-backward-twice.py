"""A second backward pass through fla's fused linear cross-entropy gives another gradient.

The stored one was scaled in place.
Reachable with ``retain_graph=True`` and a loss that is multiplied. Right is the same gradient each time, as PyTorch's
loss and fla's own unfused loss give. Exit status 1: the bug shows.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch
from fla.modules.fused_cross_entropy import cross_entropy_loss
from fla.modules.fused_linear_cross_entropy import fused_linear_cross_entropy_loss

generator = torch.Generator().manual_seed(0)
start = torch.randn(6, 8, generator=generator)
head = torch.randn(5, 8, generator=generator)
target = torch.tensor([1, 2, -100, 3, 0, 4])

losses = {
    "PyTorch": lambda hidden: torch.nn.functional.cross_entropy(hidden @ head.T, target),
    "fla unfused": lambda hidden: cross_entropy_loss(hidden @ head.T, target)[0].sum() / 5,
    "fla fused linear": lambda hidden: fused_linear_cross_entropy_loss(hidden, target, head),
}
broken = False
for name, function in losses.items():
    hidden = start.clone().requires_grad_()
    loss = function(hidden) * 0.25
    passes = [torch.autograd.grad(loss, hidden, retain_graph=True)[0].clone() for _ in range(3)]
    print(
        f"{name:17} norm of the gradient of 0.25 * loss, three times:", *(f"{float(one.norm()):.6f}" for one in passes)
    )
    broken |= not torch.allclose(passes[0], passes[1])
raise SystemExit(int(broken))
