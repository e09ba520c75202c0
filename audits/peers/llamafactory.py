"""LLaMA-Factory: its encoding of conversations, its collators, its packing, and what it tells attention of packs."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from assay.audits import peer
from assay.audits.terms import Candidate, Inexpressible

HERE = "assay.audits.peers.llamafactory"
CUTOFF = 512
"""Tokens of a pack, and of the longest conversation."""

ROLES = {"tool": "observation"}
"""What its converters of data sets make of roles."""
TEMPLATES = {"qwen2_5_vl": "qwen2_vl", "qwen3_vl": "qwen3_vl_nothink"}
"""What its list of models names for the families; the second for the models that do not think."""


def _candidates() -> Iterator[Candidate]:
    yield peer.calls("packed_positions.plan", "greedy-knapsack", f"{HERE}:knapsack", form="sizes")
    yield peer.calls("packed_positions.mask", "4d-mask", f"{HERE}:mask", form="numbers")
    yield peer.calls("packed_positions.boundaries", "unpad-data", f"{HERE}:unpad_data", form="unpad")
    for name in (
        "sft-qwen2-5-vl", "sft-qwen3-vl", "sft-last-turn-qwen2-5-vl", "sft-prompt-too-qwen2-5-vl",
        "neat-packing-qwen2-5-vl", "neat-packing-texts-qwen2-5-vl", "sft-text", "neat-packing-text",
    ):  # fmt: skip
        yield peer.batches(name, f"{HERE}:{name.replace('-', '_')}")


PEER = peer.Peer(
    name="llamafactory",
    source="https://github.com/hiyouga/LlamaFactory",
    requirements=("llamafactory==0.9.5", "pillow"),
    candidates=_candidates,
    variables={"DISABLE_VERSION_CHECK": "1"},
    preload=("assay.audits.peers._llamafactory_import",),
)


def prepare() -> None:
    """Make the package importable, before anything of it is."""
    importlib.import_module("assay.audits.peers._llamafactory_import")


def knapsack(numbers: Sequence[int], capacity: int) -> Any:
    """It empties the list that it is given, as its only caller knows, which drops what is too long for a pack."""
    if max(numbers, default=0) > capacity:
        message = "samples longer than a pack are dropped before"
        raise Inexpressible(message)
    prepare()
    from llamafactory.data.processor.processor_utils import greedy_knapsack

    return greedy_knapsack(list(numbers), capacity)


def mask(attention_mask: Tensor, dtype: torch.dtype) -> Any:
    """Sample numbers to what is added to scores."""
    prepare()
    from llamafactory.data.collator import prepare_4d_attention_mask

    return prepare_4d_attention_mask(attention_mask, dtype)


def unpad_data(attention_mask: Tensor) -> Any:
    """Sample numbers to what FlashAttention is told."""
    prepare()
    from llamafactory.model.model_utils.packing import get_unpad_data

    return get_unpad_data(attention_mask)


class _Batches:
    """Conversations through the processor of data sets and the collator that its training run makes."""

    def __init__(self, family: str, model: Any, **options: Any) -> None:
        prepare()
        from llamafactory.data import template
        from llamafactory.hparams import DataArguments

        from assay.audits.components.pipeline import own

        self.model = model
        self.processor = copy.copy(own.processor(family))
        self.processor.image_processor = copy.deepcopy(self.processor.image_processor)
        self.processor.image_processor.do_resize = True
        self.processor.image_processor.size = {"shortest_edge": 64, "longest_edge": 65536}
        self.arguments = DataArguments(template=TEMPLATES[family], cutoff_len=CUTOFF, **options)
        self.tokenizer = self.processor.tokenizer
        self.template = template.get_template_and_fix_tokenizer(self.tokenizer, self.arguments)

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        from llamafactory.data import collator
        from llamafactory.data.processor import supervised

        neat = self.arguments.neat_packing
        kind: Any = supervised.PackedSupervisedDatasetProcessor if neat else supervised.SupervisedDatasetProcessor
        given = (self.template, self.tokenizer, self.processor, self.arguments)
        columns = kind(*given).preprocess_dataset(self._columns(samples))
        rows = [{name: values[place] for name, values in columns.items()} for place in range(len(columns["labels"]))]
        made = collator.SFTDataCollatorWith4DAttentionMask(
            tokenizer=self.tokenizer, model=self.model, template=self.template, processor=self.processor,
            pad_to_multiple_of=8, label_pad_token_id=-100, block_diag_attn=neat, attn_implementation="sdpa",
            compute_dtype=torch.float32, neat_packing=neat,
        )(rows)  # fmt: skip
        return dict(made)

    def _columns(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        """As its data sets have them: roles, text with places for images, the system prompt by itself."""
        columns: dict[str, list[Any]] = {f"_{name}": [] for name in ("prompt", "response", "system", "images")}
        for sample in samples:
            turns = [(item["role"], *_content(item["content"])) for item in sample["messages"]]
            system = "".join(text for role, text, _ in turns if role == "system")
            spoken = [{"role": ROLES.get(role, role), "content": text} for role, text, _ in turns if role != "system"]
            pictures = [picture for *_, some in turns for picture in some]
            values = (spoken[:-1], spoken[-1:], system, pictures)
            for name, value in zip(columns, values, strict=True):
                columns[name].append(value)
        nothing: list[Any] = [None] * len(samples)
        return {**columns, "_tools": [""] * len(samples), "_videos": nothing, "_audios": nothing}


def _content(content: Any) -> tuple[str, list[Any]]:
    from PIL import Image

    parts: list[Any] = [{"type": "text", "text": content}] if isinstance(content, str) else content
    pictures = [part["image"] for part in parts if part["type"] == "image"]
    text = "".join("<image>" if part["type"] == "image" else part["text"] for part in parts)
    return text, [one if isinstance(one, Image.Image) else Image.fromarray(one) for one in pictures]


def _pipeline(family: str, *, texts: bool = False, **options: Any) -> dict[str, Any]:
    """Conversations with an image each: one without would get a picture of the package's, hidden and in no label."""
    prepare()
    from assay.audits.components.pipeline import own
    from assay.audits.families.discovery import loaded

    model = loaded(family).build(0)
    batches = _Batches(family, model, **options)
    side = 4 * int(batches.processor.image_processor.patch_size)  # smaller pictures would be made larger by the package
    shown = own.TEXTS[:-1] if texts else [talk for talk in own.TALKS if talk not in own.TEXTS]
    return {"dataset": own.Talks(side, shown), "collator": batches, "processor": batches.processor, "model": model}


