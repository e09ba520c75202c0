"""Pipelines that pack samples wrongly."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from assay.audits.components.pipeline.own import Collator, Ids, Packer
from assay.audits.components.pipeline.wrong import FAMILY, faulty, model, pipeline
from assay.audits.families.discovery import loaded
from assay.audits.pipelines import Pipeline

Made = Mapping[str, Tensor]
PER_TOKEN = ("input_ids", "labels", "mm_token_type_ids", "position_ids")
PR_3817 = "https://github.com/axolotl-ai-cloud/axolotl/pull/3817"


class _Flat(Packer):
    """Numbers the tokens of a sample as text."""

    def positions(self, one: Made) -> Tensor:
        return torch.arange(one["input_ids"].shape[1])[None, None].expand(4, 1, -1)


@faulty("positions", link="https://github.com/NVIDIA-NeMo/Automodel/pull/2172")
def flat_positions_in_a_pack() -> Pipeline:
    """A pack's positions are counted in one dimension and repeated over the axes.

    Effect: as soon as packing is on, the model no longer knows where in an image anything is.
    """
    return pipeline(_Flat(FAMILY, model()))


class _ThreeRows(Packer):
    """Leaves out the text's row, from which the forward makes the mask."""

    def positions(self, one: Made) -> Tensor:
        return super().positions(one)[1:]


@faulty("isolated", "micro", link=PR_3817)
def pack_without_the_texts_row() -> Pipeline:
    """A pack has three rows of positions; the model makes its mask of packs from a fourth.

    Effect: positions are right, and every sample sees those before it.
    """
    return pipeline(_ThreeRows(FAMILY, model()))


@faulty("isolated", "micro", link=PR_3817)
def pack_with_the_cache_on() -> Pipeline:
    """The text model makes a cache, as configurations have it; with one the forward makes no mask of packs.

    Effect: positions and boundaries are right, and every sample sees those before it, also under ``Trainer``, which
    turns the cache off in the outer configuration only.
    """
    made = loaded(FAMILY).build(0)
    return dataclasses.replace(pipeline(Packer(FAMILY, made)), model=made)


class _Masked(Packer):
    """Hands on a mask of ones, for which the forward takes the row as one sample."""

    def labelled(self, made: Sequence[Made]) -> dict[str, Tensor]:
        batch = super().labelled(made)
        return {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}


@faulty("isolated", "micro", link="https://github.com/huggingface/transformers/pull/46634")
def pack_with_a_mask_of_ones() -> Pipeline:
    """A pack has a mask of ones beside its positions, and the forward then does not look at the positions.

    Effect: every sample sees those before it; the loss still falls.
    """
    return pipeline(_Masked(FAMILY, model()))


class _OneText(Packer):
    """Numbers the whole row as one sample."""

    def labelled(self, made: Sequence[Made]) -> dict[str, Tensor]:
        batch = super().labelled(made)
        whole = {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}
        return {**batch, "position_ids": super().positions(whole)}


@faulty("boundaries", "isolated", link="https://github.com/alibaba/Pai-Megatron-Patch/issues/406")
def pack_without_boundaries() -> Pipeline:
    """Samples are joined to one row that is numbered as one text; nothing says where each starts.

    Effect: every sample sees those before it, and answers from their images.
    """
    return pipeline(_OneText(FAMILY, model()))


class _Stale(Packer):
    """Takes the boundaries from before the samples were put in order."""

    def labelled(self, made: Sequence[Made]) -> dict[str, Tensor]:
        lengths = [one["input_ids"].shape[1] for one in made]
        batch = super().labelled(sorted(made, key=lambda one: one["input_ids"].shape[1]))
        batch.pop("position_ids")
        ends = torch.tensor([0, *lengths]).cumsum(0)
        return {**batch, "cu_seq_lens_q": ends, "cu_seq_lens_k": ends}


@faulty("boundaries", "isolated", link="https://github.com/NVlabs/VILA/issues/80")
def boundaries_of_another_order() -> Pipeline:
    """Lengths are noted before the samples are sorted into the row.

    Effect: boundaries cut through samples: each loses its beginning and sees the end of another.
    """
    return pipeline(_Stale(FAMILY, model()))


class _Cut(Packer):
    """Cuts the row at a length, wherever that is."""

    def labelled(self, made: Sequence[Made]) -> dict[str, Tensor]:
        batch = super().labelled(made)
        return {name: value[..., :120] if name in PER_TOKEN else value for name, value in batch.items()}


@faulty("placement", "features")
def row_cut_at_its_length() -> Pipeline:
    """A pack is cut at its length, through a sample and before others.

    Effect: part of the data is never trained on; features are left over where an image was cut off.
    """
    return pipeline(_Cut(FAMILY, model()))


class _Shuffling(Packer):
    """Puts the samples into the row in an order of its own, another one each time."""

    _draw = random.Random(0)

    def labelled(self, made: Sequence[Made]) -> dict[str, Tensor]:
        return super().labelled(self._draw.sample(list(made), len(made)))


@faulty("nondeterministic", "repeat")
def order_drawn_anew() -> Pipeline:
    """A packer draws its order from a generator that no seed of the training reaches.

    Effect: no run can be repeated, and no step compared with that of another rank or of a resumed run.
    """
    return pipeline(_Shuffling(FAMILY, model()))


class _Flattening:
    """The flattening collator of transformers on ready-made ids."""

    def __init__(self) -> None:
        from transformers import DataCollatorWithFlattening

        self.processor = Collator(FAMILY).processor
        self._collator = DataCollatorWithFlattening()

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> Any:
        return self._collator([{name: sample[name] for name in ("input_ids", "labels")} for sample in samples])


@faulty("isolated", "micro", link=PR_3817)
def flattened_for_a_vision_language_model() -> Pipeline:
    """The flattening collator's one row of positions goes to a model that makes its mask of packs from four.

    Effect: text that is packed for Qwen2.5-VL is seen by the samples after it; the same batch is right for Qwen2.
    """
    return pipeline(_Flattening(), Ids(Collator(FAMILY)))
