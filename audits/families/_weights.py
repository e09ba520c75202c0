"""Random weights under which every part of a tiny model matters."""

from __future__ import annotations

import math
from typing import Any

import torch


def randomise(model: Any, seed: int) -> Any:
    """Redraw all parameters in place from ``seed``, and return the model in float32 and eval mode.

    The initialisation of a new model is neutral: with weights of size 0.02 attention is nearly uniform and a wrong
    rotation changes almost nothing; biases of 0 and scales of 1 hide that they were dropped. Matrices get unit gain
    here, vectors get noise on top of what they are. Tied parameters are drawn once.
    """
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters(), key=lambda item: item[0]):
            noise = torch.randn(parameter.shape, generator=draw)
            if parameter.dim() < 2:
                parameter.add_(0.1 * noise)
            else:
                parameter.copy_(noise / math.sqrt(_fan_in(parameter)))
    return model.float().eval()


def _fan_in(parameter: Any) -> int:
    """Inputs per output: all dimensions but the first, except for stacks of expert matrices (the last)."""
    return int(parameter.shape[-1]) if parameter.dim() == 3 else math.prod(parameter.shape[1:])
