"""Pipelines that hand over pictures and videos in another order, or in other parts, than their samples hold them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from assay.audits.components.pipeline.own import Collator
from assay.audits.components.pipeline.row_faults import Made, Messages
from assay.audits.components.pipeline.wrong import FAMILY, faulty, model, pipeline
from assay.audits.families.discovery import loaded
from assay.audits.pipelines import Pipeline
from assay.reference import vision_rope


class _Rearranged(Collator):
    """Does something to one key of a batch of several samples with images."""

    def __init__(self, key: str, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__(FAMILY)
        self._key, self._change = key, change

    def labelled(self, made: Sequence[Made]) -> dict[str, Tensor]:
        batch = super().labelled(made)
        return {**batch, self._key: self._change(batch[self._key])} if len(made) > 1 and self._key in batch else batch


@faulty("media")
def grids_turned_in_batches() -> Pipeline:
    """Where several samples are collated, height and width of their grids are exchanged; a single one is right.

    Effect: sums and products of each grid agree, and its rows are read across.
    """
    return pipeline(_Rearranged("image_grid_thw", lambda grids: grids[:, [0, 2, 1]]))


@faulty("media")
def patches_reversed_in_batches() -> Pipeline:
    """The values of each patch come in another order where several samples are collated.

    Effect: every patch has its own values, so that sums and means agree, and shows something else.
    """
    return pipeline(_Rearranged("pixel_values", lambda patches: patches.flip(-1)))


class _RowByRow(Collator):
    """Patches as they stand in an image, whatever the tower makes of them."""

    def one(self, messages: Messages) -> dict[str, Any]:
        made = super().one(messages)
        if "image_grid_thw" not in made:
            return made
        rows = torch.split(made["pixel_values"], made["image_grid_thw"].prod(-1).tolist())
        ordered = [own[_reading_order(grid)] for own, grid in zip(rows, made["image_grid_thw"], strict=True)]
        return {**made, "pixel_values": torch.cat(ordered)}


def _reading_order(grid: Tensor) -> Tensor:
    row, column = vision_rope.patch_coordinates(grid[None], merge=2)
    order: Tensor = (row * int(grid[2]) + column).argsort()
    return order


@faulty(
    "patches", link="https://github.com/vllm-project/vllm/pull/52932",
    also=("https://github.com/lablup/mlxcel/issues/1610",),
)  # fmt: skip
def patches_row_by_row() -> Pipeline:
    """Patches are cut row by row; the tower counts them in blocks of those that become one token.

    Effect: each patch has the place of another one; answers are fluent, and small print cannot be read.
    """
    return pipeline(_RowByRow(FAMILY))


class _Videos:
    """Videos of the family's own processor, the last placeholder of the first video lost, one more in the second."""

    processor = None

    def __call__(self, samples: Sequence[tuple[int, str]]) -> Any:
        keys, texts = zip(*samples, strict=True)
        made = dict(loaded(FAMILY).batch(model(), texts, padding="right", seed=0, keys=keys))
        if len(samples) > 1:
            ids, token = made["input_ids"].clone(), model().config.video_token_id
            first, second = (torch.nonzero(row == token).flatten() for row in ids[:2])
            ids[0, first[-1]] = ids[0, 0]
            ids[1, second[-1] + 1] = token
            made["input_ids"] = ids
        return made


@faulty("features")
def video_placeholder_moved() -> Pipeline:
    """A sample's video lacks a placeholder, the next one's has one too many: the count over the batch agrees.

    Effect: from there on every feature stands a place too early, and the last one of a video in another sample.
    """
    samples = list(enumerate(("t3 v4x4x6@4 t4", "t2 v2x4x6@1 t2")))
    return Pipeline(dataset=samples, collator=_Videos(), tokenizer=Collator(FAMILY).processor.tokenizer, model=model())
