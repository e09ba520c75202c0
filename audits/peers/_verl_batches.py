"""verl's data set for supervised training and the batches that its engine makes, as pipelines."""

from __future__ import annotations

import copy
import functools
import importlib
import io
import sys
import tempfile
import unittest.mock
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from torch import Tensor

IGNORED = -100
LENGTH = 4096


class Batches:
    """Conversations written to a parquet file, read by ``MultiTurnSFTDataset``, and made into a batch by verl.

    What its engine hands to a model, and its loss mask as labels. ``packed``: the batch without padding.
    """

    def __init__(self, processor: Any, *, images: bool, packed: bool = False) -> None:
        """``images``: with the column of images, and the processor."""
        self.processor, self.images, self.packed = processor, images, packed
        self.tokenizer = processor.tokenizer

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The batch."""
        from verl.utils.dataset.dataset_utils import DatasetPadMode, SFTTensorCollator

        rows = self.rows(samples)
        made = SFTTensorCollator(DatasetPadMode.NO_PADDING)([rows[place] for place in range(len(rows))])
        return self._batch(made)

    def rows(self, samples: Sequence[Mapping[str, Any]]) -> Any:
        """The data set of these conversations."""
        import pandas as pd
        from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset

        written = [_written(sample["messages"]) for sample in samples]
        columns: dict[str, Any] = {"messages": [messages for messages, _ in written]}
        if self.images:
            import_without_torchvision("qwen_vl_utils")
            columns["images"] = [pictures for _, pictures in written]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.parquet"
            pd.DataFrame(columns).to_parquet(path)
            options: Any = {"pad_mode": "no_padding", "max_length": LENGTH, "truncation": "error"}
            return MultiTurnSFTDataset(
                str(path), self.tokenizer, options, processor=self.processor if self.images else None
            )

    def _batch(self, made: Mapping[str, Any]) -> dict[str, Tensor]:
        from tensordict import TensorDict
        from verl.utils import tensordict_utils as tu
        from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

        count = made["input_ids"].size(0)
        data = TensorDict(dict(made), batch_size=[count])
        tu.assign_non_tensor(
            data, use_remove_padding=self.packed, pad_mode="no_padding", use_fused_kernels=False, temperature=1.0,
            pad_token_id=self.tokenizer.pad_token_id,
        )  # fmt: skip
        engine = SimpleNamespace(
            pad_to_length=None, use_ulysses_sp=False, _get_packed_pad_size=lambda _: 0, module=None,
        )  # fmt: skip
        given, _ = FSDPEngineWithLMHead.prepare_model_inputs(engine, data)
        masks = made["loss_mask"]
        whole = masks.values()[None] if self.packed else masks.to_padded_tensor(0, (count, given["input_ids"].shape[1]))
        batch = {name: value for name, value in given.items() if isinstance(value, Tensor)}
        return {**batch, "labels": given["input_ids"].where(whole.bool(), IGNORED)}


def import_without_torchvision(name: str) -> None:
    """Import a module that asks for torchvision, of which there is no build for a CPU, and needs it for videos only."""
    names = ("torchvision", "torchvision.io", "torchvision.transforms")
    if name in sys.modules or "torchvision" in sys.modules:
        return
    stand_ins = {own: ModuleType(own) for own in names}
    for own, child in (("io", "torchvision.io"), ("transforms", "torchvision.transforms")):
        setattr(stand_ins["torchvision"], own, stand_ins[child])
    vars(stand_ins["torchvision"])["__version__"] = "0"
    vars(stand_ins["torchvision.transforms"])["InterpolationMode"] = SimpleNamespace(BICUBIC=3)
    with unittest.mock.patch.dict(sys.modules, stand_ins):
        made = importlib.import_module(name)
    sys.modules[name] = made


def _written(messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, str]], list[dict[str, bytes]]]:
    """Messages with places for images, as verl's files have them, and the images."""
    made, pictures = [], []
    for item in messages:
        content = item["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        text = "".join("<image>" if part["type"] == "image" else part["text"] for part in parts)
        pictures += [_png(part["image"]) for part in parts if part["type"] == "image"]
        made.append({"role": item["role"], "content": text})
    return made, pictures


def _png(picture: Any) -> dict[str, bytes]:
    from PIL import Image

    stream = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(stream, "PNG")
    return {"bytes": stream.getvalue()}


def _processor(family: str) -> Any:
    from assay.audits.components.pipeline import own

    processor = copy.copy(own.processor(family))
    processor.tokenizer.chat_template = own.TEMPLATE
    return processor


def _vision(family: str, *, packed: bool = False) -> dict[str, Any]:
    from assay.audits.components.pipeline import own
    from assay.audits.families.discovery import loaded

    processor = _processor(family)
    side = int(processor.image_processor.patch_size)
    return {
        "dataset": own.Talks(side), "collator": Batches(processor, images=True, packed=packed),
        "processor": processor, "model": functools.partial(_uncached, loaded(family)),
    }  # fmt: skip


def _uncached(family: Any) -> Any:
    """The engine calls models without a cache."""
    model = family.build(0)
    model.config.text_config.use_cache = False
    return model


def sft_qwen2_5_vl() -> dict[str, Any]:
    """Rows that are padded for the model."""
    return _vision("qwen2_5_vl")


def sft_qwen3_vl() -> dict[str, Any]:
    """Rows that are padded for the model."""
    return _vision("qwen3_vl")


def sft_unpadded_qwen2_5_vl() -> dict[str, Any]:
    """One row without padding, as by default."""
    return _vision("qwen2_5_vl", packed=True)


def sft_text() -> dict[str, Any]:
    """Texts without a processor."""
    from assay.audits.components.pipeline import own, upstream

    processor = _processor("qwen2_5_vl")
    return {
        "dataset": own.Talks(1, own.TEXTS[:-1]), "collator": Batches(processor, images=False),
        "tokenizer": processor.tokenizer, "model": own.text_model(upstream.VOCABULARY),
    }  # fmt: skip
