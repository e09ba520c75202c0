"""A configuration of our own that agrees with its data."""

from __future__ import annotations

from typing import Any

SAMPLES = (
    {"caption": "a boat", "objects": [{"box": [1, 2, 3, 4], "label": "boat"}], "masks": []},
    {"caption": "nothing", "objects": [], "masks": []},
    {"caption": "", "objects": [{"box": [0, 0, 9, 9], "label": "sky"}]},
)
"""Some samples hold nothing for a task that is on: that is ordinary."""
SWITCHES = {
    "tasks.caption.weight": "caption",
    "tasks.detection_enabled": "objects",
    "tasks.segmentation_enabled": "masks",
}


def config(**tasks: Any) -> dict[str, Any]:
    """Captions with a weight, boxes on, masks off; ``tasks`` are other values."""
    usual = {"caption": {"weight": 1.0}, "detection_enabled": True, "segmentation_enabled": False}
    return {"tasks": {**usual, **tasks}}


def three_tasks() -> dict[str, Any]:
    """The configuration, the samples, and which switch belongs to which field."""
    return {"config": config(), "samples": list(SAMPLES), "switches": SWITCHES}
