"""Rotary embedding of vision towers: where each patch is, and which coordinate turns which lane at what speed.

Letters: A coordinates of a patch (row, column, or with time in front), P patches of all images one after another,
H heads, D channels of a head, R rotated channels, R/2 lanes. Unlike the language model's, the lanes of each coordinate
have a geometric series of their own, so a layout fixes owner, speed and pairing together (`VisionLanes`). The
arithmetic is that of `reference/mrope.py`, which the functions here call with a batch of one.

Sources: Qwen2-VL (arXiv 2409.12191, section 2.1) for `hwhw`; Pixtral 12B (2410.07073) for `pixtral`; Kimi-VL
(2504.07491) for `wh_lanes`; SAM 2 (2408.00714) for `pairs`; the others are named after the models they come from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from assay.reference import mrope
from assay.reference.rope_frequencies import inverse_frequencies

__all__ = [
    "VISION_LAYOUTS",
    "VISION_TOWERS",
    "VisionLanes",
    "VisionTower",
    "patch_coordinates",
    "rotate_patches",
    "vision_lanes",
    "vision_tables",
]


@dataclass(frozen=True)
class VisionLanes:
    """One tower's lanes.

    Attributes:
        inv_freq: [R/2] radians per unit of the coordinate.
        axes: [R/2] int64, the coordinate that owns each lane.
        pairing: which two channels a lane turns, a name from `mrope.PAIRINGS`.
    """

    inv_freq: torch.Tensor
    axes: torch.Tensor
    pairing: str


@dataclass(frozen=True, kw_only=True)
class VisionTower:
    """What one family's tower does.

    Attributes:
        layout: a name from `VISION_LAYOUTS`.
        merged: patches come in blocks of spatial_merge x spatial_merge, block after block; else row after row.
        coordinates: what the family feeds as coordinate 0, 1, ...
        first: number of the first row and column (1 where 0 belongs to a class token).
    """

    layout: str = "hwhw"
    merged: bool = True
    coordinates: tuple[str, ...] = ("row", "column")
    first: int = 0


VISION_LAYOUTS: Mapping[str, str] = MappingProxyType(
    {
        "hwhw": "half pairing; the first half of the lanes belongs to coordinate 0, the second to coordinate 1",
        "whwh": "half pairing; the first half of the lanes belongs to coordinate 1, the second to coordinate 0",
        "wh_lanes": "half pairing; lanes alternate between coordinates 1 and 0, two by two at the same speed",
        "pixtral": "half pairing; one series over all lanes, its even terms for coordinate 0, the odd ones for 1",
        "hhww": "either half of the channels is rotated on its own, the first by coordinate 0, the second by 1",
        "pairs": "adjacent pairing; the first half of the lanes belongs to coordinate 0, the second to coordinate 1",
        "pairs_wh": "adjacent pairing; the first half of the lanes belongs to coordinate 1, the second to coordinate 0",
        "thwthw": "half pairing; a third of the lanes for each of three coordinates; a rest below 6 channels stays put",
    }
)
"""Each layout in words. In Hugging Face's full-width tables `hwhw` reads [h, w, h, w] and `hhww` [h, h, w, w]."""

_MERGED = VisionTower()
_RASTER = VisionTower(merged=False)
_SAM = VisionTower(layout="pairs", merged=False, coordinates=("column", "row"))

VISION_TOWERS: Mapping[str, VisionTower] = MappingProxyType(
    dict.fromkeys(
        (
            *("qwen2_vl", "qwen2_5_vl", "qwen2_5_omni", "qwen3_vl", "qwen3_vl_moe", "qwen3_omni_moe", "qwen3_5"),
            *("qwen3_5_moe", "qwen4_exp", "glm4v", "glm4v_moe", "glm_ocr", "glm5_next", "ernie4_5_vl_moe", "exaone4_5"),
            *("cohere_compass", "dots3_note", "lfm3_vl", "muse_glimmer", "muse_spark", "video_llama_3"),
        ),
        _MERGED,
    )
    | {
        "paddleocr_vl": _RASTER,
        "mlcd": _RASTER,
        "pixtral": VisionTower(layout="pixtral", merged=False),
        "gemma4": VisionTower(layout="hhww", merged=False, coordinates=("column", "row")),
        "kimi_k25": VisionTower(layout="wh_lanes", merged=False),
        "step3p7": VisionTower(layout="whwh", merged=False),
        "inkling2": VisionTower(layout="pairs_wh", first=1),
        "minimax_m3_vl": VisionTower(layout="thwthw", coordinates=("time", "row", "column")),
        "sam2_video": _SAM,
        "sam3": _SAM,
        "sam3_tracker_video": _SAM,
        "edgetam_video": _SAM,
    }
)
"""The tower of each model family of transformers 5.23.0 that has a rotary one, by its `model_type`.

SAM 3 multiplies its coordinates by window / grid before they turn anything: give `vision_tables` float64 coordinates.
"""


