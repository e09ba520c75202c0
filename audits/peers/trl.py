"""TRL: its collators for texts and images, its packing, and its chunked loss."""

from __future__ import annotations

import bisect
import copy
import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

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
    for name in ("trainer-text", "trainer-text-smoothed", "trainer-vision", "trainer-modernbert"):
        yield peer.batches(name, f"{HERE}:{name.replace('-', '_')}")
    # Strategy "wrapped" cuts samples anywhere, and says so: there is nothing to judge it by.
    for name, overlong in (("pack-dataset-bfd", "truncate"), ("pack-dataset-bfd-split", "split")):
        ref = f"{HERE}:{name.replace('-', '_')}"
        yield peer.calls("packed_positions.plan", name, ref, form="assay", scope={"overlong": overlong})
    # Both document that they read ids and labels of texts, and pad on the right.
    yield peer.calls(
        "packed_positions.pack", "padding-free-collator", f"{HERE}:padding_free_pack", form="collator",
        scope={"rule": "text"},
    )  # fmt: skip
    yield peer.calls(
        "label_mask.collate", "padding-collator", f"{HERE}:padding_collate", form="features",
        scope={"side": "right", "keys": False, "hidden": False},
    )  # fmt: skip


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

    processor = copy.copy(own.processor(family))
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
    "{% endfor %}<|im_end|>{% endif %}{{ '\n' }}"
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


def _trainer(model: Any, columns: Mapping[str, Any], processor: Any, **options: Any) -> Any:
    import datasets
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    with torch.random.fork_rng(devices=[]):  # it seeds all generators
        told = SFTConfig(
            output_dir=tempfile.gettempdir(), per_device_train_batch_size=2, use_cpu=True, bf16=False, report_to=[],
            save_strategy="no", logging_strategy="no", disable_tqdm=True, gradient_checkpointing=False, **options,
        )  # fmt: skip
        data = datasets.Dataset.from_dict(dict(columns))
        made = SFTTrainer(model=model, args=told, train_dataset=data, processing_class=processor)
    made.remove_callback(PrinterCallback)
    return made


def trainer_modernbert() -> Any:
    """``SFTTrainer`` for a model whose head is more than the output embeddings."""
    from transformers import ModernBertDecoderConfig, ModernBertDecoderForCausalLM

    from assay.audits.components.pipeline import upstream

    config = ModernBertDecoderConfig(
        vocab_size=upstream.VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        untyped: Any = ModernBertDecoderForCausalLM
        return _text_trainer(untyped(config).eval())


def _text_trainer(model: Any = None, **options: Any) -> Any:
    from assay.audits.components.pipeline import own, upstream

    mine = own.Collator("qwen2_5_vl")
    samples = list(own.Ids(mine))
    columns = {name: [one[name] for one in samples] for name in ("input_ids", "labels")}
    return _trainer(model or own.text_model(upstream.VOCABULARY), columns, mine.processor.tokenizer, **options)


def trainer_text() -> Any:
    """``SFTTrainer`` on ready-made ids and labels, with its fused head."""
    return _text_trainer()


def trainer_text_smoothed() -> Any:
    """``SFTTrainer`` with label smoothing, for which the head is not fused."""
    return _text_trainer(label_smoothing_factor=0.1)


def trainer_vision() -> Any:
    """``SFTTrainer`` on conversations with images, the completion trained."""
    made = vision_completion_only()
    rows = [made["dataset"][place] for place in range(len(made["dataset"]))]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return _trainer(made["model"](), columns, made["processor"], max_length=None)


def padding_free_pack(features: Sequence[Mapping[str, Any]]) -> Any:
    """The collator that makes one row of all samples."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    return DataCollatorForLanguageModeling(0, padding_free=True)(_documented(features))


def padding_collate(features: Sequence[Mapping[str, Any]], tokenizer: Any) -> Any:
    """The collator that pads, always on the right."""
    if tokenizer.padding_side != "right":
        message = "it pads on the right, whatever the tokenizer says"
        raise Inexpressible(message)
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    return DataCollatorForLanguageModeling(tokenizer.pad_token_id)(_documented(features))


def _documented(features: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The columns that the collator documents to read."""
    return [{name: feature[name] for name in ("input_ids", "labels") if name in feature} for feature in features]


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


def trains_on() -> dict[str, Any]:
    """By option: what makes ids and labels of conversations."""
    from assay.audits.peers import _trained

    whole, split = functools.partial(_Columns, split=False), functools.partial(_Columns, split=True)
    return {
        "messages": _trained.by(vision, whole),
        "messages, assistant_only_loss": _trained.by(vision_assistant_only, whole),
        "prompt and completion": _trained.by(vision_prompt_completion, split),
        "prompt and completion, completion_only_loss": _trained.by(vision_completion_only, split),
    }
