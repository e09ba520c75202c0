"""Flash Linear Attention: its losses. Its rotary kernel is tuned by trying it, for which there must be a GPU."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from assay.audits import peer
from assay.audits.terms import Candidate, Inexpressible

HERE = "assay.audits.peers.flash_linear_attention"
TUNED = "the kernel is tuned by timing several configurations, which takes a GPU"
CAPPED = "soft-caps do not run in Triton's interpreter"


def _candidates() -> Iterator[Candidate]:
    call = functools.partial(peer.calls, form="liger", costly=True)
    yield call("masked_loss.linear_cross_entropy", "fused-linear", f"{HERE}:fused_linear", scope={"z_loss": 0.0})
    yield call("masked_loss.cross_entropy", "fused", f"{HERE}:fused")
    yield peer.unrunnable("mrope.rotate", "rotary", TUNED)


PEER = peer.Peer(
    name="flash-linear-attention",
    source="https://github.com/fla-org/flash-linear-attention",
    requirements=("flash-linear-attention==0.6.0", "triton==3.7.1"),
    candidates=_candidates,
    preload=("fla.modules.fused_linear_cross_entropy", "fla.modules.fused_cross_entropy"),
)


def fused_linear(
    hidden: Tensor, head: Tensor, labels: Tensor, *, softcap: float | None, lse_square_scale: float, **options: Any
) -> Any:
    """``fused_linear_cross_entropy_loss``."""
    from fla.modules.fused_linear_cross_entropy import fused_linear_cross_entropy_loss

    if softcap is not None:
        raise Inexpressible(CAPPED)
    if lse_square_scale or options["reduction"] == "none":
        raise Inexpressible("the plain mean or sum")
    return fused_linear_cross_entropy_loss(hidden, labels, head, **options)


def fused(logits: Tensor, labels: Tensor, *, softcap: float | None, reduction: str, **options: Any) -> Tensor:
    """``cross_entropy_loss``, reduced as ``FusedCrossEntropyLoss`` does, which itself refuses tensors on a CPU."""
    from fla.modules.fused_cross_entropy import cross_entropy_loss

    if softcap is not None:
        raise Inexpressible(CAPPED)
    rows: Tensor = cross_entropy_loss(logits, labels, **options)[0]
    return {"none": rows, "sum": rows.sum(), "mean": rows.sum() / (labels != options["ignore_index"]).sum()}[reduction]
