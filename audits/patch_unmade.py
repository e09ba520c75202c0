"""Logits that nobody has made: the hidden states that a head was given, and what was done to its answer since.

A model's forward asks its head for logits, may scale and bound them, and hands them to its loss. A fused loss needs the
hidden states and those numbers. So the head hands on an object that stands for the logits and writes down what it is
multiplied by, divided by and bounded with; anything else that is done to it is an error that says what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

Number = float
"""What the class calls it: one of its methods is ``float``, as of a tensor."""


@dataclass(frozen=True, eq=False)
class Unmade:
    """``outer * tanh(scale * logits)``, or ``scale * logits`` where nothing bounds them; logits are ``head(hidden)``.

    ``hidden`` [...,H]; ``head`` is the linear layer; ``name`` is what errors call the model.
    """

    hidden: Tensor
    head: nn.Linear
    name: str
    scale: Number = 1.0
    bounded: bool = False
    outer: Number = 1.0

    @property
    def factor(self) -> Number:
        """What the head's answer is multiplied by before it is bounded."""
        return self.scale * self.outer if self.bounded else self.scale

    @property
    def softcap(self) -> Number | None:
        """The bound of ``softcap * tanh(factor * logits / softcap)``; None where there is none."""
        return self.outer if self.bounded else None

    @property
    def shape(self) -> torch.Size:
        """The shape that the logits would have."""
        return torch.Size((*self.hidden.shape[:-1], len(self.head.weight)))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the logits would have."""
        return self.hidden.dtype

    @property
    def device(self) -> torch.device:
        """Where the logits would be."""
        return self.hidden.device

    def size(self, dim: int | None = None) -> Any:
        """As of a tensor."""
        return self.shape if dim is None else self.shape[dim]

    def tanh(self) -> Unmade:
        """Bounded once; what it is multiplied by from now on is the bound."""
        if self.bounded:
            self._refuse("a second tanh")
        return replace(self, bounded=True)

    def float(self) -> Unmade:
        """The same: the loss is computed in float32 whatever the logits are."""
        return self

    def to(self, *args: Any, **kwargs: Any) -> Unmade:
        """The same, in another dtype or on the same device."""
        for wanted in (*args, *kwargs.values()):
            if isinstance(wanted, torch.device | str) and torch.device(wanted).type != self.device.type:
                self._refuse(f".to({wanted!r})")
        return self

    def contiguous(self) -> Unmade:
        """The same."""
        return self

    def __mul__(self, other: Any) -> Unmade:
        return self._scaled(other, "*", lambda own, by: own * by)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Unmade:
        return self._scaled(other, "/", lambda own, by: own / by)

    def _scaled(self, other: Any, sign: str, change: Callable[[Number, Number], Number]) -> Unmade:
        if isinstance(other, bool) or not isinstance(other, int | Number):
            self._refuse(f"{sign} a {type(other).__name__}")
        if self.bounded:
            return replace(self, outer=change(self.outer, other))
        return replace(self, scale=change(self.scale, other))

    @classmethod
    def __torch_function__(
        cls, function: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """What torch's own functions do to it, of which some are known."""
        known = {torch.tanh: "tanh", torch.mul: "__mul__", torch.div: "__truediv__", torch.true_divide: "__truediv__"}
        mine = next((item for item in args if isinstance(item, cls)), None)
        name = getattr(function, "__name__", repr(function))
        if mine is None or args[0] is not mine or function not in known or kwargs:
            own = next((item for item in (*args, *(kwargs or {}).values()) if isinstance(item, cls)), None)
            assert own is not None
            own._refuse(f"torch's {name}")  # noqa: SLF001 - of the same class
        return getattr(mine, known[function])(*args[1:])

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(self._told(f".{name}"))

    def __getitem__(self, _place: Any) -> NoReturn:
        self._refuse("an index")

    def __setitem__(self, _place: Any, _value: Any) -> NoReturn:
        self._refuse("an assignment to a part")

    def __add__(self, _other: Any) -> NoReturn:
        self._refuse("+")

    __radd__ = __sub__ = __rsub__ = __add__

    def _refuse(self, what: str) -> NoReturn:
        raise TypeError(self._told(what))

    def _told(self, what: str) -> str:
        return (
            f"{self.name}: its forward applies {what} to its logits before its loss, which a loss without stored "
            "logits does not know; run this model without masked_loss"
        )
