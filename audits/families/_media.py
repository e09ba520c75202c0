"""Synthetic images, videos and sounds of an exact size, from a seed."""

from __future__ import annotations

from typing import Any

import numpy as np

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def image(height: int, width: int, draw: np.random.Generator) -> Any:
    """A PIL image of ``height`` x ``width`` pixels of noise, so that no two patches are alike."""
    from PIL import Image

    return Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))


def video(frames: int, height: int, width: int, draw: np.random.Generator) -> Pixels:
    """Frames of noise, shape (frames, height, width, 3)."""
    return draw.integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def sound(samples: int, draw: np.random.Generator) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Noise between -0.5 and 0.5, shape (samples,)."""
    return draw.uniform(-0.5, 0.5, samples).astype(np.float32)
