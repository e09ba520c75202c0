"""Stands in for a family's video processor, so that videos work without torchvision.

Every video processor of transformers imports torchvision, which does no more here than normalise frames: nothing is
resized or sampled. This one returns the same grids, the same metadata and the same order of patches; the family's own
processor still writes the text, the timestamps and the token types. ``tests/test_families_build.py`` compares it with
the real ones where torchvision loads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Scaling = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation that pixels between 0 and 1 are normalised with, for each channel."""

CLIP: Scaling = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF: Scaling = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass
class FrameProcessor:
    """Turns videos of exact size, shape (frames, height, width, 3) in 0..255, into flat patches and their grids."""

    patch_size: int
    merge_size: int
    temporal_patch_size: int
    frames_per_step: int
    scaling: Scaling = CLIP
    channels_last: bool = False
    fps: float = 2.0
    model_input_names: tuple[str, ...] = ("pixel_values_videos", "video_grid_thw")

    def __call__(
        self,
        videos: Any,
        video_metadata: Any = None,
        return_metadata: bool = False,  # noqa: FBT001, FBT002 - the signature of transformers
        **_settings: Any,
    ) -> dict[str, Any]:
        """``pixel_values_videos`` (patches, values), ``video_grid_thw`` (videos, 3), and the metadata if asked for."""
        import torch
        from transformers.video_utils import VideoMetadata

        parts = [self._patches(video) for video in videos]
        metadata = [VideoMetadata(**dict(entry)) for entry in video_metadata or ()]
        return {
            **({"video_metadata": metadata} if return_metadata else {}),
            "pixel_values_videos": torch.from_numpy(np.concatenate([patches for patches, _ in parts])),
            "video_grid_thw": torch.tensor([grid for _, grid in parts]),
        }

    def _patches(self, video: Any) -> tuple[Any, tuple[int, int, int]]:
        """Order: time, block row, block column, row in block, column in block; then the values of a patch."""
        frames, height, width, channels = video.shape
        patch, merge, step = self.patch_size, self.merge_size, self.frames_per_step
        grid = (frames // step, height // patch, width // patch)
        mean, deviation = (np.array(part, dtype=np.float32) for part in self.scaling)
        values = (video.astype(np.float32) / np.float32(255) - mean) / deviation
        split = values.reshape(grid[0], step, grid[1] // merge, merge, patch, grid[2] // merge, merge, patch, channels)
        inside = (1, 4, 7, 8) if self.channels_last else (8, 1, 4, 7)
        ordered = split.transpose(0, 2, 5, 3, 6, *inside)
        return ordered.reshape(grid[0] * grid[1] * grid[2], channels * step * patch * patch), grid
