"""Megatron Core: its multimodal rotary embedding, and its vocabulary-parallel losses on one rank."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from assay.audits import peer
from assay.audits.terms import Candidate, Inexpressible

HERE = "assay.audits.peers.megatron_core"
LOSS = "masked_loss.cross_entropy"


def _candidates() -> Iterator[Candidate]:
    chunked = {"layout": "chunked", "pairing": "half", "attention_scaling": 1.0}
    yield peer.calls("mrope.rotate", "multimodal-rotary", f"{HERE}:rotate", form="assay-positions", scope=chunked)
    adjacent = {**chunked, "pairing": "adjacent"}
    yield peer.calls(
        "mrope.rotate", "multimodal-rotary-interleaved", f"{HERE}:rotate", form="assay-positions", scope=adjacent
    )
    half = {"batch": 1, "uniform": True, "pairing": "half", "attention_scaling": 1.0}
    yield peer.calls("mrope.rotate", "rotary-cos-sin", f"{HERE}:by_tables", form="assay", scope=half)
    # Masking is the caller's: it multiplies the loss of each token.
    scope = {"reduction": "none", "masked": "none", "ignore_index": -100, "weighted": False}
    for name in ("vocab-parallel", "vocab-parallel-fused"):
        yield peer.calls(
            LOSS, name, f"{HERE}:{name.replace('-', '_')}", form="torch", scope={**scope, "label_smoothing": 0.0}
        )


PEER = peer.Peer(
    name="megatron-core",
    source="https://github.com/NVIDIA/Megatron-LM",
    requirements=("megatron-core==0.16.1", "packaging"),
    candidates=_candidates,
    variables={"TORCHDYNAMO_DISABLE": "1"},  # what it compiles is the same uncompiled
    preload=("megatron.core.models.common.embeddings.rotary_pos_embedding",),
)


def rotate(
    q: Tensor, k: Tensor, positions: Tensor, inv_freq: Tensor, *, axes: Tensor, pairing: str, attention_scaling: float
) -> tuple[Tensor, Tensor]:
    """``MultimodalRotaryEmbedding`` and ``apply_rotary_pos_emb`` on q and k [B,H,S,D].

    The embedding makes its frequencies on the current device of CUDA, which is made to be the CPU; then it is handed
    those of the case.
    """
    from megatron.core.models.common.embeddings import rope_utils
    from megatron.core.models.common.embeddings.rotary_pos_embedding import MultimodalRotaryEmbedding

    if attention_scaling != 1.0 or len(positions) != 3:
        raise Inexpressible("three axes, and tables that are not scaled")
    sections = torch.bincount(axes.long(), minlength=3).tolist()
    if not torch.equal(axes.long(), torch.arange(3).repeat_interleave(torch.tensor(sections))):
        raise Inexpressible("chunked sections only")
    interleaved = pairing == "adjacent"
    torch.cuda.current_device = lambda: "cpu"  # type: ignore[assignment,return-value]  # as its constructor asks for
    made = MultimodalRotaryEmbedding(2 * len(axes), 1.0, rotary_interleaved=interleaved)
    made.inv_freq = inv_freq
    freqs = made(positions, sections)
    config = SimpleNamespace(
        apply_rope_fusion=False, rotary_interleaved=interleaved, multi_latent_attention=False, mrope_section=sections
    )
    found = (
        rope_utils.apply_rotary_pos_emb(x.permute(2, 0, 1, 3), freqs, config, cp_group=_group()).permute(1, 2, 0, 3)
        for x in (q, k)
    )
    return next(found), next(found)


def by_tables(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, pairing: str, rotary_dim: int
) -> tuple[Tensor, Tensor]:
    """``apply_rotary_pos_emb_with_cos_sin``: one table [S,R/2] for all samples."""
    from megatron.core.models.common.embeddings.rope_utils import apply_rotary_pos_emb_with_cos_sin

    if 2 * cos.shape[-1] != rotary_dim:
        raise Inexpressible("the width that is turned follows from the tables")
    if pairing != "half" or not len(cos) or not bool((cos == cos[:1]).all() and (sin == sin[:1]).all()):
        raise Inexpressible("halves are turned, in all samples alike")
    found = (
        apply_rotary_pos_emb_with_cos_sin(x.permute(2, 0, 1, 3), cos[0], sin[0]).permute(1, 2, 0, 3) for x in (q, k)
    )
    return next(found), next(found)


@functools.cache
def _group() -> Any:
    """A process group of this process alone."""
    if not torch.distributed.is_initialized():
        store = Path(tempfile.mkdtemp()) / "store"
        torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    return torch.distributed.group.WORLD


def _rows(function: Callable[..., Tensor], logits: Tensor, labels: Tensor, options: dict[str, Any]) -> Tensor:
    if (
        options["reduction"] != "none"
        or options.get("label_smoothing")
        or bool((labels == options["ignore_index"]).any())
    ):
        raise Inexpressible("the loss of each token, none of which is masked")
    return function(logits[:, None], labels[:, None])[:, 0]


def vocab_parallel(logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
    """``vocab_parallel_cross_entropy``: logits [S,1,V], a loss for each."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.cross_entropy import vocab_parallel_cross_entropy

    if _group() and not parallel_state.is_initialized():
        parallel_state.initialize_model_parallel()
    return _rows(vocab_parallel_cross_entropy, logits, labels, options)


def vocab_parallel_fused(logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
    """``fused_vocab_parallel_cross_entropy``."""
    from megatron.core.fusions.fused_cross_entropy import fused_vocab_parallel_cross_entropy

    return _rows(functools.partial(fused_vocab_parallel_cross_entropy, tp_group=_group()), logits, labels, options)
