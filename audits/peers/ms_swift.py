"""ms-swift: its packing, its cut of long rows, the pieces of sequence parallelism, its loss, its templates."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from assay.audits import peer
from assay.audits.components.mrope import stream
from assay.audits.terms import Candidate, Inexpressible
from assay.reference.packed_plan import Piece, Plan

HERE = "assay.audits.peers.ms_swift"
BATCHES = "assay.audits.peers._swift_batches"
PLAIN: dict[str, Any] = {"weighted": False, "softcap": None, "z_loss": 0.0, "label_smoothing": 0.0}


def _candidates() -> Iterator[Candidate]:
    scope = {**PLAIN, "normaliser": None, "ignore_index": -100, "reduction": "sum"}
    ref = f"{HERE}:chunked_loss"
    yield peer.calls("masked_loss.cross_entropy", "chunked-loss", ref, form="torch", scope=scope)
    for name in ("packed-seq-params", "cu-seqlens"):
        ref = f"{HERE}:{name.replace('-', '_')}"
        yield peer.calls("packed_positions.boundaries", name, ref, form="hf-flash")
    for name in ("binpack", "sequential"):
        yield peer.calls("packed_positions.plan", f"packing-{name}", f"{HERE}:packing_{name}", form="assay")
    yield peer.calls("label_mask.truncate", "template-truncate", f"{HERE}:truncate", form="pair-side")
    for name in ("ulysses", "ring"):
        yield peer.calls("packed_positions.shard", f"shard-{name}", f"{HERE}:shard_{name}", form="rank")
    for name in ("padded-qwen2-5-vl", "last-round-qwen2-5-vl"):
        yield peer.batches(name, f"{BATCHES}:{name.replace('-', '_')}")
    reason = "packed rows are for flash attention, which needs a GPU"
    yield peer.unrunnable("packed_positions.model", "padding-free", reason)


SIDE = 28
"""Pixels of a patch: it scales images to multiples of so many, whatever the processor's own patches are."""

PEER = peer.Peer(
    name="ms-swift",
    source="https://github.com/modelscope/ms-swift",
    requirements=("ms-swift==4.6.0", "qwen-vl-utils==0.0.14"),
    candidates=_candidates,
    preload=("transformers", "swift.template", "swift.sequence_parallel"),
)


def chunked_loss(rows: Tensor, labels: Tensor, *, reduction: str = "sum", **options: Any) -> Tensor:
    """The losses of tokens as sequence parallelism has them, three at a time. What is divided by what is elsewhere."""
    from swift.sequence_parallel.utils import ChunkedCrossEntropyLoss

    if options.get("ignore_index", -100) != -100 or options.get("label_smoothing") or reduction == "mean":
        raise Inexpressible("the losses of tokens, -100 ignored")
    made: Tensor = ChunkedCrossEntropyLoss.apply(rows, labels, 3)
    return made if reduction == "none" else made.sum()


def packed_seq_params(position_ids: Tensor) -> Any:
    """What a row of positions tells flash attention."""
    from swift.utils.transformers_utils import get_packed_seq_params

    if len(position_ids) != 1:
        raise Inexpressible("one row")
    made = get_packed_seq_params(position_ids)
    ends, longest = (made["cu_seq_lens_q"], made["cu_seq_lens_k"]), (made["max_length_q"], made["max_length_k"])
    return ends, longest


def cu_seqlens(position_ids: Tensor) -> Any:
    """The same for sequence parallelism."""
    from swift.utils.transformers_utils import get_cu_seqlens_from_position_ids

    if len(position_ids) != 1:
        raise Inexpressible("one row")
    ends = get_cu_seqlens_from_position_ids(position_ids)
    return ends, ends.diff().max()


