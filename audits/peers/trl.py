"""TRL: its collators for texts and images, its packing, and its chunked loss."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from assay.audits import peer
from assay.audits.terms import Candidate, Inexpressible
from assay.reference.packed_plan import Piece, Plan

HERE = "assay.audits.peers.trl"


def _candidates() -> Iterator[Candidate]:
    for name in (
        "vision", "vision-assistant-only", "vision-prompt-completion", "vision-completion-only", "padding-free",
        "padded", "vision-qwen3-vl", "vision-assistant-only-qwen3-vl",
    ):  # fmt: skip
        yield peer.batches(name, f"{HERE}:{name.replace('-', '_')}")
    # Strategy "wrapped" cuts samples anywhere, and says so: there is nothing to judge it by.
    for name, overlong in (("pack-dataset-bfd", "truncate"), ("pack-dataset-bfd-split", "split")):
        ref = f"{HERE}:{name.replace('-', '_')}"
        yield peer.calls("packed_positions.plan", name, ref, form="assay", scope={"overlong": overlong})
    yield peer.calls("packed_positions.pack", "padding-free-collator", f"{HERE}:padding_free_pack", form="collator")
    yield peer.calls("label_mask.collate", "padding-collator", f"{HERE}:padding_collate", form="features")


PEER = peer.Peer(
    name="trl",
    source="https://github.com/huggingface/trl",
    requirements=("trl==1.16.0", "pillow"),
    candidates=_candidates,
    preload=("datasets", "trl.trainer.sft_trainer"),
)


class _Columns(Sequence[dict[str, Any]]):
    """The conversations in the columns that TRL's collator reads: messages with places for images, and the images."""

    def __init__(self, talks: Sequence[Mapping[str, Any]], *, split: bool) -> None:
        self._talks, self._split = talks, split

    def __len__(self) -> int:
        return len(self._talks)

    def __getitem__(self, index: Any) -> Any:
        messages = self._talks[index]["messages"]
        images = [part["image"] for item in messages for part in item["content"] if part["type"] == "image"]
        bare = [{**item, "content": [self._bare(part) for part in item["content"]]} for item in messages]
        if self._split:
            return {"prompt": bare[:-1], "completion": bare[-1:], "images": images}
        return {"messages": bare, "images": images}

    def _bare(self, part: Mapping[str, Any]) -> dict[str, Any]:
        return {"type": "image"} if part["type"] == "image" else dict(part)


def _vision(family: str, *, split: bool = False, marked: bool = False, **options: Any) -> dict[str, Any]:
    """A pipeline of TRL's collator for images on our conversations."""
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    from assay.audits.components.pipeline import own
    from assay.audits.families.discovery import loaded

    processor = own.processor(family)
    if marked:
        processor.chat_template = MARKED
    talks = own.Talks(int(processor.image_processor.patch_size))
    collator = DataCollatorForVisionLanguageModeling(processor, **options)
    return {
        "dataset": _Columns(talks, split=split), "collator": collator, "processor": processor,
        "model": functools.partial(loaded(family).build, 0),
    }  # fmt: skip


MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{% for part in m.content %}{{ part.text }}{% endfor %}<|im_end|>"
    "{% endgeneration %}{% else %}{% for part in m.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The template of our own pipelines, which says what the assistant wrote."""


def vision() -> Any:
    """Every token is trained on."""
    return _vision("qwen2_5_vl")


def vision_qwen3_vl() -> Any:
    """Every token is trained on."""
    return _vision("qwen3_vl")


def vision_assistant_only() -> Any:
    """The assistant's turns by the template's own marks."""
    return _vision("qwen2_5_vl", marked=True, assistant_only_loss=True)


def vision_assistant_only_qwen3_vl() -> Any:
    """The assistant's turns by the template's own marks."""
    return _vision("qwen3_vl", marked=True, assistant_only_loss=True)


def vision_prompt_completion() -> Any:
    """Prompt and completion, both trained on."""
    return _vision("qwen2_5_vl", split=True)


def vision_completion_only() -> Any:
    """Prompt and completion, of which the completion is trained on."""
    return _vision("qwen2_5_vl", split=True, completion_only_loss=True)


def _text(**options: Any) -> dict[str, Any]:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from assay.audits.components.pipeline import own, upstream

    mine = own.Collator("qwen2_5_vl")
    tokenizer = mine.processor.tokenizer
    collator = DataCollatorForLanguageModeling(tokenizer.pad_token_id, **options)
    return {
        "dataset": upstream.Columns(own.Ids(mine), "input_ids", "labels"), "collator": collator,
        "tokenizer": tokenizer, "model": own.text_model(upstream.VOCABULARY),
    }  # fmt: skip


def padded() -> Any:
    """Ready-made ids and labels, padded."""
    return _text()


def padding_free() -> Any:
    """Ready-made ids and labels in one row."""
    return _text(padding_free=True)


def padding_free_pack(features: Sequence[Mapping[str, Any]]) -> Any:
    """The collator that makes one row of all samples."""
    _text_alone(features)
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    return DataCollatorForLanguageModeling(0, padding_free=True)([dict(one) for one in features])


def padding_collate(features: Sequence[Mapping[str, Any]], tokenizer: Any) -> Any:
    """The collator that pads, always on the right."""
    _text_alone(features)
    if tokenizer.padding_side != "right":
        message = "it pads on the right, whatever the tokenizer says"
        raise Inexpressible(message)
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    return DataCollatorForLanguageModeling(tokenizer.pad_token_id)([dict(one) for one in features])


def _text_alone(features: Sequence[Mapping[str, Any]]) -> None:
    """The collator documents which columns it returns, all of them of texts; images have a collator of their own."""
    for feature in features:
        further = set(feature) - {"input_ids", "labels", "attention_mask", "position_ids"}
        if further:
            message = f"it documents that it reads ids and labels: not {', '.join(sorted(further))}"
            raise Inexpressible(message)


def _packed(strategy: str, policy: str) -> Callable[..., Any]:
    """``trl.pack_dataset`` on rows of distinct numbers, by which the pieces of each row are told apart."""

    def planned(lengths: Sequence[int], capacity: int, overlong: str) -> Plan:
        import datasets
        import trl

        if not all(lengths) or not lengths:
            message = "a sample without tokens leaves no trace in a row"
            raise Inexpressible(message)
        if overlong != policy:
            message = f"strategy {strategy!r} does one thing with what is too long: {policy}"
            raise Inexpressible(message)
        starts = [sum(lengths[:sample]) for sample in range(len(lengths))]
        rows = [list(range(start, start + length)) for start, length in zip(starts, lengths, strict=True)]
        features = datasets.Features({"input_ids": datasets.List(datasets.Value("int64"))})
        made = trl.pack_dataset(datasets.Dataset.from_dict({"input_ids": rows}, features), capacity, strategy=strategy)
        return Plan(packs=tuple(tuple(_pieces(row, starts)) for row in made["input_ids"]))

    return planned


def _pieces(row: Sequence[int], starts: Sequence[int]) -> Iterator[Piece]:
    """Runs of consecutive numbers, cut where a sample begins."""
    first = 0
    for place in range(1, len(row) + 1):
        if place == len(row) or row[place] != row[place - 1] + 1 or row[place] in starts:
            sample = bisect.bisect_right(starts, row[first]) - 1
            yield Piece(sample, row[first] - starts[sample], row[place - 1] + 1 - starts[sample])
            first = place


pack_dataset_bfd = _packed("bfd", "truncate")
pack_dataset_bfd_split = _packed("bfd_split", "split")
