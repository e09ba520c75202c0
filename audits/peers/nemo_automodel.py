"""NeMo Automodel: its losses, its packs for texts and images, and its collators."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from assay.audits import peer
from assay.audits.terms import Candidate, Inexpressible

HERE = "assay.audits.peers.nemo_automodel"
BATCHES = "assay.audits.peers._nemo_batches"
IGNORED = -100


def _candidates() -> Iterator[Candidate]:
    plain: dict[str, Any] = {
        "weighted": False, "softcap": None, "z_loss": 0.0, "label_smoothing": 0.0, "reduction": "mean",
    }  # fmt: skip
    yield peer.calls("masked_loss.cross_entropy", "masked-ce", f"{HERE}:masked_ce", form="assay", scope=plain)
    linear = {**plain, "biased": False}
    yield peer.calls("masked_loss.linear_cross_entropy", "chunked-ce", f"{HERE}:chunked_ce", form="assay", scope=linear)
    reason = "it calls cut-cross-entropy, whose kernels need a GPU"
    yield peer.unrunnable("masked_loss.linear_cross_entropy", "fused-linear-ce", reason)
    scope = {"rule": "text"}
    for name in ("neat-packing", "neat-packing-vlm"):
        ref = f"{HERE}:{name.replace('-', '_')}"
        yield peer.calls("packed_positions.pack", name, ref, form="collator", scope=scope)
    yield peer.calls("packed_positions.plan", "greedy-knapsack", f"{HERE}:greedy_knapsack", form="indices")
    for name in ("qwen2-5-collate", "default-collate", "neat-packed"):
        yield peer.batches(name, f"{BATCHES}:{name.replace('-', '_')}")
    for name, form in (("from-template", "mask"), ("from-text", "sample")):
        ref = f"{HERE}:labels_{name.replace('-', '_')}"
        yield peer.calls("label_mask.labels", f"labels-{name}", ref, form=form)


PEER = peer.Peer(
    name="nemo-automodel",
    source="https://github.com/NVIDIA-NeMo/Automodel",
    requirements=("nemo-automodel==0.7.0", "pillow", "triton==3.7.1"),
    candidates=_candidates,
    preload=("transformers", "nemo_automodel.components.datasets.vlm.collate_fns"),
)


def _plainly(options: Mapping[str, Any]) -> None:
    """Inexpressible where an option is asked for that these losses do not have."""
    for name in ("weight", "softcap", "bias"):
        if options.get(name) is not None:
            raise Inexpressible(f"no {name}")
    for name in ("label_smoothing", "z_loss"):
        if options.get(name):
            raise Inexpressible(f"no {name}")


def _targets(labels: Tensor, ignore_index: int, *, shift: bool) -> Tensor:
    """Automodel's labels are those of the next token already."""
    return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], ignore_index)], dim=1) if shift else labels


def _divisor(targets: Tensor, ignore_index: int, normaliser: float | None) -> int:
    if normaliser is not None and normaliser != int(normaliser):
        raise Inexpressible("whole tokens are counted")
    return int((targets != ignore_index).sum()) if normaliser is None else int(normaliser)


def masked_ce(
    logits: Tensor, labels: Tensor, *, shift: bool, ignore_index: int, normaliser: float | None = None, **options: Any
) -> Any:
    """The sum by the number of trained tokens, as the recipes call it."""
    from nemo_automodel.components.loss.masked_ce import MaskedCrossEntropy

    _plainly(options)
    targets = _targets(labels, ignore_index, shift=shift).contiguous()
    count = _divisor(targets, ignore_index, normaliser)
    loss = MaskedCrossEntropy(ignore_index=ignore_index)(logits, targets, num_label_tokens=count)
    return SimpleNamespace(value=loss)


