"""Pipelines whose rows, positions or images do not fit together; what goes wrong in packs is in ``pack_faults``."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from assay.audits.components.pipeline.own import TALKS, Collator, Talks, padded
from assay.audits.components.pipeline.wrong import FAMILY, faulty, model, pipeline
from assay.audits.families.discovery import loaded
from assay.audits.pipelines import Pipeline

Made = Mapping[str, Tensor]
Messages = Sequence[Mapping[str, Any]]
PER_TOKEN = ("input_ids", "labels", "attention_mask", "mm_token_type_ids")


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


class _Transposed(Collator):
    """Writes the width of an image where its height belongs."""

    def one(self, messages: Messages) -> dict[str, Any]:
        made = super().one(messages)
        grids = made.get("image_grid_thw")
        return made if grids is None else {**made, "image_grid_thw": grids[:, [0, 2, 1]]}


@faulty("orientation", link="https://github.com/huggingface/transformers/pull/32314")
def height_and_width_exchanged() -> Pipeline:
    """Grids are made of an image's width and height, in this order.

    Effect: all counts agree, and rows of the image are read across; square images do not show it.
    """
    return pipeline(_Transposed(FAMILY))


class _Repeating(Collator):
    """Repeats its first sample to have as many rows as asked."""

    def labelled(self, made: Sequence[Made]) -> dict[str, Tensor]:
        return super().labelled([*made, *[made[0]] * (-len(made) % 4)])


@faulty("placement", "micro")
def batch_filled_with_copies() -> Pipeline:
    """A batch that is too small for its rows is filled with copies of its first sample.

    Effect: in the last step of each epoch one sample counts several times.
    """
    return pipeline(_Repeating(FAMILY))


class _Timeless:
    """Real videos of the family's processor, without their durations."""

    processor = None

    def __call__(self, samples: Sequence[tuple[int, str]]) -> Any:
        keys, texts = zip(*samples, strict=True)
        made = loaded(FAMILY).batch(model(), texts, padding="right", seed=0, keys=keys)
        return {name: value for name, value in made.items() if name != "second_per_grid_ts"}


@faulty("positions")
def durations_dropped() -> Pipeline:
    """The collator drops ``second_per_grid_ts``, by which a video's positions run in seconds.

    Effect: every video has the model's default speed, whatever it was sampled at.
    """
    samples = list(enumerate(("t3 v4x4x6@4 t4", "t2 v2x4x6@1 t2")))
    return Pipeline(
        dataset=samples, collator=_Timeless(), tokenizer=Collator(FAMILY).processor.tokenizer, model=model()
    )


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
