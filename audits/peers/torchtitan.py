"""torchtitan: multimodal positions, packing and rotary of its Qwen3.5, and its loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from assay.audits import peer
from assay.audits.terms import Candidate, Inexpressible
from assay.reference.packed_plan import Piece, Plan

HERE = "assay.audits.peers.torchtitan"
IMAGE, VIDEO = 151_655, 151_656
"""Placeholders of Qwen's vocabulary, as the form ``hf-4.57`` writes them."""


def _candidates() -> Iterator[Candidate]:
    yield peer.calls("mrope.positions", "collator", f"{HERE}:positions", form="hf-4.57", scope={"rule": "qwen3_5"})
    scope: dict[str, Any] = {"pairing": "half", "attention_scaling": 1.0}
    yield peer.calls("mrope.rotate", "mrope", f"{HERE}:rotate", form="assay-positions", scope=scope)
    yield peer.calls("packed_positions.plan", "sample-packer", f"{HERE}:plan", form="assay", scope={"overlong": "drop"})
    scope = {"reduction": "sum", "label_smoothing": 0.0, "ignore_index": -100, "weighted": False, "normaliser": None}
    yield peer.calls("masked_loss.cross_entropy", "loss", f"{HERE}:loss", form="torch", scope=scope)


PEER = peer.Peer(
    name="torchtitan",
    source="https://github.com/pytorch/torchtitan",
    requirements=("torchtitan==0.3.0", "flash-linear-attention==0.6.0", "triton==3.7.1"),
    candidates=_candidates,
    preload=("torchtitan.components.loss", "torchtitan.models.qwen3_5.rope"),
)


def positions(
    input_ids: Tensor, image_grid_thw: Any = None, video_grid_thw: Any = None, _second_per_grid_ts: Any = None,
    attention_mask: Any = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``MultiModalCollator._build_mrope_positions``: rows that are padded on the right, placeholders within markers."""
    from assay.audits.peers import _shims

    _shims.torchvision()
    from torchtitan.hf_datasets.multimodal.mm_collator import MultiModalCollator

    if attention_mask is not None and bool((attention_mask.diff(dim=1) > 0).any()):
        raise Inexpressible("padding is on the right")
    collator = MultiModalCollator(
        batch_size=len(input_ids), seq_len=input_ids.shape[1], max_images_per_batch=99, patch_size=14,
        temporal_patch_size=2, spatial_merge_size=2, tokenizer=None, build_mrope_positions=True,
    )  # fmt: skip
    # Its own rows tell where a sample ends by positions that start anew; so does padding.
    lengths = torch.full((len(input_ids),), input_ids.shape[1]) if attention_mask is None else attention_mask.sum(1)
    places = torch.arange(input_ids.shape[1]).expand_as(input_ids)
    own = torch.where(places < lengths[:, None], places, 0)
    grids = [None if grid is None or not len(grid) else grid for grid in (image_grid_thw, video_grid_thw)]
    made = collator._build_mrope_positions(  # noqa: SLF001  # it has no public door
        input_ids, *grids, own, image_token_id=IMAGE, video_token_id=VIDEO
    )
    made = made.permute(2, 0, 1)
    last = torch.where(places < lengths[:, None], made, -1).amax((0, 2))
    return made, (last + 1 - input_ids.shape[1])[:, None]


def rotate(
    q: Tensor, k: Tensor, positions: Tensor, inv_freq: Tensor, *, axes: Tensor, pairing: str, attention_scaling: float
) -> tuple[Tensor, Tensor]:
    """``MRoPE`` on q and k [B,H,S,D], its table made of the frequencies of the case up to the largest position."""
    from assay.audits.peers import _shims

    _shims.torchvision()
    from torchtitan.models.qwen3_5.rope import MRoPE

    if pairing != "half" or attention_scaling != 1.0 or len(positions) != 3 or 2 * len(axes) != q.shape[-1]:
        raise Inexpressible("three axes, halves of whole heads, and tables that are not scaled")
    if positions.numel() and not 0 <= int(positions.min()) <= int(positions.max()) <= 8192:
        raise Inexpressible("its table has the positions from 0 to its length")
    sections = torch.bincount(axes.long(), minlength=3).tolist()
    lanes = torch.arange(len(axes))
    wanted = sum(axis * ((lanes % 3 == axis) & (lanes < 3 * sections[axis])).long() for axis in (1, 2))
    if not torch.equal(axes.long(), wanted):
        raise Inexpressible("interleaved sections only")
    length = int(positions.max()) + 1 if positions.numel() else 1
    config = MRoPE.Config(dim=2 * len(axes), max_seq_len=length, theta=1e4, mrope_section=sections)
    made = MRoPE(config)
    angles = torch.outer(torch.arange(length).float(), inv_freq.float()).repeat(1, 2)
    made.cache = torch.cat([angles.cos(), angles.sin()], dim=-1)
    found_q, found_k = made(q.transpose(1, 2), k.transpose(1, 2), positions.permute(1, 2, 0))
    return found_q.transpose(1, 2), found_k.transpose(1, 2)


def plan(lengths: Sequence[int], capacity: int, overlong: str) -> Plan:
    """``MMSamplePacker``, given all samples and then flushed."""
    from assay.audits.peers import _shims

    _shims.torchvision()
    from torchtitan.hf_datasets.multimodal.utils.packing import MMSamplePacker

    if overlong != "drop" or not all(lengths):
        raise Inexpressible("samples have tokens, and too long ones are left out")
    packer = MMSamplePacker(max_seq_length=capacity)
    for sample, length in enumerate(lengths):
        own = torch.full((length,), sample)
        packer.add_sample({"input_ids": own, "labels": own, "positions": torch.arange(length)})
    packer.flush()
    packs = [row["input_ids"].unique_consecutive().tolist() for row in packer.packed_samples]
    return Plan(packs=tuple(tuple(Piece(sample, 0, lengths[sample]) for sample in pack) for pack in packs))


def loss(logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
    """``cross_entropy_loss``: the sum."""
    from torchtitan.components.loss import cross_entropy_loss

    if options != {"ignore_index": -100, "reduction": "sum"}:
        raise Inexpressible("the plain sum")
    return cross_entropy_loss(logits[None], labels[None])
