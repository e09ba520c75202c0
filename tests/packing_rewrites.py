"""Right ways of packing written otherwise: what people have in their own code. Not one of them may be accused."""

from __future__ import annotations

import bisect
import heapq
import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from assay.reference.mrope_positions import positions
from assay.reference.mrope_rules import RULES
from assay.reference.packed_positions import Piece, Plan

IGNORED = -100


def next_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    packs: list[list[int]] = [[]]
    room = capacity
    for i, size in enumerate(lengths):
        if size > capacity:
            raise ValueError(f"sample {i} is too long: {size}")
        if size > room:
            packs.append([])
            room = capacity
        packs[-1].append(i)
        room -= size
    return packs


def best_fit_decreasing(lengths: list[int], capacity: int) -> list[list[int]]:
    packs: list[list[int]] = []
    room: list[int] = []
    assert max(lengths, default=0) <= capacity
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = [p for p, free in enumerate(room) if free >= lengths[i]]
        if fitting:
            place = min(fitting, key=lambda p: room[p])
        else:
            place = len(packs)
            packs.append([])
            room.append(capacity)
        packs[place].append(i)
        room[place] -= lengths[i]
    return packs


def knapsacks(numbers: list[int], capacity: int) -> list[list[int]]:
    """Sorted lengths, the largest that fits found by bisection; on a copy."""
    left = sorted(numbers)
    if left and left[-1] > capacity:
        raise ValueError("too long")
    packs = []
    while left:
        pack, room = [], capacity
        while (place := bisect.bisect(left, room)) > 0:
            pack.append(left.pop(place - 1))
            room -= pack[-1]
        packs.append(pack)
    return packs


def first_fit(seqlens: list[int], pack_size: int) -> list[list[int]]:
    packs: list[list[int]] = []
    for size in seqlens:
        if size > pack_size:
            raise ValueError("too long")
        for pack in packs:
            if sum(pack) + size <= pack_size:
                pack.append(size)
                break
        else:
            packs.append([size])
    return packs


def in_order_with_policies(lengths: list[int], capacity: int, overlong: str = "error") -> Plan:
    pieces: list[Piece] = []
    for i, size in enumerate(lengths):
        if size > capacity and overlong == "error":
            raise ValueError(i)
        cuts = {"split": size, "truncate": min(size, capacity), "drop": size if size <= capacity else 0}
        end = cuts.get(overlong, size)
        pieces += [Piece(i, a, min(a + capacity, end)) for a in range(0, end, capacity)]
    packs: list[list[Piece]] = [[]]
    for piece in pieces:
        if sum(p.tokens for p in packs[-1]) + piece.tokens > capacity:
            packs.append([])
        packs[-1].append(piece)
    return Plan(tuple(map(tuple, packs)))


def _row(features: list[dict[str, Any]]) -> dict[str, Any]:
    ids = list(itertools.chain.from_iterable(f["input_ids"] for f in features))
    labels = [x for f in features for x in [IGNORED, *f.get("labels", f["input_ids"])[1:]] if f["input_ids"]]
    weights = list(itertools.chain.from_iterable(f["weights"] for f in features))
    return {"input_ids": torch.tensor([ids]), "labels": torch.tensor([labels]), "weights": torch.tensor([weights])}


def _restarting(features: list[dict[str, Any]]) -> Tensor:
    return torch.tensor([[i for f in features for i in range(len(f["input_ids"]))]])


def _numbers(features: list[dict[str, Any]]) -> Tensor:
    return torch.tensor([[n for n, f in enumerate(features, 1) for _ in f["input_ids"]]])


def with_restarting_ids(features: list[dict[str, Any]]) -> dict[str, Any]:
    return {**_row(features), "position_ids": _restarting(features)}


def with_numbers_in_the_mask(features: list[dict[str, Any]]) -> dict[str, Any]:
    return {**with_restarting_ids(features), "attention_mask": _numbers(features)}


