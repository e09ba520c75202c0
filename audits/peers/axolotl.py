"""Axolotl: its collator and labels for images, its multipack sampler and collator, and its chunked loss."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from assay.audits import peer
from assay.audits.terms import Candidate, Inexpressible
from assay.reference.packed_plan import Piece, Plan

HERE = "assay.audits.peers.axolotl"


def _candidates() -> Iterator[Candidate]:
    for name in ("vision", "vision-qwen3-vl", "vision-inputs-too", "vision-last-end", "multipack"):
        yield peer.batches(name, f"{HERE}:{name.replace('-', '_')}")
    yield peer.calls("label_mask.labels", "qwen2-vl-strategy", f"{HERE}:labels", form="mask")
    # What is longer than a pack is left out before the sampler sees it.
    for name in ("multipack", "multipack-sequential"):
        ref, scope = f"{HERE}:plan_{name.replace('-', '_')}", {"overlong": "drop"}
        yield peer.calls("packed_positions.plan", name, ref, form="assay", scope=scope)
    text = {"rule": "text"}
    yield peer.calls("packed_positions.pack", "multipack-collator", f"{HERE}:pack", form="collator", scope=text)
    yield peer.calls("label_mask.collate", "padding-collator", f"{HERE}:collate", form="features")
    unpad, starts = "axolotl.monkeypatch.utils:get_unpad_data", f"{HERE}:by_positions"
    yield peer.calls("packed_positions.boundaries", "get-unpad-data", unpad, form="unpad")
    yield peer.calls("packed_positions.boundaries", "get-cu-seqlens-from-pos-ids", starts, form="hf-flash")
    yield peer.calls("masked_loss.cross_entropy", "chunked", f"{HERE}:chunked", form="hf")
    yield peer.calls("masked_loss.step", "chunked", f"{HERE}:chunked", form="loss")


PEER = peer.Peer(
    name="axolotl",
    source="https://github.com/axolotl-ai-cloud/axolotl",
    requirements=("axolotl==0.19.0", "transformers==5.16.1", "pillow"),
    candidates=_candidates,
    variables={"AXOLOTL_DO_NOT_TRACK": "1", "DO_NOT_TRACK": "1"},
    preload=("axolotl.processing_strategies", "axolotl.utils.collators.mm_chat"),
)


def _vision(family: str, **options: Any) -> dict[str, Any]:
    """The collator for images on our conversations, without truncation, which it has none of."""
    from axolotl.processing_strategies import Qwen2VLProcessingStrategy
    from axolotl.utils.collators.mm_chat import MultiModalChatDataCollator

    from assay.audits.components.pipeline import own
    from assay.audits.families.discovery import loaded

    processor = own.processor(family)
    strategy = Qwen2VLProcessingStrategy(processor, **options)
    collator = MultiModalChatDataCollator(processor.tokenizer, strategy)
    return {
        "dataset": own.Talks(int(processor.image_processor.patch_size)), "collator": collator, "processor": processor,
        "model": functools.partial(loaded(family).build, 0),
    }  # fmt: skip


def vision() -> Any:
    """The defaults: the assistant's turns and their ends."""
    return _vision("qwen2_5_vl")


def vision_qwen3_vl() -> Any:
    """The defaults: the assistant's turns and their ends."""
    return _vision("qwen3_vl")


def vision_inputs_too() -> Any:
    """Everything is trained on."""
    return _vision("qwen2_5_vl", train_on_inputs=True)


def vision_last_end() -> Any:
    """Of the ends of turns only the last is trained on."""
    return _vision("qwen2_5_vl", train_on_eos="last")


class _Rows(Sequence[list[dict[str, Any]]]):
    """Ready-made samples as the multipack sampler deals them: each item is the samples of a row."""

    def __init__(self, samples: Sequence[Mapping[str, Any]]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: Any) -> Any:
        return _feature(self._samples[index])


def _feature(sample: Mapping[str, Any]) -> dict[str, Any]:
    length = len(sample["input_ids"])
    if "labels" not in sample:
        raise Inexpressible("its data sets have labels")
    made = {name: list(value) for name, value in sample.items() if name != "messages" and len(value) == length}
    return {**made, "attention_mask": [1] * length, "position_ids": list(range(length))}


