"""A training pipeline for a vision-language model, as ``assay audit --pipeline`` takes it.

Run it, from the folder that holds this file::

    assay audit --pipeline pipeline_example:make           # PASS
    assay audit --pipeline pipeline_example:make_wrong     # FAIL: the image's placeholders are trained on
    assay show --pipeline pipeline_example:make_wrong      # batch.html

To audit your own, copy the file, and give :func:`parts` your processor and a model of your family: the configuration
that you train with, few layers and few channels.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from assay import Pipeline
from assay.reference.label_mask import IGNORE, label

END = "<|im_end|>"
"""What the chat template writes after a turn."""


def parts() -> tuple[Any, Any]:
    """A processor and a model. Yours: ``AutoProcessor.from_pretrained(...)`` and the class of your model."""
    from assay.audits.components.pipeline.own import processor
    from assay.audits.families.discovery import loaded

    return processor("qwen2_5_vl"), loaded("qwen2_5_vl").build(0)  # tiny, offline, random weights


def sample(height: int, width: int, question: str, answer: str) -> dict[str, Any]:
    """One conversation about one image."""
    picture = Image.radial_gradient("L").resize((width, height)).convert("RGB")
    asked = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    said = [{"type": "text", "text": answer}]
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}


DATASET = [
    sample(64, 96, "what is in the middle?", "light"),
    sample(128, 64, "is it darker outside?", "yes, much darker"),
    sample(32, 32, "say yes", "yes"),
]


def encoded(processor: Any, talks: list[Any]) -> dict[str, Tensor]:
    """What the model is given of some conversations, padded on the tokenizer's side."""
    options: dict[str, Any] = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    return dict(processor.apply_chat_template(talks, **options, processor_kwargs={"padding": True}))


def labels_of(processor: Any, talk: list[Any]) -> Tensor:
    """The ids of one conversation where the assistant speaks, its end of turn included; elsewhere -100.

    From the characters of the rendered conversation: lengths of parts that are tokenised by themselves are not those of
    the whole wherever two parts merge in one token.
    """
    images = [part["image"] for turn in talk for part in turn["content"] if part["type"] == "image"]
    return label(
        talk,
        processor,
        end_of_turn=END,
        placeholders={processor.image_token: processor.image_token_id},
        encode=lambda text: processor(
            text=[text], images=images, add_special_tokens=False, return_offsets_mapping=True
        ),
    ).labels


def collate(processor: Any, samples: list[Any]) -> dict[str, Tensor]:
    """A padded batch with labels."""
    talks = [sample["messages"] for sample in samples]
    batch = encoded(processor, talks)
    labels = torch.full_like(batch["input_ids"], IGNORE)
    for row, talk in enumerate(talks):
        labels[row, batch["attention_mask"][row].bool()] = labels_of(processor, talk)
    return {**batch, "labels": labels}


def collate_wrong(processor: Any, samples: list[Any]) -> dict[str, Tensor]:
    """The same with labels as they are often made: all ids but those of padding."""
    batch = encoded(processor, [sample["messages"] for sample in samples])
    return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORE)}


def make() -> Pipeline:
    """Called once, in a process of its own. A mapping or a ``Trainer`` with these parts will do as well."""
    processor, model = parts()
    return Pipeline(dataset=DATASET, collator=partial(collate, processor), processor=processor, model=model)


def make_wrong() -> Pipeline:
    """The pipeline with the wrong labels."""
    processor, model = parts()
    return Pipeline(dataset=DATASET, collator=partial(collate_wrong, processor), processor=processor, model=model)
