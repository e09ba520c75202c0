"""Liger Kernel: its cross-entropies, its rotary kernels, and its patches of whole families.

Its RMSNorm and SwiGLU kernels, and soft-caps in its losses, do not run in Triton's interpreter, which hands them plain
numbers: they are left out.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from assay.audits import peer
from assay.audits.terms import Candidate, Inexpressible

HERE = "assay.audits.peers.liger_kernel"
LOSS = "masked_loss.linear_cross_entropy"
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def _candidates() -> Iterator[Candidate]:
    call = functools.partial(peer.calls, costly=True)
    yield call("masked_loss.cross_entropy", "cross-entropy", f"{HERE}:cross_entropy", form="liger")
    yield call(LOSS, "fused-linear", f"{HERE}:fused_linear", form="liger")
    scope: dict[str, Any] = {"reduction": "mean", "weighted": False, "label_smoothing": 0.0, "z_loss": 0.0}
    yield call(LOSS, "for-causal-lm", f"{HERE}:for_causal_lm", form="assay", scope={**scope, "biased": False})
    rope = "liger_kernel.transformers"
    yield call(
        "mrope.rotate", "multimodal-rotary", f"{rope}.qwen2vl_mrope:liger_multimodal_rotary_pos_emb", form="hf-4.57"
    )
    yield call("mrope.rotate", "rotary", f"{HERE}:rotary", form="assay", scope={"pairing": "half"})
    for family in FAMILIES:
        yield peer.patched("patch", f"{family}-rotary", family, f"{HERE}:rotary_only")
        yield peer.patched("patch", f"{family}-loss", family, f"{HERE}:loss_only")
        yield peer.patched("masked_loss.model", f"{family}-loss", family, f"{HERE}:loss_only")
    yield peer.patched("mrope.model", "qwen2_5_vl-rotary", "qwen2_5_vl", f"{HERE}:rotary_only")
    yield peer.patched("packed_positions.model", "qwen2_5_vl", "qwen2_5_vl", f"{HERE}:both")
    yield peer.patched("masked_scatter.model", "qwen2_5_vl-loss", "qwen2_5_vl", f"{HERE}:loss_only")


PEER = peer.Peer(
    name="liger-kernel",
    source="https://github.com/linkedin/Liger-Kernel",
    requirements=("liger-kernel==0.8.5", "transformers==5.16.1", "triton==3.7.1", "pillow"),
    candidates=_candidates,
    preload=("transformers", "liger_kernel.transformers"),
)
"""With transformers 5.16.1, the last release in which all of its patches land."""


def cross_entropy(*given: Tensor, softcap: float | None, **options: Any) -> Any:
    """``liger_cross_entropy``."""
    from liger_kernel.transformers.functional import liger_cross_entropy

    _uncapped(softcap)
    return liger_cross_entropy(*given, **options)


def fused_linear(*given: Tensor, softcap: float | None, **options: Any) -> Any:
    """``liger_fused_linear_cross_entropy``."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    _uncapped(softcap)
    return liger_fused_linear_cross_entropy(*given, **options)


def _uncapped(softcap: float | None) -> None:
    if softcap is not None:
        raise Inexpressible("soft-caps do not run in Triton's interpreter")


def for_causal_lm(hidden: Tensor, head: Tensor, labels: Tensor, **options: Any) -> SimpleNamespace:
    """``LigerForCausalLMLoss``, as its forwards call it."""
    from liger_kernel.transformers.model.loss_utils import LigerForCausalLMLoss

    _uncapped(options["softcap"])
    if any(options[name] is not None for name in ("bias", "weight")):
        raise Inexpressible("no bias, and no weights of tokens")
    if options["label_smoothing"] or options["z_loss"] or options["reduction"] != "mean":
        raise Inexpressible("the plain mean, or the sum over a number of items")
    if options["normaliser"] is not None and options["normaliser"] != int(options["normaliser"]):
        raise Inexpressible("whole items only")
    told = {"labels": labels} if options["shift"] else {"labels": None, "shift_labels": labels}
    items = None if options["normaliser"] is None else int(options["normaliser"])
    value = LigerForCausalLMLoss(
        hidden, head, hidden_size=hidden.shape[-1], num_items_in_batch=items, ignore_index=options["ignore_index"],
        **told,
    )  # fmt: skip
    return SimpleNamespace(value=value)


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, pairing: str, rotary_dim: int) -> Any:
    """``liger_rotary_pos_emb`` with tables of half width, of which it is told the width that is turned."""
    from liger_kernel.transformers.rope import liger_rotary_pos_emb

    if pairing != "half":
        raise Inexpressible("halves of heads are turned, not neighbours")
    return liger_rotary_pos_emb(q, k, cos, sin, rotary_dim=rotary_dim)


OFF = {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False, "rms_norm": False, "swiglu": False}


def _apply(**on: bool) -> None:
    from liger_kernel.transformers import monkey_patch

    for family in FAMILIES:
        getattr(monkey_patch, f"apply_liger_kernel_to_{family}")(**{**OFF, **on})


def rotary_only() -> None:
    """The rotary kernels of three families."""
    _apply(rope=True)


def loss_only() -> None:
    """Their fused linear cross-entropy."""
    _apply(fused_linear_cross_entropy=True)


def both() -> None:
    """Rotary kernels and fused losses."""
    _apply(rope=True, fused_linear_cross_entropy=True)
