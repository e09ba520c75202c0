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

IGNORED = -100


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


def encoded(processor: Any, talks: list[Any], *, prompt: bool = False) -> dict[str, Tensor]:
    """What the model is given of some conversations, padded on the tokenizer's side."""
    return dict(
        processor.apply_chat_template(
            talks, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=prompt,
            processor_kwargs={"padding": True},
        )
    )  # fmt: skip


def labels_of(processor: Any, talk: list[Any]) -> Tensor:
    """The ids of one conversation where the assistant speaks, its end of turn included.

    Lengths are those of the ids that the processor makes, in which an image is as long as it is for the model.
    """
    ids = encoded(processor, [talk])["input_ids"][0]
    labels = torch.full_like(ids, IGNORED)
    for place, message in enumerate(talk):
        if message["role"] == "assistant":
            start = encoded(processor, [talk[:place]], prompt=True)["input_ids"].shape[1]
            stop = encoded(processor, [talk[: place + 1]])["input_ids"].shape[1] - 1  # the line break after the turn
            labels[start:stop] = ids[start:stop]
    return labels


def collate(processor: Any, samples: list[Any]) -> dict[str, Tensor]:
    """A padded batch with labels."""
    talks = [sample["messages"] for sample in samples]
    batch = encoded(processor, talks)
    labels = torch.full_like(batch["input_ids"], IGNORED)
    for row, talk in enumerate(talks):
        labels[row, batch["attention_mask"][row].bool()] = labels_of(processor, talk)
    return {**batch, "labels": labels}


def collate_wrong(processor: Any, samples: list[Any]) -> dict[str, Tensor]:
    """The same with labels as they are often made: all ids but those of padding."""
    batch = encoded(processor, [sample["messages"] for sample in samples])
    return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)}


def make() -> Pipeline:
    """Called once, in a process of its own. A mapping or a ``Trainer`` with these parts will do as well."""
    processor, model = parts()
    return Pipeline(dataset=DATASET, collator=partial(collate, processor), processor=processor, model=model)


def make_wrong() -> Pipeline:
    """The pipeline with the wrong labels."""
    processor, model = parts()
    return Pipeline(dataset=DATASET, collator=partial(collate_wrong, processor), processor=processor, model=model)
