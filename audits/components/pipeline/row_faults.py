"""Pipelines whose rows, positions or images do not fit together."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from assay.audits.components.pipeline.own import TALKS, Collator, Ids, Packer, Talks, padded
from assay.audits.components.pipeline.wrong import FAMILY, faulty, model, pipeline
from assay.audits.pipelines import Pipeline

Made = Mapping[str, Tensor]
Messages = Sequence[Mapping[str, Any]]
PER_TOKEN = ("input_ids", "labels", "attention_mask", "mm_token_type_ids")
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
        joined = (*PER_TOKEN, "position_ids")
        return {name: value[..., :120] if name in joined else value for name, value in batch.items()}


@faulty("placement", "features")
def row_cut_at_its_length() -> Pipeline:
    """A pack is cut at its length, through a sample and before others.

    Effect: part of the data is never trained on; features are left over where an image was cut off.
    """
    return pipeline(_Cut(FAMILY, model()))


class _Untyped(Collator):
    """Hands on the keys that were known when it was written."""

    def labelled(self, made: Sequence[Made]) -> dict[str, Tensor]:
        return {name: value for name, value in super().labelled(made).items() if name != "mm_token_type_ids"}


@faulty("types", "positions")
def token_types_dropped() -> Pipeline:
    """The collator drops ``mm_token_type_ids``, which the forward numbers images by.

    Effect: images are numbered as text; nothing fails.
    """
    return pipeline(_Untyped(FAMILY))


class _Grids(Collator):
    """Collects the sizes of images from the largest to the smallest."""

    def labelled(self, made: Sequence[Made]) -> dict[str, Tensor]:
        batch = super().labelled(made)
        grids = batch.get("image_grid_thw")
        return batch if grids is None else {**batch, "image_grid_thw": grids[grids.prod(-1).argsort(descending=True)]}


@faulty("features", "media", link="https://github.com/huggingface/trl/pull/6570")
def grids_in_another_order() -> Pipeline:
    """Grids come in another order than the samples that they are of.

    Effect: images are cut where another one ends; counts over the batch agree.
    """
    return pipeline(_Grids(FAMILY))


class _Pictures(Collator):
    """Collects images from the last sample to the first, with their sizes."""

    def labelled(self, made: Sequence[Made]) -> dict[str, Tensor]:
        batch, other = super().labelled(made), super().labelled(made[::-1])
        return {**batch, **{name: other[name] for name in ("pixel_values", "image_grid_thw") if name in other}}


ALIKE = (
    (("user", "i4x6", "what is it?"), ("assistant", "a kanu")),
    (("user", "i4x6", "and this?"), ("assistant", "a tree")),
    (("user", "i4x6", "and this one?"), ("assistant", "nothing")),
)


@faulty("media", "isolated")
def images_of_another_sample() -> Pipeline:
    """Images of one size are collected in another order than the samples: all counts agree.

    Effect: every question is answered from another sample's image.
    """
    collator = _Pictures(FAMILY)
    return pipeline(collator, Talks(int(collator.processor.image_processor.patch_size), ALIKE))


class _LeftCut(Collator):
    """Keeps the last tokens of a long sample, wherever its image is."""

    def one(self, messages: Messages) -> dict[str, Any]:
        made = super().one(messages)
        return {**made, **{name: made[name][:, -44:] for name in PER_TOKEN if name in made}}


@faulty("features", link="https://github.com/OpenBMB/MiniCPM-V/issues/662")
def image_cut_in_two() -> Pipeline:
    """A long sample is cut from the left, through its image.

    Effect: features and placeholders no longer agree, for this image and every later one of the batch.
    """
    return pipeline(_LeftCut(FAMILY))


class _Behind(Collator):
    """Cuts ids, labels and mask, and nothing else."""

    def labelled(self, made: Sequence[Made]) -> dict[str, Tensor]:
        batch = super().labelled(made)
        return {name: value[:, :60] if name in PER_TOKEN[:3] else value for name, value in batch.items()}


@faulty("accepted")
def token_types_left_behind() -> Pipeline:
    """Ids, labels and mask are cut to the longest length; token types are not.

    Effect: a crash at best; types of other tokens where only the beginning is read.
    """
    return pipeline(_Behind(FAMILY))


class _OneSide(Collator):
    """Pads ids on the tokenizer's side, and positions on the right."""

    def labelled(self, made: Sequence[Made]) -> dict[str, Tensor]:
        batch = super().labelled(made)
        on_right = padded(made, "right", int(self.processor.tokenizer.pad_token_id))
        if "image_grid_thw" not in on_right:
            place = torch.arange(on_right["input_ids"].shape[1])
            return {**batch, "position_ids": place.expand(3, *on_right["input_ids"].shape).clone()}
        names = ("mm_token_type_ids", "image_grid_thw", "attention_mask")
        ids, _ = model().model.get_rope_index(on_right["input_ids"], **{name: on_right[name] for name in names})
        return {**batch, "position_ids": ids}


@faulty("side")
def positions_padded_on_the_right() -> Pipeline:
    """Positions are made for rows that are padded on the right, also where the ids are padded on the left.

    Effect: with padding on the left every shorter sample has another part of the row's positions.
    """
    return pipeline(_OneSide(FAMILY))


class _Kept(Sequence[dict[str, Any]]):
    """A dataset that holds its samples, as a list does."""

    def __init__(self, talks: Talks) -> None:
        self._samples = list(talks)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: Any) -> Any:
        return self._samples[index]


class _Editing(Collator):
    """Puts a system prompt in front of the messages it is given."""

    def one(self, messages: Messages) -> dict[str, Any]:
        assert isinstance(messages, list)
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": "be kind"}]})
        return super().one(messages)


@faulty("repeat")
def samples_edited() -> Pipeline:
    """The collator writes its system prompt into the messages of the sample that it is given.

    Effect: in each epoch a sample has one system prompt more.
    """
    collator = _Editing(FAMILY)
    return pipeline(collator, _Kept(Talks(int(collator.processor.image_processor.patch_size), copy.deepcopy(TALKS))))


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


class _Precise(Collator):
    """Sets how torch multiplies matrices."""

    def labelled(self, made: Sequence[Made]) -> dict[str, Tensor]:
        torch.set_float32_matmul_precision("medium")
        return super().labelled(made)


@faulty("leaks")
def precision_set_by_the_collator() -> Pipeline:
    """The collator sets the precision of matrix products in the process that it runs in.

    Effect: without worker processes that is the training's own: from the first batch on it computes with fewer bits.
    """
    return pipeline(_Precise(FAMILY))


class _Seeding(Collator):
    """Seeds the global generator, to draw the same each time."""

    def labelled(self, made: Sequence[Made]) -> dict[str, Tensor]:
        torch.manual_seed(0)
        return super().labelled(made)


@faulty("repeat")
def generator_seeded() -> Pipeline:
    """The collator seeds the global generator for a draw of its own.

    Effect: every dropout mask of the run is the same.
    """
    return pipeline(_Seeding(FAMILY))
