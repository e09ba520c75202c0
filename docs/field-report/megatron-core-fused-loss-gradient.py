"""Megatron Core's fused vocabulary-parallel loss rounds every gradient to bfloat16, whatever the logits are.

Right is the gradient in the dtype of the logits, as its unfused loss and PyTorch's give it: here in float32 and, for
small gradients, float16. Exit status 1: the bug shows.
"""

import tempfile

import torch
from megatron.core import parallel_state
from megatron.core.fusions.fused_cross_entropy import fused_vocab_parallel_cross_entropy
from megatron.core.tensor_parallel.cross_entropy import vocab_parallel_cross_entropy

store = f"file://{tempfile.mkdtemp()}/store"
torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
parallel_state.initialize_model_parallel()
group = parallel_state.get_tensor_model_parallel_group()
generator = torch.Generator().manual_seed(0)
start = torch.randn(64, 2, 50, generator=generator)
target = torch.randint(50, (64, 2), generator=generator)
functions = {
    "PyTorch": lambda x: torch.nn.functional.cross_entropy(x.flatten(0, 1), target.flatten(), reduction="none"),
    "unfused": lambda x: vocab_parallel_cross_entropy(x, target),
    "fused": lambda x: fused_vocab_parallel_cross_entropy(x, target, group),
}
found = {}
for name, function in functions.items():
    logits = start.clone().requires_grad_()
    function(logits * 1.0).sum().backward()
    found[name] = logits.grad
    off = float((logits.grad - found["PyTorch"]).abs().max())
    exact = float((logits.grad == logits.grad.bfloat16().float()).float().mean())
    print(
        f"{name:8} {logits.grad.dtype}: largest difference {off:.1e}; {exact:.1%} of the gradients are bfloat16 numbers"
    )
raise SystemExit(int(bool((found["fused"] == found["fused"].bfloat16().float()).all())))