def with_a_mask_of_four_dimensions(features: list[dict[str, Any]]) -> dict[str, Any]:
    blocks = [torch.ones(len(f["input_ids"]), len(f["input_ids"])).tril() for f in features]
    seen = torch.block_diag(*blocks).bool()
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    return {**with_restarting_ids(features), "attention_mask": mask[None, None]}


def with_lengths_and_a_filled_tail(features: list[dict[str, Any]]) -> dict[str, Any]:
    """Filled up to a multiple of eight, as one more sample that is not trained on."""
    made = with_restarting_ids([f for f in features if f["input_ids"]])
    extra = -made["input_ids"].shape[1] % 8
    sizes = [len(f["input_ids"]) for f in features if f["input_ids"]] + ([extra] if extra else [])
    ends = F.pad(torch.tensor(sizes).cumsum(0), (1, 0)).int()
    return {
        "input_ids": F.pad(made["input_ids"], (0, extra), value=7),
        "labels": F.pad(made["labels"], (0, extra), value=IGNORED),
        "weights": F.pad(made["weights"], (0, extra)),
        "position_ids": torch.cat([made["position_ids"], torch.arange(extra)[None]], dim=1),
        "cu_seqlens": ends, "max_seqlen": int(ends.diff().max()),
    }  # fmt: skip


def with_labels_moved(features: list[dict[str, Any]]) -> dict[str, Any]:
    made = with_restarting_ids(features)
    labels = made.pop("labels")
    return {**made, "shift_labels": F.pad(labels[:, 1:], (0, 1), value=IGNORED), "seq_idx": _numbers(features) - 1}


def with_axes_of_each(features: list[dict[str, Any]]) -> dict[str, Any]:
    """Four rows, each sample's axes by its own grids; everything that is no token one under another."""
    features = [f for f in features if f["input_ids"]]
    axes = []
    for f in features:
        media = {"image_grids": f.get("image_grid_thw"), "video_grids": f.get("video_grid_thw")}
        seconds = f.get("second_per_grid_ts")
        types = torch.tensor([f["mm_token_type_ids"]])
        axes.append(positions(RULES["qwen2_5_vl"], types, seconds_per_grid=seconds, **media)[0])
    names = ("image_grid_thw", "video_grid_thw", "pixel_values", "pixel_values_videos")
    found = {name: [f[name] for f in features if name in f] for name in names}
    made = with_restarting_ids(features)
    ids = torch.cat([made["position_ids"][None], torch.cat(axes, dim=-1)])
    return {**made, "position_ids": ids, **{name: torch.cat(own) for name, own in found.items() if own}}


def written_into(features: list[dict[str, Any]]) -> dict[str, Any]:
    """Wrong in this alone: the first label of each sample is ignored in the data set's own list."""
    for f in features:
        if f.get("labels"):
            f["labels"][0] = IGNORED
    return with_restarting_ids(features)


def of_tensors(examples: list[dict[str, Any]]) -> dict[str, Any]:
    examples = [e for e in examples if len(e["input_ids"])]
    labels = [e.get("labels", e["input_ids"]).clone() for e in examples]
    for own in labels:
        own[0] = IGNORED
    places = torch.cat([torch.arange(len(e["input_ids"])) for e in examples])
    return {
        "input_ids": torch.cat([e["input_ids"] for e in examples])[None], "labels": torch.cat(labels)[None],
        "position_ids": places[None], "weights": torch.cat([e["weights"] for e in examples])[None],
    }  # fmt: skip


def steps_by_padding(segments: Tensor) -> tuple[Tensor, int]:
    """Sizes of runs with the rows made different, padded by a zero in front."""
    other = segments + torch.arange(len(segments))[:, None] * 1000
    sizes = other.flatten().unique_consecutive(return_counts=True)[1]
    return F.pad(sizes.cumsum(0), (1, 0)).to(torch.int32), int(sizes.max())


def steps_by_zeros(position_ids: Tensor) -> tuple[Tensor, Tensor]:
    flat = position_ids.flatten()
    ends = torch.cat([(flat == 0).nonzero().flatten(), torch.tensor([flat.numel()])]).int()
    return ends, ends.diff().max()


