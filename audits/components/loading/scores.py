"""The scores that two loaded models give to the same batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from assay.audits.components.loading.made import Path
from assay.audits.components.loading.words import attempt
from assay.audits.terms import Inexpressible

PADDED = (17, 9, 1)
"""Tokens of the rows of a padded batch: one of them is a single token."""
LENGTH = 24


def batch(kind: str, training: Path, inference: Path, seed: int) -> dict[str, Any]:
    """A batch for both models. Inexpressible where none of this kind can be made."""
    if kind == "picture":
        return _seen(training)
    draw = torch.Generator().manual_seed(seed)
    ids = _ordinary(training, inference)
    lengths = PADDED if kind == "padded" else (LENGTH, LENGTH)
    rows = torch.tensor(ids)[torch.randint(len(ids), (len(lengths), max(lengths)), generator=draw)]
    mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": torch.where(mask.bool(), rows, ids[0]), "attention_mask": mask}


def _ordinary(training: Path, inference: Path) -> list[int]:
    """Ids that both models have and no tokenizer calls special."""
    sizes = [size for path in (training, inference) if (size := _vocabulary(path.model))]
    if not sizes:
        raise Inexpressible("the models have no input embeddings to take ids from: hand over a batch")
    special = {item for path in (training, inference) for item in getattr(path.tokenizer, "all_special_ids", [])}
    special |= {item for path in (training, inference) for item in _placeholders(path.model)}
    return [number for number in range(min(sizes)) if number not in special][: 1 << 14] or [0]


def _placeholders(model: nn.Module) -> list[int]:
    told = attempt(getattr(getattr(model, "config", None), "to_dict", dict))
    named = told.items() if isinstance(told, Mapping) else ()
    return [value for name, value in named if str(name).endswith(("_token_id", "_token_index")) and type(value) is int]


def _vocabulary(model: nn.Module) -> int:
    embedding = attempt(getattr(model, "get_input_embeddings", dict))
    if not isinstance(embedding, nn.Module):
        embedding = next((module for module in model.modules() if isinstance(module, nn.Embedding)), None)
    weight = getattr(embedding, "weight", None)
    return int(weight.shape[0]) if isinstance(weight, Tensor) and weight.ndim == 2 else 0


def _seen(path: Path) -> dict[str, Any]:
    """A picture and a question, by the processor of the training path."""
    from PIL import Image

    token = getattr(path.processor, "image_token", None)
    if path.image_processor is None or not isinstance(token, str):
        raise Inexpressible("the training path has no processor with an image token")
    draw = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (48, 64, 3), generator=draw, dtype=torch.uint8)
    picture = Image.fromarray(pixels.numpy())
    before, after = _around(path.processor)
    text = f"{before}{token}{after} what is this?"
    made = attempt(lambda: dict(path.processor(text=[text], images=[picture], return_tensors="pt")))
    if not isinstance(made, dict):
        raise Inexpressible(f"the processor {made} for a text with one picture")
    return made


def _around(processor: Any) -> tuple[str, str]:
    tokenizer = getattr(processor, "tokenizer", processor)
    known = set(attempt(tokenizer.get_vocab)) if hasattr(tokenizer, "get_vocab") else set()
    marks = ("<|vision_start|>", "<|vision_end|>")
    return marks if known.issuperset(marks) else ("", "")


def logits(path: Path, inner: nn.Module, made: Mapping[str, Any]) -> Tensor:
    """The scores of a path's model in float64 and eval mode; of the model within its wrapper where it gives none."""
    if path.logits is not None:
        path.model.eval()
        return torch.as_tensor(path.logits(path.model, dict(made))).double()
    first: Exception | None = None
    for module in dict.fromkeys((path.model, inner)):
        try:
            found = _scores(_run(module, made))
        except Exception as error:  # noqa: BLE001 - a wrapper may take other arguments than a batch of text
            first = first or error
            continue
        if found is not None:
            return found
    if first is not None:
        raise first
    raise Inexpressible("the model's output has no logits: hand over a function `logits` of the model and a batch")


def _run(module: nn.Module, made: Mapping[str, Any]) -> Any:
    module.eval()
    taken = inspect.signature(module.forward).parameters
    every = any(item.kind is item.VAR_KEYWORD for item in taken.values())
    given = {name: _wide(value, module) for name, value in made.items() if every or name in taken}
    call: Callable[..., Any] = module
    with torch.no_grad():
        return call(**given) if given else call(made["input_ids"])


def _wide(value: Any, module: nn.Module) -> Any:
    if not isinstance(value, Tensor):
        return value
    first = next(iter(module.parameters()), value)
    return value.to(first.device, first.dtype if value.is_floating_point() else value.dtype)


def _scores(out: Any) -> Tensor | None:
    if isinstance(out, Tensor):
        return out.double()
    for name in ("logits", "last_hidden_state"):
        found = out.get(name) if isinstance(out, Mapping) else getattr(out, name, None)
        if isinstance(found, Tensor):
            return found.double()
    if isinstance(out, tuple) and out and isinstance(out[0], Tensor) and out[0].is_floating_point():
        return out[0].double()
    return None
