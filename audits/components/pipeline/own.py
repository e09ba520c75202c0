"""Pipelines of our own, right as they are: conversations with images through real processors to a tiny model."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assay.audits.families import _media
from assay.audits.families.discovery import loaded
from assay.audits.pipelines import Pipeline

IGNORED = -100
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TALKS = (
    (("user", "i4x6", "where is the kanu?"), ("assistant", "left of the tree")),
    (("system", "be brief"), ("user", "what is two and two?"), ("assistant", "four")),
    (
        ("user", "i4x4", "and", "i6x2", "are they alike?"),
        ("assistant", "no: one is wider"),
        ("user", "say no again"),
        ("assistant", "no"),
    ),
    (("user", "i2x8", "name the three colours, in order"), ("assistant", "red, then blue, then red")),
    (("user", "say assistant"), ("assistant", "assistant")),
)
"""Turns as a role and parts: ``iHxW`` is an image of H x W patches, all else text.

Images and answers of unequal sizes, a text without image, an answer that the prompt contains, one that is a role.
"""

TEXTS = (
    *(talk for talk in TALKS if "i" not in {part[:1] for _, *parts in talk for part in parts if part[1:2].isdigit()}),
    (
        ("user", "count to three"),
        ("assistant", "one, two, three"),
        ("user", "and back"),
        ("assistant", "three, two, one"),
    ),
    (("user", "say nothing"), ("assistant", "")),
)
"""Those without an image, and more; one with nothing to say but the end of its turn."""


class Talks(Sequence[dict[str, Any]]):
    """The conversations as a dataset, each sample made anew."""

    def __init__(self, side: int, talks: Sequence[Any] = TALKS) -> None:
        """``side`` is the family's patch size in pixels."""
        self._side, self._talks = side, talks

    def __len__(self) -> int:
        """How many there are."""
        return len(self._talks)

    def __getitem__(self, index: Any) -> Any:
        """``messages``, as chat templates take them."""
        draw = np.random.default_rng(index)
        return {"messages": [self._message(role, parts, draw) for role, *parts in self._talks[index]]}

    def _message(self, role: str, parts: Sequence[str], draw: np.random.Generator) -> dict[str, Any]:
        return {"role": role, "content": [self._part(part, draw) for part in parts]}

    def _part(self, part: str, draw: np.random.Generator) -> dict[str, Any]:
        height, cross, width = part[1:].partition("x")
        if part[0] == "i" and cross and (height + width).isdigit():
            picture = _media.image(int(height) * self._side, int(width) * self._side, draw)
            return {"type": "image", "image": picture}
        return {"type": "text", "text": part}


@functools.lru_cache(maxsize=4)
def processor(family: str) -> Any:
    """The family's own processor, with a chat template and a tokenizer that is nobody else's."""
    from importlib import import_module

    from assay.audits.families import _processor

    recipe = import_module(f"assay.audits.families.{family}").RECIPE
    made = copy.copy(_processor.processor(recipe))
    made.tokenizer = copy.deepcopy(made.tokenizer)
    made.chat_template = TEMPLATE
    return made


