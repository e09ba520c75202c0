"""ms-swift's templates as pipelines: its own encoding of conversations, its own collator."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from torch import Tensor

FAMILY = "qwen2_5_vl"
SIDE = 28
"""Pixels of an even number of these are a multiple of what it resizes to, and of the tiny model's patches."""


class Batches:
    """Conversations encoded and collated by a template."""

    def __init__(self, template: Any, processor: Any) -> None:
        """``template`` is in training mode."""
        self.template, self.processor = template, processor

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """What the trainer hands to the model: the text's own row of positions is taken out before."""
        encoded = [self.template.encode(_written(sample["messages"])) for sample in samples]
        batch = self.template.data_collator(encoded)
        kept = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
        return {name: value for name, value in kept.items() if name != "text_position_ids" and "_length" not in name}


def _written(messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Messages with tags for images, and the images."""
    images = [part["image"] for item in messages for part in item["content"] if part["type"] == "image"]
    made = [
        {"role": item["role"], "content": "".join(part.get("text", "<image>") for part in item["content"])}
        for item in messages
    ]
    return {"messages": made, "images": images}


def _pipeline(**options: Any) -> dict[str, Any]:
    from assay.audits.components.pipeline import own
    from assay.audits.families.discovery import loaded

    processor = own.processor(FAMILY)
    return {
        "dataset": own.Talks(SIDE), "collator": Batches(_template(processor, **options), processor),
        "processor": processor, "model": functools.partial(loaded(FAMILY).build, 0),
    }  # fmt: skip


def _template(processor: Any, **options: Any) -> Any:
    """A template with a tiny model on disk, as its loader wants one; the processor is handed to the loader."""
    import transformers

    from assay.audits.families.discovery import loaded
    from assay.audits.peers._verl_batches import import_without_torchvision

    import_without_torchvision("qwen_vl_utils")
    from swift.model import get_model_processor
    from swift.template import get_template

    given = mock.patch.object(transformers.AutoProcessor, "from_pretrained", return_value=processor)
    with tempfile.TemporaryDirectory() as folder, given:
        loaded(FAMILY).build(0).save_pretrained(folder)
        (Path(folder) / "processor_config.json").write_text("{}")  # without it a tokenizer alone is looked for
        model, known = get_model_processor(folder, model_type=FAMILY)
    template = get_template(known, template_type=FAMILY, **options)
    template.set_mode("train")
    template.model = model
    for kind in ("image", "video"):  # written into it are the ids of Qwen's own vocabulary
        setattr(template, f"{kind}_token_id", processor.tokenizer.convert_tokens_to_ids(f"<|{kind}_pad|>"))
    return template


def padded_qwen2_5_vl() -> dict[str, Any]:
    """Padded rows, all answers trained on, as by default; without the system prompt that nobody wrote."""
    return _pipeline(default_system="")


def last_round_qwen2_5_vl() -> dict[str, Any]:
    """The last answer alone."""
    return _pipeline(default_system="", loss_scale="last_round")
