"""What several packages lack on a CPU."""

from __future__ import annotations

import functools

LIBRARIES: list[object] = []
"""Kept for as long as the process lives: an operator goes with its library."""


@functools.cache
def torchvision() -> None:
    """Make the CUDA build of torchvision importable next to torch for a CPU: it cannot register what it asks for."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    LIBRARIES.append(library)
