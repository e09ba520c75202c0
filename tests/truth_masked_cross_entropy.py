"""Cross-entropy of logits in float64: the formula, data to ask it about, and the kernel beside it.

Letters in shapes: B batch, S sequence, V vocabulary.
"""

# mypy: allow-untyped-calls
# Some of torch's own methods carry no types.

from typing import Any

import torch
from kernel_device import DEVICE
from torch import Tensor

from assay.audits.laws import limits
from assay.kernels.masked_cross_entropy import cross_entropy

REDUCTIONS = ("none", "sum", "mean")
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "shift": {"shift": True},
    "softcap": {"softcap": 3.0},
    "label_smoothing": {"label_smoothing": 0.3},
    "z_loss": {"z_loss": 0.1},
    "all": {"shift": True, "softcap": 5.0, "label_smoothing": 0.2, "z_loss": 0.01},
}
B, S = 2, 5


def random(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(DEVICE)


def make(vocabulary: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits [B, S, V], labels with both ends of the vocabulary and some ignored, weights, upstream gradients."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, vocabulary, (B, S), generator=generator)
    labels[0, 0], labels[0, 2], labels[1, 3] = 0, vocabulary - 1, 0
    labels[0, 1] = labels[1, 0] = labels[1, 4] = -100
    weight = torch.rand(B, S, generator=generator) + 0.1
    return random(B, S, vocabulary, seed=seed, scale=3.0), labels.to(DEVICE), weight.to(DEVICE), random(B, S, seed=7)


def shifted(x: Tensor, fill: float) -> Tensor:
    return torch.cat([x[..., 1:], torch.full_like(x[..., :1], fill)], -1)


def truth(
    logits: Tensor, labels: Tensor, *, shift: bool = False, ignore_index: int = -100, weight: Tensor | None = None,
    softcap: float | None = None, label_smoothing: float = 0.0, z_loss: float = 0.0, reduction: str = "mean",
    normaliser: float | None = None, dtype: torch.dtype = torch.float64,
) -> Tensor:  # fmt: skip
    """The formula, every step of it in one dtype."""
    weights = torch.ones(labels.shape, device=DEVICE) if weight is None else weight
    if shift:
        labels, weights = shifted(labels, ignore_index), shifted(weights, 0)
    scored = labels != ignore_index
    x = logits.to(dtype)[scored]
    x = softcap * torch.tanh(x / softcap) if softcap else x
    lse = x.logsumexp(-1)
    at_label = x.gather(-1, labels[scored][:, None])[:, 0]
    each = lse - (1 - label_smoothing) * at_label
    if label_smoothing:
        each = each - label_smoothing * x.mean(-1)
    losses = torch.zeros(labels.shape, dtype=dtype, device=DEVICE)
    losses[scored] = (each + z_loss * lse**2) * weights.to(dtype)[scored]
    if reduction == "none":
        return losses
    return losses.sum() / ((normaliser or weights.to(dtype)[scored].sum()) if reduction == "mean" else 1)


def judge(name: str, got: Tensor, expected: Tensor, reach: Tensor | float) -> None:
    """Within the floor of the arithmetic for numbers of this reach; twice an ordinary form's error is not granted."""
    assert got.shape == expected.shape
    assert got.isfinite().all(), f"{name}: {int((~got.isfinite()).sum())} of {got.numel()} are not finite"
    reach = torch.as_tensor(reach, dtype=torch.float64, device=DEVICE)
    error = limits.relative(limits.difference(got, expected), reach)
    allowed = limits.floor([expected], reach, got.dtype)
    assert limits.excess(name, error, allowed, lambda: (), "too far from float64") is None, limits.norms(error)


def compare(logits: Tensor, labels: Tensor, upstream: Tensor, *, inplace: bool = False, **options: Any) -> None:
    """Value and gradient of the kernel against the truth; the upstream gradient is never 1."""
    x = logits.detach().requires_grad_()
    upstream = upstream if options.get("reduction") == "none" else upstream.flatten()[:1].squeeze()
    expected = truth(x, labels, **options)
    (slope,) = torch.autograd.grad(expected, x, upstream.double())
    value, count = cross_entropy(x * 1, labels, inplace=inplace, **options)
    (gradient,) = torch.autograd.grad(value, x, upstream)
    ignored = options.get("ignore_index", -100)
    targets = shifted(labels, ignored) if options.get("shift") else labels
    assert count.dtype == torch.int64
    assert int(count) == int((targets != ignored).sum())
    assert value.dtype == torch.float32
    reach = float(logits.abs().max()) + float(expected.detach().abs().max())
    terms = 1 if expected.dim() or options.get("reduction", "mean") == "mean" else int(count)
    judge("value", value, expected, reach * terms)
    assert gradient.dtype == logits.dtype
    judge("gradient", gradient, slope, max(float(slope.double().abs().max()), float(upstream.abs().max())))
