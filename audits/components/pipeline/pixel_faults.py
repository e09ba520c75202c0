"""Pipelines whose pictures are darker, flatter or of other colours than their model knows them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from assay.audits.components.pipeline.own import Collator
from assay.audits.components.pipeline.wrong import FAMILY, faulty, pipeline
from assay.audits.pipelines import Pipeline

Messages = Sequence[Mapping[str, Any]]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class _Otherwise(Collator):
    """Does something to the settings of a copy of the processor, which alone makes the batch."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(FAMILY)
        self.made_with = copy.copy(self.processor)
        self.made_with.image_processor = copy.deepcopy(self.processor.image_processor)
        for name, value in settings.items():
            setattr(self.made_with.image_processor, name, value)

    def one(self, messages: Messages) -> dict[str, Any]:
        told, self.processor = self.processor, self.made_with
        try:
            return super().one(messages)
        finally:
            self.processor = told


@faulty("pixels", link="https://github.com/huggingface/transformers/pull/25688")
def pixels_scaled_twice() -> Pipeline:
    """Pixels are divided by 255 twice, by the dataset and by the processor.

    Effect: every picture is black to within a few parts of a thousand; a tower sees its own bias.
    """
    return pipeline(_Otherwise(rescale_factor=1 / 255**2))


@faulty("pixels")
def pixels_not_normalised() -> Pipeline:
    """Pixels are between 0 and 1, for a tower that was trained on normalised ones.

    Effect: pictures look grey and bright; what was learnt of contrast does not fit.
    """
    return pipeline(_Otherwise(do_normalize=False))


@faulty("pixels")
def pixels_normalised_by_numbers_of_another_model() -> Pipeline:
    """Mean and deviation are those of ImageNet, for a tower that was trained with those of CLIP.

    Effect: colours are off by some shades, everywhere; accuracy drops a little, and nobody looks for it.
    """
    return pipeline(_Otherwise(image_mean=IMAGENET[0], image_std=IMAGENET[1]))


@faulty("pixels")
def mean_and_deviation_exchanged() -> Pipeline:
    """Mean and deviation are handed over in the other order.

    Effect: contrast is halved, and black is another grey in each channel.
    """
    found = Collator(FAMILY).processor.image_processor
    return pipeline(_Otherwise(image_mean=found.image_std, image_std=found.image_mean))


class Coloured(Collator):
    """Makes other pictures of those of a sample."""

    def __init__(self, change: Callable[[Any], Any]) -> None:
        """``change`` makes one of one."""
        super().__init__(FAMILY)
        self._change = change

    def one(self, messages: Messages) -> dict[str, Any]:
        """One conversation about other pictures."""
        return super().one([{**item, "content": [self._part(part) for part in item["content"]]} for item in messages])

    def _part(self, part: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**part, "image": self._change(part["image"])} if part["type"] == "image" else part


def _reversed(picture: Any) -> Any:
    from PIL import Image

    return Image.merge("RGB", picture.split()[::-1])


@faulty("pixels", link="https://github.com/tensorpack/tensorpack/issues/176")
def red_and_blue_exchanged() -> Pipeline:
    """Pictures are read by a library that gives blue first, and handed to a processor that takes red first.

    Effect: skies are orange; a model that was trained on colours answers for others.
    """
    return pipeline(Coloured(_reversed))


@faulty("pixels")
def pictures_made_grey() -> Pipeline:
    """Pictures are opened in one channel, which is repeated.

    Effect: what is asked about colours cannot be answered.
    """
    return pipeline(Coloured(lambda picture: picture.convert("L").convert("RGB")))


class _Narrow(Collator):
    """Keeps pixels in whole numbers of 8 bits on the way."""

    def labelled(self, made: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        batch = super().labelled(made)
        if "pixel_values" in batch:
            batch["pixel_values"] = batch["pixel_values"].to(torch.int8).float()
        return batch


@faulty("pixels")
def pixels_kept_as_whole_numbers() -> Pipeline:
    """Normalised pixels are stored as whole numbers, to save space.

    Effect: of 256 greys four are left.
    """
    return pipeline(_Narrow(FAMILY))


@faulty("pixels")
def processor_set_to_scale_twice() -> Pipeline:
    """The processor itself, which the whole pipeline uses, scales twice and normalises then.

    Effect: as if all lights were out, in training and evaluation alike.
    """
    collator = _Otherwise(rescale_factor=1 / 255**2)
    return dataclasses.replace(pipeline(collator), processor=collator.made_with)
