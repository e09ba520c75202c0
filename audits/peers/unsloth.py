"""Unsloth and unsloth-zoo: the collator for images, labels of responses, packing, and losses."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from assay.audits import peer
from assay.audits.terms import Candidate, Inexpressible

HERE = "assay.audits.peers.unsloth"
PARTS = {"instruction_part": "<|im_start|>user\n", "response_part": "<|im_start|>assistant\n"}
DRIVER = "the kernel asks the driver for the GPU that it runs on"


def _candidates() -> Iterator[Candidate]:
    for name in ("vision", "vision-qwen3-vl", "vision-responses", "vision-last-response", "vision-prompt-completion"):
        yield peer.batches(name, f"{HERE}:{name.replace('-', '_')}")
    yield peer.calls("label_mask.labels", "responses-only", f"{HERE}:responses", form="mask")
    yield peer.calls("packed_positions.mask", "sdpa-mask", f"{HERE}:sdpa_mask", form="cu-seqlens")
    scope = {"reduction": "mean", "weighted": False, "label_smoothing": 0.0, "z_loss": 0.0, "ignore_index": -100}
    yield peer.calls("masked_loss.linear_cross_entropy", "fused-ce", f"{HERE}:fused", form="assay", scope=scope)
    yield peer.unrunnable("masked_loss.cross_entropy", "fast-cross-entropy", DRIVER)
    yield peer.unrunnable("mrope.rotate", "fast-rope", DRIVER)


PEER = peer.Peer(
    name="unsloth",
    source="https://github.com/unslothai/unsloth",
    requirements=("unsloth==2026.10.7", "pillow"),
    candidates=_candidates,
    preload=("assay.audits.peers._unsloth_import",),
)


def _imported() -> None:
    importlib.import_module("assay.audits.peers._unsloth_import")


class _Split:
    """Samples as ``prompt`` and ``completion``."""

    def __init__(self, talks: Any) -> None:
        self._talks = talks

    def __len__(self) -> int:
        return len(self._talks)

    def __getitem__(self, index: Any) -> Any:
        messages = self._talks[index]["messages"]
        return {"prompt": messages[:-1], "completion": messages[-1:]}


def _vision(family: str, *, split: Any = False, **options: Any) -> dict[str, Any]:
    """The collator for images on our conversations; images keep their size, as the guides advise for Qwen."""
    _imported()
    from unsloth_zoo.vision_utils import UnslothVisionDataCollator

    from assay.audits.components.pipeline import own
    from assay.audits.families.discovery import loaded

    processor = own.processor(family)
    build = functools.partial(loaded(family).build, 0)
    talks: Any = own.Talks(int(processor.image_processor.patch_size))
    collator = UnslothVisionDataCollator(build(), processor, **{"resize": "max", **options})
    return {"dataset": _Split(talks) if split else talks, "collator": collator, "processor": processor, "model": build}


def vision() -> Any:
    """The defaults: everything is trained on."""
    return _vision("qwen2_5_vl")


def vision_qwen3_vl() -> Any:
    """The defaults: everything is trained on."""
    return _vision("qwen3_vl")


def vision_responses() -> Any:
    """The assistant's turns."""
    return _vision("qwen2_5_vl", train_on_responses_only=True, **PARTS)


def vision_last_response() -> Any:
    """The assistant's last turn."""
    return _vision("qwen2_5_vl", train_on_responses_only=True, last_response_only=True, **PARTS)


def vision_prompt_completion() -> Any:
    """Prompt and completion, of which the completion is trained on."""
    return _vision("qwen2_5_vl", split=True)


def responses(input_ids: Tensor, tokenizer: Any) -> Tensor:
    """``train_on_responses_only``, as a function of a batch."""
    _imported()
    from unsloth_zoo.dataset_utils import train_on_responses_only

    masked = train_on_responses_only(None, tokenizer=tokenizer, return_function=True, **PARTS)
    made: Tensor = masked({"input_ids": input_ids[None]})["labels"][0]
    return made


def sdpa_mask(cu_seqlens: Tensor) -> Tensor:
    """``build_sdpa_packed_attention_mask``, for the lengths that its packing hands over."""
    _imported()
    from unsloth.utils.packing import build_sdpa_packed_attention_mask, get_packed_info_from_kwargs

    told = get_packed_info_from_kwargs({"packed_seq_lengths": cu_seqlens.diff()}, cu_seqlens.device)
    made: Tensor = build_sdpa_packed_attention_mask(told, dtype=torch.float32, device=cu_seqlens.device)
    return made


def fused(hidden: Tensor, head: Tensor, labels: Tensor, **options: Any) -> SimpleNamespace:
    """``unsloth_fused_ce_loss``, as its forwards call it."""
    _imported()
    from unsloth_zoo.fused_losses import unsloth_fused_ce_loss

    if options["weight"] is not None or options["label_smoothing"] or options["z_loss"]:
        raise Inexpressible("no weights, smoothing or z-loss")
    if options["reduction"] != "mean" or options["ignore_index"] != -100:
        raise Inexpressible("the mean, with labels of -100 ignored")
    value = unsloth_fused_ce_loss(
        trainer=None, hidden_states=hidden, lm_head_weight=head, lm_head_bias=options["bias"], labels=labels,
        n_items=options["normaliser"], shift_labels=options["shift"], logit_softcapping=options["softcap"] or 0,
    )  # fmt: skip
    return SimpleNamespace(value=value)


def trains_on() -> dict[str, Any]:
    """By option: what makes ids and labels of conversations."""
    from assay.audits.peers import _trained

    return {
        "default": _trained.by(vision),
        "train_on_responses_only": _trained.by(vision_responses),
        "train_on_responses_only, last_response_only": _trained.by(vision_last_response),
        "prompt and completion": _trained.by(vision_prompt_completion, _Split),
    }
