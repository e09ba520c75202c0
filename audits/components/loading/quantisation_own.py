"""Packed weights of our own, right as they are: four bits in halves of a byte, eight bits with a scale for each row."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

GROUP = 32
WIDTH, INNER, VOCABULARY = 64, 128, 96


class Net(nn.Module):
    """A tiny model of language: embeddings, two blocks with a router that is to stay as it is, a head."""

    def __init__(self) -> None:
        """Weights of torch's own initialisation."""
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm": nn.LayerNorm(WIDTH),
                    "up": nn.Linear(WIDTH, INNER),
                    "down": nn.Linear(INNER, WIDTH, bias=False),
                    "gate": nn.Linear(WIDTH, 1),
                }
            )
            for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.head

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        """Scores [B,S,V]."""
        hidden = self.embed(input_ids).to(self.blocks[0]["norm"].weight.dtype)  # type: ignore[index]
        for block in self.blocks:
            inner = block["norm"](hidden)  # type: ignore[index]
            gate = torch.sigmoid(block["gate"](inner))  # type: ignore[index]
            hidden = hidden + gate * block["down"](torch.relu(block["up"](inner)))  # type: ignore[index]
        return {"logits": self.head(hidden)}


def net() -> Net:
    """The original; torch's global generator is left as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net()


class Packed(nn.Module):
    """Weights in four bits, two in each byte, with a scale for each group of a row."""

    def __init__(self, layer: nn.Linear) -> None:
        """Round a layer to the nearest of fifteen even steps."""
        super().__init__()
        parts = layer.weight.detach().reshape(layer.out_features, -1, GROUP)
        scale = parts.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 7
        codes = ((parts / scale).round() + 8).to(torch.uint8).reshape(layer.out_features, -1)
        self.register_buffer("codes", codes[:, ::2] | (codes[:, 1::2] << 4))
        self.register_buffer("scale", scale[..., 0])
        self.bias = layer.bias

    def weight(self) -> Tensor:
        """[out, in] in float."""
        codes: Tensor = self.codes  # type: ignore[assignment]
        pairs = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(1).float() - 8
        scale: Tensor = self.scale  # type: ignore[assignment]
        return (pairs.reshape(len(pairs), -1, GROUP) * scale[..., None]).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """As a linear layer."""
        return nn.functional.linear(x, self.weight().to(x), self.bias)


class Bytes(nn.Module):
    """Weights in eight bits with a scale for each row."""

    def __init__(self, layer: nn.Linear) -> None:
        """Round a layer to the nearest of 255 even steps."""
        super().__init__()
        scale = layer.weight.detach().abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
        self.register_buffer("codes", (layer.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """As a linear layer."""
        codes, scale = self.codes, self.scale
        return nn.functional.linear(x, codes.to(x) * scale, self.bias)  # type: ignore[operator]


def quantised(kind: Callable[[nn.Linear], nn.Module], exclude: tuple[str, ...] = ("gate", "head")) -> Net:
    """The model with all its layers but the excluded of another kind."""
    made = copy.deepcopy(net())
    for owner in list(made.modules()):
        for name, layer in list(owner.named_children()):
            if isinstance(layer, nn.Linear) and name not in exclude:
                setattr(owner, name, kind(layer)) if not isinstance(owner, nn.ModuleDict) else owner.update(
                    {name: kind(layer)}
                )
    return made


def request(model: nn.Module, bits: int | Mapping[str, int] = 4, **more: Any) -> dict[str, Any]:
    """What make() returns: the model, its original, and what was asked for."""
    return {"model": model, "original": net(), "bits": bits, "group": GROUP, "exclude": ("gate",), **more}


def four_bits() -> dict[str, Any]:
    """Four bits in groups of 32; the router and the head stay."""
    return request(quantised(Packed))


def eight_bits() -> dict[str, Any]:
    """Eight bits with a scale for each row."""
    return request(quantised(Bytes), 8, group=0)
