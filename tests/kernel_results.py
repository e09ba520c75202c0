"""What a kernel gave beside what it should: bit for bit, or by the error of an ordinary form of the same arithmetic."""

# mypy: allow-untyped-calls
# Some of torch's own methods carry no types.

from collections.abc import Sequence

import torch
from torch import Tensor

FP32_EPS = torch.finfo(torch.float32).eps


def assert_same(got: Tensor | Sequence[Tensor], expected: Tensor | Sequence[Tensor]) -> None:
    """Bit for bit, NaN included."""
    pairs = [(x,) if isinstance(x, Tensor) else x for x in (got, expected)]
    for at, (a, b) in enumerate(zip(*pairs, strict=True)):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        same = (a == b) | (a.isnan() & b.isnan())
        assert same.all(), f"output {at}: {int((~same).sum())} of {same.numel()} elements differ"


def judge(name: str, got: Tensor, truth: Tensor, ordinary: Tensor) -> None:
    """At most twice the ordinary form's error or the floor of the arithmetic, by maximum and by root mean square.

    `truth` is in float64; `ordinary` is that form's result, in the dtype that `got` must have.
    """
    got, truth, ordinary = got.detach(), truth.detach(), ordinary.detach()
    assert got.shape == truth.shape
    assert got.dtype == ordinary.dtype
    assert got.isfinite().all(), f"{name}: {int((~got.isfinite()).sum())} of {got.numel()} not finite"
    if not got.numel():
        return
    error, usual, rounding = ((x.double() - truth).abs() for x in (got, ordinary, truth.to(ordinary.dtype)))
    reach = 4 * FP32_EPS * truth.abs().max()
    worst = torch.unravel_index(error.argmax(), error.shape)
    for norm, of in (("max", torch.max), ("rms", lambda x: x.square().mean().sqrt())):
        limit = torch.maximum(2 * of(usual), of(rounding) + reach)
        where = f"at {[int(i) for i in worst]}: {got[worst].item()} for {truth[worst].item()}"
        assert of(error) <= limit, f"{name} {norm} error {of(error):.3g}, limit {limit:.3g}, worst {where}"
