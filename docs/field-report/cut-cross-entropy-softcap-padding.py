"""Cut Cross-Entropy counts padding of its last tile of the vocabulary where logits are soft-capped.

Columns beyond the vocabulary are set to -inf and capped after that: each adds exp(-softcap) to the sum. Right is
the loss of capped logits by PyTorch, and by the package's other implementation; with a vocabulary that fills tiles of
128 it is right. Run in Triton's interpreter, which lacks tanh and log1p of the device's library: they are written
out here. Exit status 1: the bug shows.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"

from types import SimpleNamespace

import torch
import triton.language as tl
from cut_cross_entropy import linear_cross_entropy, tl_utils

tl_utils.tl_libdevice = SimpleNamespace(tanh=lambda x: 1 - 2 / (tl.exp(2 * x) + 1), log1p=lambda x: tl.log(1 + x))
generator = torch.Generator().manual_seed(0)
target = torch.tensor([1, 5, 100, 3])
broken = False
for vocabulary in (128, 130):
    hidden = torch.randn(4, 32, generator=generator)
    head = torch.randn(vocabulary, 32, generator=generator) / 2
    for cap in (None, 2.5, 30.0):
        logits = hidden @ head.T
        wanted = torch.nn.functional.cross_entropy(logits if cap is None else cap * torch.tanh(logits / cap), target)
        with torch.no_grad():
            found = linear_cross_entropy(hidden, head, target, softcap=cap, impl="cce")
        told = f"vocabulary {vocabulary}, soft-cap {cap}: PyTorch {float(wanted):.6f}, cce {float(found):.6f}"
        if cap == 2.5:
            other = float(linear_cross_entropy(hidden, head, target, softcap=cap, impl="torch_compile"))
            padding = -vocabulary % 128
            row = torch.logsumexp(cap * torch.tanh(logits / cap), -1)
            padded = torch.logaddexp(row, torch.tensor(padding + 1e-30).log() - cap)
            formula = float(wanted + (padded - row).mean())
            told += f", torch_compile {other:.6f}, formula with {padding} padded columns {formula:.6f}"
        print(told)
        broken |= not torch.allclose(found, wanted, atol=1e-4)
raise SystemExit(int(broken))