def unpadded(attention_mask: Tensor) -> tuple[Tensor, Tensor, int]:
    sizes = [int((row == n).sum()) for row in attention_mask for n in range(1, int(row.max()) + 1)]
    ends = F.pad(torch.tensor(sizes).cumsum(0), (1, 0)).int()
    return attention_mask.flatten().nonzero().flatten(), ends, max(sizes)


def numbers_by_loops(position_ids: Tensor) -> Tensor:
    made = torch.zeros_like(position_ids)
    for row, ids in enumerate(position_ids.tolist()):
        number = 0
        for place, i in enumerate(ids):
            number += i == 0
            made[row, place] = number
    return made


def mask_of_numbers(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """LLaMA-Factory's way: equal and not zero, below the diagonal, the lowest number elsewhere."""
    expanded = attention_mask[:, None, None, :]
    real = torch.where(expanded != 0, 1, 0)
    same = (expanded == attention_mask[:, None, :, None]).int() * real
    low = torch.finfo(dtype).min
    return torch.where(same.tril() != 0, torch.zeros((), dtype=dtype), torch.full((), low, dtype=dtype))


def mask_of_lengths(cu_seqlens: Tensor) -> Tensor:
    blocks = [torch.ones(n, n, dtype=torch.bool).tril() for n in cu_seqlens.diff().tolist()]
    return torch.block_diag(*blocks).bool()


def mask_of_positions(position_ids: Tensor) -> Tensor:
    numbers = (position_ids == 0).cumsum(1)
    place = torch.arange(position_ids.shape[1])
    seen = (numbers[:, None, :, None] == numbers[:, None, None, :]) & (place[:, None] >= place)
    return torch.zeros(seen.shape, dtype=torch.bfloat16).masked_fill(~seen, -torch.inf)


def zigzag_of_a_rank(batch: dict[str, Tensor], cp_rank: int, cp_size: int) -> dict[str, Tensor]:
    """Megatron's way: the row as 2 W chunks, of which a rank has one from each end."""
    moved = dict(batch)
    moved["shift_labels"] = F.pad(moved.pop("labels")[:, 1:], (0, 1), value=IGNORED)
    made = {}
    for name, x in moved.items():
        chunks = x.chunk(2 * cp_size, dim=-1)
        if x.shape[-1] % (2 * cp_size):
            raise ValueError("uneven")
        made[name] = torch.cat([chunks[cp_rank], chunks[2 * cp_size - 1 - cp_rank]], dim=-1)
    return made


def padded_pieces_of_a_rank(batch: dict[str, Tensor], cp_rank: int, cp_size: int) -> dict[str, Tensor]:
    """Contiguous pieces of rows that are filled up first."""
    moved = dict(batch)
    moved["shift_labels"] = F.pad(moved.pop("labels")[:, 1:], (0, 1), value=IGNORED)
    made = {}
    for name, x in moved.items():
        fill = IGNORED if name == "shift_labels" else 0
        full = F.pad(x, (0, -x.shape[-1] % cp_size), value=fill)
        size = full.shape[-1] // cp_size
        made[name] = full[..., cp_rank * size : (cp_rank + 1) * size]
    return made


def with_a_filled_mask_of_four_dimensions(features: list[dict[str, Any]]) -> dict[str, Any]:
    """Filled up to a multiple of 64; what fills the row up sees itself alone, and minus infinity closes the rest."""
    made = with_restarting_ids([f for f in features if f["input_ids"]])
    numbers = _numbers([f for f in features if f["input_ids"]])
    more = -numbers.shape[1] % 64
    made = {name: F.pad(x, (0, more), value=IGNORED if name == "labels" else 0) for name, x in made.items()}
    own = F.pad(numbers, (0, more))[0]
    seen = ((own[:, None] == own) & (own != 0)).tril() | torch.eye(len(own), dtype=torch.bool)
    return {**made, "attention_mask": torch.where(seen, 0.0, -torch.inf).to(torch.bfloat16)[None, None]}


def with_labels_twice(features: list[dict[str, Any]]) -> dict[str, Any]:
    """Labels, labels that were moved, and position ids in int32."""
    made = with_restarting_ids(features)
    moved = F.pad(made["labels"], (0, 1), value=IGNORED)[:, 1:]
    return {**made, "shift_labels": moved, "position_ids": made["position_ids"].int()}


def with_types_and_half_pixels(features: list[dict[str, Any]]) -> dict[str, Any]:
    """Types of the tokens in int32, pixels in bfloat16."""
    made = with_axes_of_each(features)
    types = torch.tensor([[kind for f in features for kind in f["mm_token_type_ids"]]], dtype=torch.int32)
    pixels = {name: made[name].bfloat16() for name in ("pixel_values", "pixel_values_videos") if name in made}
    return {**made, **pixels, "mm_token_type_ids": types}


def by_blocks(cu_seqlens: Tensor) -> Tensor:
    """A block for each sample, in bytes."""
    return torch.block_diag(*(torch.ones(n, n).tril() for n in cu_seqlens.diff().tolist())).to(torch.int8)[None, None]


def worst_fit(lengths: list[int], capacity: int) -> tuple[list[int], ...]:
    """The longest first, each into the pack with the most room; a heap of rooms."""
    if max(lengths, default=0) > capacity:
        raise ValueError(f"too long: {max(lengths)}")
    packs: list[list[int]] = []
    rooms: list[tuple[int, int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not rooms or -rooms[0][0] < lengths[i]:
            heapq.heappush(rooms, (-capacity, len(packs)))
            packs.append([])
        free, place = heapq.heappop(rooms)
        packs[place].append(i)
        heapq.heappush(rooms, (free + lengths[i], place))
    return tuple(packs)


def steps_twice(position_ids: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[int, Tensor]]:
    """A copy for the keys, and one of the longest lengths as a tensor."""
    ends, longest = steps_by_zeros(position_ids)
    return (ends, ends.clone()), (int(longest), longest)


def unpadded_by_bincount(attention_mask: Tensor) -> tuple[Tensor, Tensor, int]:
    """Indices in int32, from a search; numbers made different from row to row."""
    own = attention_mask + (attention_mask != 0) * torch.arange(len(attention_mask))[:, None] * 100_000
    indices = torch.where(own.reshape(-1) > 0)[0].int()
    sizes = own.reshape(-1)[indices].unique_consecutive(return_counts=True)[1]
    return indices, F.pad(sizes.cumsum(0), (1, 0)).int(), int(sizes.max())


def mask_by_products(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """One minus the mask, times a number that the dtype has; padding sees itself."""
    numbers = attention_mask[:, None]
    same = (numbers.mT == numbers) & (numbers != 0)
    seen = same.tril() | torch.eye(numbers.shape[-1], dtype=torch.bool)
    return ((1.0 - seen.float()) * (-1e4 if dtype == torch.float16 else -1e9)).to(dtype)[:, None]


def padded_zigzag_of_a_rank(batch: dict[str, Tensor], cp_rank: int, cp_size: int) -> dict[str, Tensor]:
    """Filled up to a multiple of twice the ranks, with a number of a sample of its own and positions from zero."""
    more = -batch["input_ids"].shape[-1] % (2 * cp_size)
    full = {name: F.pad(x, (0, more)) for name, x in batch.items()}
    full["labels"] = F.pad(batch["labels"], (0, more), value=IGNORED)
    full["segments"] = F.pad(batch["segments"], (0, more), value=int(batch["segments"].max()) + 1)
    return zigzag_of_a_rank(full, cp_rank, cp_size)


def sorted_chunks(lengths: list[int], capacity: int) -> list[list[int]]:
    """A chunk of 512 at a time, the shortest first."""
    starts = range(0, len(lengths), 512)
    packs = []
    for start in starts:
        own = sorted(range(start, min(start + 512, len(lengths))), key=lambda i: lengths[i])
        found = next_fit([lengths[i] for i in own], capacity)
        packs += [[own[i] for i in pack] for pack in found if pack]
    return packs
