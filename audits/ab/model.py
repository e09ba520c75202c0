"""A tiny model of a family whose image features cannot tell where in the image they come from."""

from __future__ import annotations

import hashlib
import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from assay.audits.ab.task import FEATURES
from assay.audits.families.discovery import loaded
from assay.audits.terms import Family

FAMILIES = ("qwen3_vl", "qwen2_5_vl", "qwen2_vl")
"""Families whose vision tower can be replaced here: ``model.model.visual``, called with pixels and grids."""


class PlaceBlind(nn.Module):
    """Stands in for a vision tower: one linear layer on each patch alone.

    A real tower has positions of its own (rotary, learned, windows), and its features could carry the place past the
    language model's positions. Through this one they cannot.
    """

    def __init__(self, width: int, merge: int, seed: int) -> None:
        """Weights [width, FEATURES] drawn from ``seed``; ``merge`` is what grids are divided by."""
        super().__init__()
        self.spatial_merge_size = merge
        draw = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(width, FEATURES, generator=draw) / math.sqrt(FEATURES))
        self.bias = nn.Parameter(torch.zeros(width))

    @property
    def dtype(self) -> torch.dtype:
        """What pixels are cast to before they come here."""
        return self.weight.dtype

    def forward(self, pixels: Tensor, grid_thw: Tensor | None = None, **_: Any) -> SimpleNamespace:
        """Features [P, width] of patches [P, FEATURES]; the grids are not looked at. No deepstack features."""
        del grid_thw
        return SimpleNamespace(
            pooler_output=nn.functional.linear(pixels, self.weight, self.bias), deepstack_features=[]
        )


def family_of(name: str) -> Family:
    """The family called ``name``. ValueError where its tower cannot be replaced."""
    if name not in FAMILIES:
        message = f"family {name!r}: expected one of {', '.join(FAMILIES)}, whose vision tower can be replaced"
        raise ValueError(message)
    return loaded(name)


def build(family: Family, seed: int) -> Any:
    """The family's tiny model with weights drawn from ``seed`` and a tower that is blind to place, in float32."""
    model = family.build(seed)
    config = model.config
    model.model.visual = PlaceBlind(config.text_config.hidden_size, config.vision_config.spatial_merge_size, seed)
    return model


def digest(model: nn.Module) -> str:
    """Twelve letters that two models share when all their parameters are equal, bit for bit."""
    found = hashlib.sha256()
    for name, value in sorted(model.named_parameters()):
        found.update(name.encode())
        found.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:12]


def steepest(model: Any) -> dict[str, float]:
    """By axis the largest angle, in radians, by which one step along it turns a lane of queries and keys.

    Asked of the rotary module itself, one axis at a time, so that it holds for every layout of sections.
    """
    rotary = model.model.language_model.rotary_emb
    angles = {}
    for number, axis in enumerate(("time", "height", "width")):
        ids = torch.zeros(3, 1, 1, dtype=torch.long)
        ids[number] = 1
        cos, sin = rotary(torch.zeros(1), ids)
        angles[axis] = float(torch.atan2(sin, cos).abs().max())
    return angles