def chunked_ce(
    hidden: Tensor, head: Tensor, labels: Tensor, *, shift: bool, ignore_index: int, normaliser: float | None = None,
    **options: Any,
) -> Any:  # fmt: skip
    """The same from hidden states, three tokens at a time."""
    from nemo_automodel.components.loss.chunked_ce import ChunkedCrossEntropy

    _plainly(options)
    targets = _targets(labels, ignore_index, shift=shift)
    count = _divisor(targets, ignore_index, normaliser)
    made = ChunkedCrossEntropy(chunk_len=3, compile=False, ignore_index=ignore_index)
    return SimpleNamespace(value=made(hidden, targets, head, num_label_tokens=count))


def _next(labels: Sequence[int]) -> list[int]:
    return [*labels[1:], IGNORED] if labels else []


def _bare(features: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Samples as the packers take them: each label is that of the next token. A pack is of labelled samples."""
    if any("labels" not in one for one in features):
        raise Inexpressible("samples without labels")
    return [
        {"input_ids": torch.tensor(one["input_ids"]), "labels": torch.tensor(_next(one["labels"]))} for one in features
    ]


def _row(made: Mapping[str, Any], features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The row under Hugging Face's names. Columns that the packers do not know are joined here."""
    row = {name: value for name, value in made.items() if isinstance(value, Tensor)}
    row = {name: value[None] if value.ndim == 1 else value for name, value in row.items()}
    weights = torch.tensor([value for one in features for value in one["weights"]])
    return {
        **{name: x for name, x in row.items() if name != "labels"},
        "shift_labels": row["labels"],
        "weights": weights,
    }


def neat_packing(features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Texts in one row; the mask numbers them."""
    from nemo_automodel.components.datasets.llm.neat_packing import _build_packed_sample

    samples = _bare(features)
    return _row(_build_packed_sample(samples, sum(len(one["input_ids"]) for one in samples), 0), features)


def neat_packing_vlm(features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The same by the packer for images, and its collator, which makes the mask of the model."""
    from nemo_automodel.components.datasets.vlm.collate_fns import neat_packed_vlm_collater
    from nemo_automodel.components.datasets.vlm.neat_packing_vlm import _build_packed_vlm_sample

    samples = _bare(features)
    made = _build_packed_vlm_sample(samples, sum(len(one["input_ids"]) for one in samples), 0)
    return _row(neat_packed_vlm_collater([made]), features)


def greedy_knapsack(lengths: Sequence[int], capacity: int) -> Any:
    """The plan of both packers. What is too long is left to the caller."""
    from nemo_automodel.components.datasets.llm.neat_packing import greedy_knapsack as function

    if any(length > capacity for length in lengths):
        raise Inexpressible("what is too long is left to the caller")
    return function(list(lengths), capacity)


def labels_from_template(input_ids: Tensor, tokenizer: Any) -> Tensor:
    """Labels by the markers of Qwen's template."""
    from nemo_automodel.components.datasets.vlm.collate_fns import build_labels_from_template

    named = type("Qwen2_5_VLProcessor", (), {"tokenizer": tokenizer})()
    made: Tensor = build_labels_from_template(input_ids[None], [[]], named)
    return made[0]


def labels_from_text(messages: Sequence[Mapping[str, Any]], processor: Any) -> dict[str, Any]:
    """Labels by a search for what the assistant said, which is the last resort."""
    from nemo_automodel.components.datasets.vlm.collate_fns import build_labels

    parts = [part for item in messages for part in item["content"] if not isinstance(item["content"], str)]
    images = [part["image"] for part in parts if part["type"] == "image"]
    text = processor.apply_chat_template(messages, tokenize=False)
    ids = processor(text=[text], return_tensors="pt", **({"images": images} if images else {}))["input_ids"]
    return {"input_ids": ids[0], "labels": build_labels(ids, [messages], processor)[0]}


def trains_on() -> dict[str, Any]:
    """By option: what makes ids and labels of conversations."""
    from assay.audits.peers import _nemo_batches, _trained

    return {
        "qwen2_5_collate_fn": _trained.by(_nemo_batches.qwen2_5_collate),
        "default_collate_fn": _trained.by(_nemo_batches.default_collate),
    }