def vision_lanes(
    layout: str, head_dim: int, *, base: float = 10000.0, dtype: torch.dtype = torch.float64
) -> VisionLanes:
    """Owner, speed and pairing of each lane of a head of `head_dim` channels.

    Args:
        layout: a key of `VISION_LAYOUTS`.
        head_dim: D, a multiple of 4; for `thwthw` any even number of at least 6.
        base: of the geometric series.
        dtype: of `inv_freq`.
    """
    if layout not in VISION_LAYOUTS:
        raise ValueError(f"layout: expected one of {sorted(VISION_LAYOUTS)}, got {layout!r}")
    axes = 3 if layout == "thwthw" else 2
    if isinstance(head_dim, bool) or not isinstance(head_dim, int):
        raise TypeError(f"head_dim: expected an int, got {type(head_dim).__name__}")
    if head_dim < 2 * axes or head_dim % (2 if axes == 3 else 4):
        expected = "an even number of at least 6" if axes == 3 else "a positive multiple of 4"
        raise ValueError(f"head_dim: expected {expected} for {layout}, got {head_dim}")
    share = head_dim // (2 * axes)
    if layout == "pixtral":
        whole, _ = inverse_frequencies(head_dim, base=base, dtype=dtype)
        return VisionLanes(torch.cat([whole[0::2], whole[1::2]]), _runs(0, 1, lanes=share), "half")
    series, _ = inverse_frequencies(2 * share, base=base, dtype=dtype)
    if layout == "wh_lanes":
        return VisionLanes(series.repeat_interleave(2), torch.tensor([1, 0]).repeat(share), "half")
    order = {"whwh": (1, 0), "pairs_wh": (1, 0), "thwthw": (0, 1, 2)}.get(layout, (0, 1))
    pairing = {"pairs": "adjacent", "pairs_wh": "adjacent", "hhww": "half_per_axis"}.get(layout, "half")
    return VisionLanes(series.repeat(axes), _runs(*order, lanes=share), pairing)


def patch_coordinates(
    grids: torch.Tensor,
    *,
    merge: int = 1,
    coordinates: tuple[str, ...] = ("row", "column"),
    first: int = 0,
) -> torch.Tensor:
    """Coordinates [A, P] int64 of all patches, in the order in which the tower sees them.

    Frame after frame; within a frame blocks of `merge` x `merge` patches from left to right and top to bottom, and the
    same within a block. With `merge=1` that is row after row.

    Args:
        grids: [N, 3] integers, (frames, rows, columns) of patches; rows and columns are multiples of `merge`.
        merge: side of a block.
        coordinates: which ones, in which order: a selection of "time", "row", "column".
        first: added to rows and columns.
    """
    known = {"time": 0, "row": 1, "column": 2}
    if not coordinates or not set(coordinates) <= known.keys():
        raise ValueError(f"coordinates: expected names out of {sorted(known)}, got {coordinates}")
    if not isinstance(grids, torch.Tensor) or grids.is_floating_point() or grids.dtype == torch.bool:
        raise TypeError("grids: expected a tensor of an integer dtype")
    if grids.ndim != 2 or grids.shape[1] != 3:
        raise ValueError(f"grids: expected the shape [grids, 3], got {tuple(grids.shape)}")
    parts = [torch.zeros(3, 0, dtype=torch.int64)]
    for i, (t, h, w) in enumerate(grids.tolist()):
        if min(t, h, w, merge) < 1 or h % merge or w % merge:
            raise ValueError(f"grids[{i}]: expected positive sizes, sides multiples of {merge}, got {(t, h, w)}")
        parts.append(_places(t, h, w, merge))
    places = torch.cat(parts, dim=1)
    places[1:] += first
    return places[[known[name] for name in coordinates]].to(grids.device)


def vision_tables(
    coordinates: torch.Tensor, lanes: VisionLanes, *, dtype: torch.dtype | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine [P, R/2] of every lane's angle at every patch; `coordinates` [A, P] as for `mrope.tables`."""
    if coordinates.ndim != 2:
        raise ValueError(f"coordinates: expected the shape [axes, patches], got {tuple(coordinates.shape)}")
    inv_freq = lanes.inv_freq.to(coordinates.device)
    cos, sin = mrope.tables(coordinates[:, None], inv_freq, lanes.axes, dtype=dtype)
    return cos[0], sin[0]


def rotate_patches(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, pairing: str) -> torch.Tensor:
    """Turn every lane of `x` [P, H, D] by its angle; `cos` and `sin` [P, R/2] in the dtype of `x`."""
    if x.ndim != 3:
        raise ValueError(f"x: expected the shape [patches, heads, channels], got {tuple(x.shape)}")
    return mrope.rotate(x.transpose(0, 1)[None], cos[None], sin[None], pairing=pairing)[0].transpose(0, 1)


def _runs(*owners: int, lanes: int) -> torch.Tensor:
    return torch.tensor(owners).repeat_interleave(lanes)


def _places(frames: int, rows: int, columns: int, merge: int) -> torch.Tensor:
    """(time, row, column) [3, P] of one grid, decoded from the running number of the patch."""
    patch = torch.arange(frames * rows * columns)
    inside, block = patch % merge**2, patch // merge**2
    across, down = columns // merge, rows // merge
    row = block // across % down * merge + inside // merge
    column = block % across * merge + inside % merge
    return torch.stack([patch // (rows * columns), row, column])
