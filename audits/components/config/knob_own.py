"""A transformer block of our own, every setting of which does something: some by themselves, some with another one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": nn.functional.gelu, "relu": torch.relu}
TOKENS, WIDTH, VOCABULARY = 12, 16, 32


class Block(nn.Module):
    """Embeddings, one attention with a rotary embedding, a feed-forward layer, a head."""

    def __init__(  # noqa: PLR0913 - each is a knob
        self, *, heads: int = 2, theta: float = 100.0, window: int = 0, use_window: bool = False, dropout: float = 0.0,
        layer_scale: float = 0.0, act: str = "gelu", softcap: float = 0.0, eps: float = 1e-6, tied: bool = False,
        init_std: float = 0.02, positions: int = 16,
    ) -> None:  # fmt: skip
        """Settings as their names say; a window counts where ``use_window`` is set."""
        super().__init__()
        self.heads, self.theta, self.softcap = heads, theta, softcap
        self.window = window if use_window else 0
        self.act = ACTIVATIONS[act]
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.places = nn.Embedding(positions, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=eps)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.gamma = nn.Parameter(torch.full((WIDTH,), layer_scale)) if layer_scale else None
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=init_std)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Scores [B,S,V]."""
        hidden = self.embed(ids) + self.places(torch.arange(ids.shape[1]))
        hidden = hidden + self.scaled(self.dropout(self.attended(self.norm(hidden))))
        hidden = hidden + self.scaled(self.dropout(self.down(self.act(self.up(self.norm(hidden))))))
        return self.capped(self.head(hidden))

    def scaled(self, x: Tensor) -> Tensor:
        """A branch, with its scale where there is one."""
        return x if self.gamma is None else x * self.gamma

    def capped(self, scores: Tensor) -> Tensor:
        """Scores within the cap, where there is one."""
        return self.softcap * torch.tanh(scores / self.softcap) if self.softcap else scores

    def attended(self, x: Tensor) -> Tensor:
        """Causal attention, within the window where there is one."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        q, k = self.turned(q), self.turned(k)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=self.mask(x.shape[1]))
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out

    def mask(self, length: int) -> Tensor:
        """[S,S]: who sees whom."""
        back = torch.arange(length)[:, None] - torch.arange(length)[None]
        return (back >= 0) & (back < (self.window or length))

    def turned(self, x: Tensor) -> Tensor:
        """Rotated by its place."""
        half = x.shape[-1] // 2
        angles = torch.arange(x.shape[2])[:, None] * self.theta ** -(torch.arange(half) / half)
        first, second = x[..., :half], x[..., half:]
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


SETTINGS: dict[str, tuple[Any, Any]] = {
    "heads": (2, 4), "theta": (100.0, 10_000.0), "window": (4, 3), "use_window": (False, True), "dropout": (0.0, 0.5),
    "layer_scale": (0.0, 0.1), "act": ("gelu", "relu"), "softcap": (0.0, 2.0), "eps": (1e-6, 1e-2),
    "tied": (False, True), "init_std": (0.02, 0.05), "positions": (16, 24),
}  # fmt: skip


def made(build: Callable[..., Any] = Block, **more: Any) -> dict[str, Any]:
    """What make() returns: the block, its settings and a batch."""
    ids = torch.randint(VOCABULARY, (2, TOKENS), generator=torch.Generator().manual_seed(0))
    return {"build": build, "settings": SETTINGS, "batch": (ids,), **more}


def block() -> dict[str, Any]:
    """The block with all its settings."""
    return made()
