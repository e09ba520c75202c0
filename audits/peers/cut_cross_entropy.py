"""Cut Cross-Entropy: its two implementations of the loss from hidden states and the head's weight."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from assay.audits import peer
from assay.audits.terms import Candidate, Inexpressible

HERE = "assay.audits.peers.cut_cross_entropy"
NAME = "masked_loss.linear_cross_entropy"


def _candidates() -> Iterator[Candidate]:
    scope = {"biased": False, "weighted": False, "normaliser": None, "label_smoothing": 0.0, "z_loss": 0.0}
    for implementation in ("compiled", "kernel"):
        ref = f"{HERE}:{implementation}"
        yield peer.calls(NAME, implementation, ref, form="cce", scope=scope, costly=True)


PEER = peer.Peer(
    name="cut-cross-entropy",
    source="https://github.com/apple/ml-cross-entropy",
    requirements=("cut-cross-entropy==25.1.1", "triton==3.7.1"),
    candidates=_candidates,
    preload=("cut_cross_entropy",),
)


def _called(*given: Tensor, implementation: str, bias: Tensor | None, **options: Any) -> Any:
    from cut_cross_entropy import linear_cross_entropy

    if bias is not None:
        raise Inexpressible("the released function has no bias")
    return linear_cross_entropy(*given, impl=implementation, **options)


def compiled(*given: Tensor, **options: Any) -> Any:
    """``linear_cross_entropy`` with ``impl="torch_compile"``."""
    return _called(*given, implementation="torch_compile", **options)


def kernel(*given: Tensor, **options: Any) -> Any:
    """``linear_cross_entropy`` with ``impl="cce"``, in Triton's interpreter: the forward pass.

    The interpreter has no functions of the device's library, so tanh and log1p are written out for it. The backward
    pass takes half precision only, and says so.
    """
    _written_out()
    if given[0].requires_grad or given[1].requires_grad:
        raise Inexpressible("gradients are made in half precision only")
    return _called(*given, implementation="cce", **options)


@functools.cache
def _written_out() -> None:
    import triton.language as tl
    from cut_cross_entropy import tl_utils

    tl_utils.tl_libdevice = SimpleNamespace(tanh=lambda x: 1 - 2 / (tl.exp(2 * x) + 1), log1p=lambda x: tl.log(1 + x))