def multipack() -> Any:
    """Ready-made ids and labels in one row; the multipack sampler hands the collator the samples of each row."""
    from axolotl.utils.collators.batching import V2BatchSamplerDataCollatorForSeq2Seq

    from assay.audits.components.pipeline import own, upstream

    mine = own.Collator("qwen2_5_vl")
    tokenizer = mine.processor.tokenizer
    inner = V2BatchSamplerDataCollatorForSeq2Seq(tokenizer)

    def collator(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        made = dict(inner(samples))
        del made["attention_mask"]  # as its trainer does with sample_packing_drop_attention_mask
        return made

    return {
        "dataset": _Rows(own.Ids(mine)), "collator": collator, "tokenizer": tokenizer,
        "model": own.text_model(upstream.VOCABULARY),
    }  # fmt: skip


def labels(input_ids: Tensor, tokenizer: Any) -> Tensor:
    """``Qwen2VLProcessingStrategy.process_labels``."""
    from types import SimpleNamespace

    from axolotl.processing_strategies import Qwen2VLProcessingStrategy

    strategy = Qwen2VLProcessingStrategy(SimpleNamespace(tokenizer=tokenizer))
    return strategy.process_labels(input_ids[None])[0]


def _plan(lengths: Sequence[int], capacity: int, overlong: str, *, sequential: bool) -> Plan:
    from axolotl.utils.samplers.multipack import MultipackBatchSampler

    if overlong != "drop":
        raise Inexpressible("what is too long is left out beforehand")
    kept = [sample for sample, length in enumerate(lengths) if length <= capacity]
    if not kept:
        raise Inexpressible("there is nothing to pack")
    sampler = MultipackBatchSampler(
        kept, batch_size=1, batch_max_len=capacity, lengths=list(lengths), bin_size=len(lengths), drop_last=False,
        num_count_samples=1, sequential=sequential, num_processes=1,
    )  # fmt: skip
    packs = [pack for batch in sampler.generate_batches() for pack in batch]
    return Plan(packs=tuple(tuple(Piece(int(one), 0, lengths[int(one)]) for one in pack) for pack in packs))


def plan_multipack(lengths: Sequence[int], capacity: int, overlong: str) -> Plan:
    """``MultipackBatchSampler`` as it is unless told otherwise."""
    return _plan(lengths, capacity, overlong, sequential=False)


def plan_multipack_sequential(lengths: Sequence[int], capacity: int, overlong: str) -> Plan:
    """``MultipackBatchSampler`` that keeps the order."""
    return _plan(lengths, capacity, overlong, sequential=True)


def _tokenizer(pad: int = 0) -> Any:
    """A tokenizer that does what the collators ask of one: pad ids and masks on the right."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(pad + 1)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w0"))  # noqa: S106  # a token of a vocabulary
    made = PreTrainedTokenizerFast(tokenizer_object=inner)
    made.pad_token = f"w{pad}"
    return made


def pack(features: Sequence[Mapping[str, Any]]) -> Any:
    """``V2BatchSamplerDataCollatorForSeq2Seq`` on the samples of a row, with masks and positions."""
    from axolotl.utils.collators.batching import V2BatchSamplerDataCollatorForSeq2Seq

    collator = V2BatchSamplerDataCollatorForSeq2Seq(_tokenizer())
    return collator([_feature(one) for one in features])


def collate(features: Sequence[Mapping[str, Any]], tokenizer: Any) -> Any:
    """``DataCollatorForSeq2Seq``, which pads."""
    from axolotl.utils.collators.batching import DataCollatorForSeq2Seq

    return DataCollatorForSeq2Seq(tokenizer)([dict(one) for one in features])


def by_positions(position_ids: Tensor) -> tuple[Tensor, Any]:
    """``get_cu_seqlens_from_pos_ids``, which answers row by row."""
    from axolotl.monkeypatch.utils import get_cu_seqlens_from_pos_ids

    if len(position_ids) != 1:
        raise Inexpressible("each row has lengths of its own")
    if position_ids.shape[1] and not int(position_ids[0, -1]):
        raise Inexpressible("zeros at the end are padding there")
    ends, longest = get_cu_seqlens_from_pos_ids(position_ids)
    return ends[0], longest[0]


@functools.cache
def _chunked_loss() -> Any:
    """As ``patch_chunked_ce_loss_fn`` puts it in place of the loss of transformers."""
    from axolotl.monkeypatch.loss import chunked as found

    return found.get_causal_lm_loss()


def chunked(**given: Any) -> Tensor:
    """The causal loss in eight pieces of the tokens."""
    if given.get("ignore_index", -100) != -100:
        raise Inexpressible("its ignore index is given beforehand")
    found: Tensor = _chunked_loss()(**given)
    return found


def trains_on() -> dict[str, Any]:
    """By option: what makes ids and labels of conversations."""
    from assay.audits.peers import _trained

    return {
        "default": _trained.by(vision),
        "train_on_inputs": _trained.by(vision_inputs_too),
        "train_on_eos: last": _trained.by(vision_last_end),
    }
