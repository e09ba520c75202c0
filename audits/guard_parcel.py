"""Brings many small tensors to the CPU at once: a GPU is waited for one time, however many there are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def fetch(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors on the CPU, with one transfer for each device that they lie on."""
    devices = dict.fromkeys(tensor.device for tensor in tensors.values())
    found: dict[str, Tensor] = {}
    for device in devices:
        own = {name: tensor for name, tensor in tensors.items() if tensor.device == device}
        found |= own if device.type == "cpu" else unpacked(packed(own).cpu(), own)
    return {name: found[name] for name in tensors}


def packed(tensors: Mapping[str, Tensor]) -> Tensor:
    """The memory of tensors of one device, one after the other: uint8 [bytes]."""
    return torch.cat([tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in tensors.values()])


def unpacked(octets: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`packed`, for tensors of these shapes and dtypes; their values are not looked at."""
    found, start = {}, 0
    for name, tensor in like.items():
        stop = start + tensor.numel() * tensor.element_size()
        # A copy of its own begins where any dtype may begin.
        found[name] = octets[start:stop].clone().view(tensor.dtype).reshape(tensor.shape)
        start = stop
    return found