def sft_qwen2_5_vl() -> Any:
    """The answers of every turn."""
    return _pipeline("qwen2_5_vl")


def sft_qwen3_vl() -> Any:
    """The answers of every turn."""
    return _pipeline("qwen3_vl")


def sft_last_turn_qwen2_5_vl() -> Any:
    """The last answer alone."""
    return _pipeline("qwen2_5_vl", mask_history=True)


def sft_prompt_too_qwen2_5_vl() -> Any:
    """Everything."""
    return _pipeline("qwen2_5_vl", train_on_prompt=True)


def neat_packing_qwen2_5_vl() -> Any:
    """Packs with a mask of four dimensions."""
    return _pipeline("qwen2_5_vl", packing=True, neat_packing=True)


def neat_packing_texts_qwen2_5_vl() -> Any:
    """Packs without an image, for a model that has images."""
    return _pipeline("qwen2_5_vl", texts=True, packing=True, neat_packing=True)


def _text(**options: Any) -> dict[str, Any]:
    prepare()
    from assay.audits.components.pipeline import own, upstream

    model = own.text_model(upstream.VOCABULARY)
    batches = _Batches("qwen2_5_vl", model, **options)
    batches.arguments.template = "qwen"
    from llamafactory.data import template

    batches.template = template.get_template_and_fix_tokenizer(batches.tokenizer, batches.arguments)
    return {
        "dataset": own.Talks(1, own.TEXTS[:-1]), "collator": batches, "tokenizer": batches.tokenizer, "model": model,
    }  # fmt: skip


def sft_text() -> Any:
    """Texts alone, for a model without images."""
    return _text()


def neat_packing_text() -> Any:
    """Packs of texts with a mask of four dimensions."""
    return _text(packing=True, neat_packing=True)


def trains_on() -> dict[str, Any]:
    """By option: what makes ids and labels of conversations."""
    from assay.audits.peers import _trained

    return {
        "default": _trained.by(sft_qwen2_5_vl),
        "mask_history": _trained.by(sft_last_turn_qwen2_5_vl),
        "train_on_prompt": _trained.by(sft_prompt_too_qwen2_5_vl),
    }
