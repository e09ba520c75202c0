"""What an image processor does: its settings, and its answers to pictures of one colour in many sizes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from assay.audits.components.loading.configuration import plain
from assay.audits.components.loading.words import attempt

_NAMES = ("image_processor_type", "processor_class", "feature_extractor_type", "video_processor_type", "auto_map",
          "_processor_class", "device", "return_tensors", "disable_grouping", "data_format", "input_data_format",
          "backend", "return_metadata")  # fmt: skip
"""Entries that name a class or say where and as what pixels are returned."""
SIZES = ((64, 64), (48, 96), (96, 48), (8, 40), (200, 24), (448, 336))
"""Widths and heights: square, wide, tall, small, of an extreme ratio, ordinary."""
COLOUR = (200, 90, 30)
"""Of one colour, so that interpolation plays no part; of unlike channels, so that their order does."""


def settings(processor: Any) -> dict[str, Any]:
    """The settings of an image or video processor, without names; limits of pixels by one name each."""
    told = processor.to_dict() if callable(getattr(processor, "to_dict", None)) else {}
    found = {str(name): plain(_mapping(value)) for name, value in told.items() if name not in _NAMES}
    found = {name: value for name, value in found.items() if value is not None}
    size = found.get("size")
    limits = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
    for name, edge in limits.items():
        if isinstance(size, Mapping) and (name in found or hasattr(processor, name)) and size.get(edge) is not None:
            found.pop(name, None)
    return found


def _mapping(value: Any) -> Any:
    if isinstance(value, Mapping) or not hasattr(value, "items"):
        return value
    return dict(value.items())


def answers(processor: Any) -> dict[str, Any]:
    """For each probe the shapes of what it becomes, the grids, and the mean of each output."""
    from PIL import Image

    found: dict[str, Any] = {}
    for size in SIZES:
        picture = Image.new("RGB", size, COLOUR)
        made = attempt(partial(_made, processor, picture))
        label = f"a picture of {size[0]} x {size[1]}"
        if not isinstance(made, Mapping):
            found[label] = made
            continue
        for name, value in made.items():
            found[f"{label}: {name}"] = _told(value)
    return found


def _made(processor: Any, picture: Any) -> dict[str, Any]:
    return dict(processor(images=[picture], return_tensors="pt"))


def _told(value: Any) -> Any:
    """Shape and four digits of the mean and the spread of pixels; whole numbers as they are."""
    tensor = value if isinstance(value, torch.Tensor) else attempt(lambda: torch.as_tensor(value))
    if not isinstance(tensor, torch.Tensor):
        return str(type(value).__name__)
    if not tensor.is_floating_point():
        return tensor.tolist() if tensor.numel() <= 64 else list(tensor.shape)
    wide = tensor.double()
    return [list(tensor.shape), [f"{number:.4g}" for number in (float(wide.mean()), float(wide.std()))]]
