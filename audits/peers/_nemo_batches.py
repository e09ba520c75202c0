"""NeMo Automodel's collators and packs as pipelines. Its labels are those of the next token: they are put back."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

IGNORED = -100
FAMILY = "qwen2_5_vl"


def _talks(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Samples under the name that the collators read."""
    return [{"conversation": [dict(item) for item in sample["messages"]]} for sample in samples]


def _unshifted(labels: Tensor, numbers: Tensor | None = None) -> Tensor:
    """Each token's own label; a first token has none. ``numbers`` [B,S] tell the samples of a row apart."""
    made = torch.cat([torch.full_like(labels[:, :1], IGNORED), labels[:, :-1]], dim=1)
    if numbers is not None:
        made[:, 1:][numbers[:, 1:] != numbers[:, :-1]] = IGNORED
    return made


@contextlib.contextmanager
def _counted(processor: Any) -> Iterator[list[Tensor]]:
    """How many tokens each row has when the processor hands it over."""
    counts: list[Tensor] = []
    call = type(processor).__call__

    def counting(*given: Any, **named: Any) -> Any:
        made = call(*given, **named)
        counts.append(torch.as_tensor(made["attention_mask"]).sum(1))
        return made

    with mock.patch.object(type(processor), "__call__", counting):
        yield counts


def _each_cut(batch: dict[str, Tensor], counts: Tensor, pad: int) -> dict[str, Tensor]:
    """The batch with the last token of every row taken out, as it is of the longest, where nothing is trained on."""
    for row, left in enumerate((counts - 1).tolist()):
        last = batch["attention_mask"][row].nonzero().flatten()[left:]
        if (batch["labels"][row, last] == IGNORED).all():
            batch["input_ids"][row, last], batch["attention_mask"][row, last] = pad, 0
    return batch


class Collated:
    """One of the collators for conversations with images."""

    def __init__(self, name: str, processor: Any) -> None:
        """``name`` is that of the function."""
        self.name, self.processor = name, processor

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The batch, without what is for pipeline parallelism alone."""
        from nemo_automodel.components.datasets.vlm import collate_fns

        with _counted(self.processor) as counts:
            batch = dict(getattr(collate_fns, self.name)(_talks(samples), self.processor))
        kept = {name: value for name, value in batch.items() if not name.endswith("_per_sample")}
        kept["labels"] = _unshifted(batch["labels"])
        return _each_cut(kept, counts[-1], self.processor.tokenizer.pad_token_id)


def _packs() -> Any:
    """Its private functions, by name."""
    from nemo_automodel.components.datasets.vlm import neat_packing_vlm

    names = {"shift": "_shift_sample", "build": "_build_packed_vlm_sample", "positions": "_compute_mrope_position_ids"}
    return SimpleNamespace(**{short: getattr(neat_packing_vlm, name) for short, name in names.items()})


class Packed:
    """Conversations shifted, packed into one row and collated, with positions by the model's own rule."""

    def __init__(self, mine: Any, model: Any) -> None:
        """``mine`` makes ids and labels of one conversation; ``model`` numbers them."""
        self.mine, self.model, self.processor = mine, model, mine.processor

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """One row."""
        from nemo_automodel.components.datasets.vlm import collate_fns

        packs: Any = _packs()

        parts = [packs.shift(self._one(sample), has_mrope=True) for sample in samples]
        row = packs.build(parts, sum(len(one["input_ids"]) for one in parts), 0, True)
        batch = collate_fns.neat_packed_vlm_collater([row])
        kept = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
        kept = {name: value for name, value in kept.items() if not name.endswith("_per_sample") and name[0] != "_"}
        return {**kept, "labels": _unshifted(kept["labels"], row["attention_mask"][None])}

    def _one(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        packs: Any = _packs()
        whole = self.mine.one(sample["messages"])
        tokens = ("input_ids", "labels", "attention_mask", "mm_token_type_ids")
        one = {name: value[0] if name in tokens else value for name, value in whole.items()}
        rule = self.model.model.get_rope_index
        return {**one, "position_ids": packs.positions(one, rule)}


def _pipeline(made: Callable[[Any], Any]) -> dict[str, Any]:
    from assay.audits.components.pipeline import own
    from assay.audits.families.discovery import loaded

    mine = own.Collator(FAMILY)
    side = int(mine.processor.image_processor.patch_size)
    return {
        "dataset": own.Talks(side), "collator": made(mine), "processor": mine.processor,
        "model": functools.partial(loaded(FAMILY).build, 0),
    }  # fmt: skip


def qwen2_5_collate() -> dict[str, Any]:
    """The collator for Qwen2.5-VL."""
    return _pipeline(lambda mine: Collated("qwen2_5_collate_fn", mine.processor))


def default_collate() -> dict[str, Any]:
    """The collator for all others."""
    return _pipeline(lambda mine: Collated("default_collate_fn", mine.processor))


def neat_packed() -> dict[str, Any]:
    """Packs with four-dimensional masks."""
    from assay.audits.families.discovery import loaded

    return _pipeline(lambda mine: Packed(mine, loaded(FAMILY).build(0)))
