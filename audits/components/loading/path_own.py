"""Pairs of loading paths of our own that agree: saved and loaded, in a wrapper, with adapters."""

from __future__ import annotations

import copy
import functools
import math
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

FAMILY = "qwen2_5_vl"
RANK = 4
TARGETS = ("q_proj", "v_proj")


@functools.lru_cache(maxsize=1)
def _trained() -> Any:
    from assay.audits.families.discovery import loaded

    return loaded(FAMILY).build(0)


def model() -> Any:
    """A tiny trained model, a copy for each caller."""
    return copy.deepcopy(_trained())


@functools.lru_cache(maxsize=1)
def _processor() -> Any:
    from assay.audits.components.pipeline.own import processor as made

    found = copy.copy(made(FAMILY))
    found.tokenizer = copy.deepcopy(found.tokenizer)
    found.image_processor = copy.deepcopy(found.image_processor)
    found.image_processor.do_resize = True
    return found


def processor() -> Any:
    """The family's processor, which resizes; tokenizer and image processor are each caller's own."""
    found = copy.copy(_processor())
    found.tokenizer = copy.deepcopy(found.tokenizer)
    found.image_processor = copy.deepcopy(found.image_processor)
    return found


def plain() -> tuple[Any, Any]:
    """The model and its processor, for training or inference."""
    return model(), processor()


def padded_left() -> tuple[Any, Any]:
    """As :func:`plain`, with padding on the left, as generation needs it."""
    made, words = plain()
    words.tokenizer.padding_side = "left"
    return made, words


def saved() -> dict[str, Any]:
    """What was trained is saved, and inference loads it with padding on the left."""

    def inference() -> tuple[Any, Any]:
        source = _trained()
        with tempfile.TemporaryDirectory() as folder:
            source.save_pretrained(folder)
            found = type(source).from_pretrained(folder)
        return found, padded_left()[1]

    return {"training": plain, "inference": inference}


class Detector(nn.Module):
    """A model with a head for boxes that only training uses."""

    def __init__(self, inner: Any) -> None:
        """Around a model."""
        super().__init__()
        self.base = inner
        self.detection_head = nn.Linear(inner.config.get_text_config().hidden_size, 4)

    def forward(self, input_ids: Tensor, **more: Any) -> dict[str, Any]:
        """The model's scores; boxes of the last token."""
        out = self.base(input_ids, output_hidden_states=True, **more)
        return {"logits": out.logits, "boxes": self.detection_head(out.hidden_states[-1][:, -1])}


def wrapped() -> dict[str, Any]:
    """Training wraps the model with a head that it declares."""

    def training() -> tuple[Any, Any]:
        made, words = plain()
        return Detector(made), words

    return {"training": training, "inference": padded_left, "declared": ("detection_head",)}


class Adapter(nn.Module):
    """A linear layer plus a product of two thin ones."""

    def __init__(self, base: nn.Linear, draw: torch.Generator) -> None:
        """Around a layer, with an update that is not zero."""
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.Parameter(torch.randn(RANK, base.in_features, generator=draw) / math.sqrt(base.in_features))
        self.lora_B = nn.Parameter(0.1 * torch.randn(base.out_features, RANK, generator=draw))

    def forward(self, x: Tensor) -> Tensor:
        """As trained: the base and the update apart."""
        out: Tensor = self.base_layer(x) + x @ self.lora_A.T @ self.lora_B.T
        return out

    def merged(self) -> nn.Linear:
        """The layer with the update added."""
        with torch.no_grad():
            self.base_layer.weight += self.lora_B @ self.lora_A
        return self.base_layer


class Adapted(nn.Module):
    """A model with adapters in its projections, to be merged as the models of PEFT are."""

    def __init__(self, inner: Any) -> None:
        """Adapt the model in place."""
        super().__init__()
        self.base_model = inner
        draw = torch.Generator().manual_seed(1)
        for owner, name, layer in list(_layers(inner)):
            setattr(owner, name, Adapter(layer, draw))

    @property
    def config(self) -> Any:
        """That of the model within."""
        return self.base_model.config

    def get_input_embeddings(self) -> Any:
        """Those of the model within."""
        return self.base_model.get_input_embeddings()

    def forward(self, **given: Any) -> Any:
        """That of the model within."""
        return self.base_model(**given)

    def merge_and_unload(self) -> Any:
        """The plain model with all updates added."""
        for owner, name, layer in list(_layers(self.base_model, Adapter)):
            setattr(owner, name, layer.merged())
        return self.base_model


def _layers(inner: nn.Module, kind: type[nn.Module] = nn.Linear) -> list[tuple[nn.Module, str, Any]]:
    """Projections of the language model of one kind, each with its owner and its name there."""
    return [
        (owner, name, layer)
        for path, owner in inner.named_modules()
        if "language_model" in path
        for name, layer in owner.named_children()
        if name in TARGETS and isinstance(layer, kind)
    ]


def adapted() -> dict[str, Any]:
    """Training has adapters apart, inference has them merged."""

    def training() -> tuple[Any, Any]:
        made, words = plain()
        return Adapted(made), words

    def inference() -> tuple[Any, Any]:
        return Adapted(model()).merge_and_unload(), padded_left()[1]

    return {"training": training, "inference": inference}


def against(change: Callable[[Any, Any], Any], *, before: Callable[[], tuple[Any, Any]] = plain) -> dict[str, Any]:
    """A pair of which inference changes its model or its processor; what the change returns takes the model's place."""

    def inference() -> tuple[Any, Any]:
        made, words = padded_left()
        return change(made, words) or made, words

    return {"training": before, "inference": inference}