def _packing(strategy: str) -> Callable[..., Plan]:
    """Its plan, 1000 samples at a time as its data set makes it. What is too long never comes this far."""

    def planned(lengths: Sequence[int], capacity: int, overlong: str) -> Plan:  # noqa: ARG001 - of the call form
        from swift.dataset.packing import PackingDataset

        if any(length > capacity for length in lengths):
            raise Inexpressible("what is too long is left out when it is encoded")
        packs: list[Any] = []
        PackingDataset.create_packed_idx(
            0, 0, list(lengths), SimpleNamespace(put=lambda made: packs.extend(made[1])), capacity, strategy
        )
        return Plan(packs=tuple(tuple(Piece(item, 0, length) for item, length in pack) for pack in packs))

    return planned


packing_binpack = _packing("binpack")
packing_sequential = _packing("sequential")


def truncate(input_ids: Any, labels: Any, max_length: int, side: str) -> tuple[list[int], list[int]]:
    """A template's cut. It keeps all placeholders of images, and says so."""
    from swift.template import Template

    ids, own = (torch.as_tensor(x).flatten().tolist() for x in (input_ids, labels))
    if stream.IMAGE in ids:
        raise Inexpressible("placeholders of images are kept")
    if len(ids) <= max_length:
        return ids, own
    template: Any = SimpleNamespace(placeholder_tokens=[stream.IMAGE], max_length=max_length)
    cut, kept = Template._truncate(template, list(ids), list(own), {}, side)  # noqa: SLF001 - nothing else takes ids
    first = len(ids) - len(cut) if side == "left" else 0
    return cut, [own[first], *kept[1:]]  # which of a row's first labels it is, nobody asks: no token predicts it


def _shard(batch: Mapping[str, Tensor], cp_rank: int, cp_size: int, *, ring: bool) -> dict[str, Tensor]:
    """A rank's piece. ``ring``: all ranks in a ring, where samples are dealt one by one; else all by Ulysses."""
    from swift.sequence_parallel.sequence_parallel import SequenceParallel

    if ring and len(batch["input_ids"]) > 1:
        raise Inexpressible("a ring is for one packed row")
    ranks = {"sp_rank": 0 if ring else cp_rank, "rp_rank": cp_rank if ring else -1}
    made: Any = type("Ranked", (SequenceParallel,), ranks)()
    made.world_size, made.tokenizer = cp_size, SimpleNamespace(pad_token_id=0)
    made.sp_world_size, made.rp_world_size = (1, cp_size) if ring else (cp_size, 1)
    positions = batch["position_ids"]
    rows = positions if positions.ndim == 3 else positions[None]
    # What it has no name for is cut as further rows of positions; -1 is its filling, which is taken out.
    stacked = torch.cat([rows.double(), batch["segments"][None].double(), batch["weights"][None].double()])
    ids, _, labels, cut, *_ = made.pad_and_split_inputs(
        batch["input_ids"], None, batch["labels"], stacked, None, None, real_position_ids=rows[0]
    )
    real = (cut[0] >= 0).all(0)
    own = cut[:-2].long() if positions.ndim == 3 else cut[0].long()
    pieces = {"input_ids": ids, "shift_labels": labels, "position_ids": own, "segments": cut[-2].long()}
    return {name: x[..., real] for name, x in {**pieces, "weights": cut[-1].to(batch["weights"])}.items()}


shard_ulysses = functools.partial(_shard, ring=False)


def shard_ring(batch: Mapping[str, Tensor], cp_rank: int, cp_size: int) -> dict[str, Tensor]:
    """A rank's piece in a ring. Its pieces are equal with the filling of each sample, which is taken out here."""
    pieces = [_shard(batch, rank, cp_size, ring=True) for rank in range(cp_size)]
    if len({piece["input_ids"].shape for piece in pieces}) > 1:
        raise Inexpressible("samples that are filled up unequally")
    return pieces[cp_rank]


def trains_on() -> dict[str, Any]:
    """By option: what makes ids and labels of conversations."""
    from assay.audits.peers import _swift_batches, _trained

    return {
        "default": _trained.by(_swift_batches.padded_qwen2_5_vl),
        "loss_scale last_round": _trained.by(_swift_batches.last_round_qwen2_5_vl),
    }