class Collator:
    """Pads conversations and trains on what the assistant says, its end of turn included.

    Labels come from the places of characters in the rendered text, images expanded.
    """

    def __init__(self, family: str) -> None:
        """For the processor of a family."""
        self.processor = processor(family)

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """What the processor returns, and ``labels``."""
        return self.labelled([self.one(sample["messages"]) for sample in samples])

    def one(self, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One conversation: the processor's tensors of it, unpadded, and its labels [S]."""
        rendered = self.processor.apply_chat_template(messages, tokenize=False)
        images = [part["image"] for item in messages for part in item["content"] if part["type"] == "image"]
        more = {"images": images} if images else {}
        made = dict(self.processor(text=[rendered], return_tensors="pt", **more))
        full = self.expanded(rendered, made)
        encoded = self.processor.tokenizer(full, return_offsets_mapping=True, add_special_tokens=False)
        assert encoded["input_ids"] == made["input_ids"][0].tolist()
        kept = self.kept(full, messages, encoded["offset_mapping"])
        labels = torch.where(torch.tensor(kept), made["input_ids"][0], IGNORED)
        return {**made, "labels": labels[None]}

    def expanded(self, rendered: str, made: Mapping[str, Tensor]) -> str:
        """The text with as many placeholders as each image has features."""
        head, *rest = rendered.split(self.processor.image_token)
        merged = self.processor.image_processor.merge_size**2
        counts = [int(grid.prod()) // merged for grid in made.get("image_grid_thw", ())]
        return head + "".join(self.processor.image_token * n + part for n, part in zip(counts, rest, strict=True))

    def kept(self, full: str, messages: Sequence[Mapping[str, Any]], offsets: Sequence[tuple[int, int]]) -> list[bool]:
        """Which tokens belong to an answer: by the characters between a turn's head and the end of its end mark."""
        spans, place = [], 0
        for item in messages:
            start = full.index("\n", full.index("<|im_start|>", place)) + 1
            place = full.index("<|im_end|>", start) + len("<|im_end|>")
            if item["role"] == "assistant":
                spans.append((start, place))
        return [any(low <= first and last <= high for low, high in spans) for first, last in offsets]

    def labelled(self, made: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Rows of equal length: padded on the tokenizer's side, everything that has an entry for each token alike."""
        return padded(made, self.processor.tokenizer.padding_side, self.processor.tokenizer.pad_token_id)


FILL = {"attention_mask": 0, "mm_token_type_ids": 0, "labels": IGNORED}


def padded(made: Sequence[Mapping[str, Tensor]], side: str, pad: int) -> dict[str, Tensor]:
    """Batches of one sample as one: what has an entry for each token is padded, all else is concatenated."""
    length = max(one["input_ids"].shape[1] for one in made)
    out: dict[str, list[Tensor]] = {}
    for one in made:
        for name, value in one.items():
            fits = value.shape == one["input_ids"].shape
            wide = _filled(value, length - value.shape[1], side, FILL.get(name, pad)) if fits else value
            out.setdefault(name, []).append(wide)
    return {name: torch.cat(values) for name, values in out.items()}


def _filled(value: Tensor, missing: int, side: str, fill: int) -> Tensor:
    more = value.new_full((1, missing), fill)
    return torch.cat([more, value] if side == "left" else [value, more], dim=1)


class Packer(Collator):
    """All samples in one row, each with its own positions: four rows of them, text first, as the family takes them."""

    def __init__(self, family: str, model: Any) -> None:
        """``model`` numbers the tokens of a sample."""
        super().__init__(family)
        self.model = model

    def labelled(self, made: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """One row. A sample's first token has no label: nothing of its own predicts it."""
        out: dict[str, list[Tensor]] = {}
        for one in made:
            for name, value in {**one, "position_ids": self.positions(one)}.items():
                out.setdefault(name, []).append(value)
        out.pop("attention_mask")
        joined = {"position_ids", "input_ids", "labels", "mm_token_type_ids"}
        return {name: torch.cat(values, dim=-1 if name in joined else 0) for name, values in out.items()}

    def positions(self, one: Mapping[str, Tensor]) -> Tensor:
        """[4,1,S]: the place in the sample, then time, height and width."""
        ids = one["input_ids"]
        text = torch.arange(ids.shape[1])[None, None]
        if "image_grid_thw" not in one:
            return text.expand(4, 1, -1)
        given = {name: one[name] for name in ("image_grid_thw", "mm_token_type_ids", "attention_mask")}
        three, _ = self.model.model.get_rope_index(ids, **given)
        return torch.cat([text, three])


def _family_pipeline(family: str) -> Pipeline:
    collator = Collator(family)
    side = int(collator.processor.image_processor.patch_size)
    model = loaded(family).build(0)
    return Pipeline(dataset=Talks(side), collator=collator, processor=collator.processor, model=model)


def padded_qwen2_5_vl() -> Pipeline:
    """Padded batches for Qwen2.5-VL."""
    return _family_pipeline("qwen2_5_vl")


def padded_qwen3_vl() -> Pipeline:
    """Padded batches for Qwen3-VL."""
    return _family_pipeline("qwen3_vl")


def packed_qwen2_5_vl() -> Pipeline:
    """Packs for Qwen2.5-VL: one row, boundaries by the text's positions, and no cache in the text model.

    With a cache its forward makes no mask of packs, and ``Trainer`` turns it off in the outer configuration only.
    """
    made = _family_pipeline("qwen2_5_vl")
    made.model.config.text_config.use_cache = False
    packer = Packer("qwen2_5_vl", made.model)
    return Pipeline(dataset=made.dataset, collator=packer, processor=packer.processor, model=made.model)


class Ids(Sequence[dict[str, Any]]):
    """The conversations without images, as the ids and labels that collators of transformers take."""

    def __init__(self, collator: Collator) -> None:
        """Made once: a collator must leave them as they are."""
        talks = Talks(1, TEXTS)
        self._made = [self._one(collator, talk) for talk in talks]

    def _one(self, collator: Collator, talk: Mapping[str, Any]) -> dict[str, Any]:
        made = collator.one(talk["messages"])
        ids, labels = made["input_ids"][0].tolist(), made["labels"][0].tolist()
        return {"messages": talk["messages"], "input_ids": ids, "labels": labels}

    def __len__(self) -> int:
        """How many there are."""
        return len(self._made)

    def __getitem__(self, index: Any) -> Any:
        """``messages``, ``input_ids`` and ``labels``."""
        return self._made[index]


class _Unnamed:
    """A collator of transformers that is handed the columns it knows, as ``Trainer`` does."""

    def __init__(self, collator: Any, columns: Sequence[str]) -> None:
        self.collator, self.columns = collator, columns
        self.tokenizer = getattr(collator, "tokenizer", None)

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> Any:
        return self.collator([{name: sample[name] for name in self.columns} for sample in samples])


def _of_transformers(
    collator: Any, own: Collator, model: Any, columns: Sequence[str] = ("input_ids", "labels")
) -> Pipeline:
    return Pipeline(dataset=Ids(own), collator=_Unnamed(collator, columns), processor=own.processor, model=model)


def text_model(vocabulary: int) -> Any:
    """A tiny Qwen2, which knows no images."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        untyped: Any = Qwen2ForCausalLM
        return untyped(config).eval()


def flattening() -> Pipeline:
    """``DataCollatorWithFlattening`` for a text model: one row, positions that start anew."""
    from transformers import DataCollatorWithFlattening

    own = Collator("qwen2_5_vl")
    return _of_transformers(DataCollatorWithFlattening(), own, text_model(576))


def seq2seq() -> Pipeline:
    """``DataCollatorForSeq2Seq``: padded rows, labels padded too."""
    from transformers import DataCollatorForSeq2Seq

    own = Collator("qwen2_5_vl")
    return _of_transformers(DataCollatorForSeq2Seq(own.processor.tokenizer), own, loaded("qwen2_5_vl").build(0))
