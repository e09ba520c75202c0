"""The nouns of a comparison: what is asked (shapes, problems), who answers (providers), what came of it (rows)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Mode = Literal["forward", "backward", "both"]
MODES: tuple[Mode, ...] = ("forward", "backward", "both")
Tensors = Mapping[str, Tensor]
Call = Callable[[Tensors], tuple[Tensor, ...]]
"""From the tensors of a problem to its outputs, in the order of ``Problem.outputs``."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One shape that an operation is asked in. ``masked`` is the share of labels that are not scored.

    ``settings`` are the operation's own: heads, widths, sections. ``upstream``: the gradient that the backward pass
    begins with, for a loss; rotations begin with random numbers.
    """

    model: str
    tokens: int
    settings: Mapping[str, Any]
    layout: str = ""
    masked: float = 0.0
    mask: Literal["spans", "random"] = "spans"
    values: Literal["random", "peaked"] = "random"
    upstream: float = 1.0

    @property
    def label(self) -> str:
        """The shape in a few words."""
        share = "" if not self.masked else f", {self.masked:.0%} masked{'' if self.mask == 'spans' else ' at random'}"
        more = "".join(
            f", {word}" for word in (self.layout, self.values) if word and word != "random"
        )  # fmt: skip
        scaled = "" if self.upstream == 1 else f", upstream {self.upstream:g}"
        return f"{self.model}, {self.tokens} tokens{share}{more}{scaled}"


@dataclass(frozen=True, kw_only=True)
class Floor:
    """The least that one mode must move and compute: bytes through device memory, floating-point operations."""

    bytes: int
    flops: int = 0


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A shape with its tensors. Those named ``differentiable`` require grad; ``upstream`` begins the backward pass.

    ``truth()`` gives the outputs and the gradients (``grad:NAME``) in float64; None where that would take too long.
    """

    shape: Shape
    tensors: Tensors
    outputs: tuple[str, ...]
    differentiable: tuple[str, ...]
    upstream: tuple[Tensor, ...]
    floors: Mapping[Mode, Floor]
    truth: Callable[[], Tensors] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Arguments:
    """What one call is given: the tensors of a problem, and the gradients that its backward pass begins with."""

    tensors: Tensors
    upstream: tuple[Tensor, ...]
    _cast: dict[tuple[torch.dtype, ...], tuple[Tensor, ...]] = field(default_factory=dict, repr=False)

    def upstream_in(self, dtypes: tuple[torch.dtype, ...]) -> tuple[Tensor, ...]:
        """The upstream gradients in the dtypes of the outputs; made once, so that no call is timed with it."""
        if dtypes not in self._cast:
            self._cast[dtypes] = tuple(x.to(dtype) for x, dtype in zip(self.upstream, dtypes, strict=True))
        return self._cast[dtypes]


@dataclass(frozen=True, kw_only=True, eq=False)
class Offer:
    """What a provider has for one operation: a function at the top of its module, which is timed and judged as it is.

    ``arguments`` are names of the problem's tensors, or of the shape's settings; ``form`` is the call form by which
    ``assay`` judges the function. ``refuses`` says why a shape cannot be taken. ``consumes``: tensors that a call
    overwrites, which are restored before each. ``devices``: where it runs, ``interpreter`` being a CPU with Triton's.
    ``cases``: of how many its audit is made at most, where each is compiled anew; 0: of all. ``early``: gradients are
    made in the forward pass, so that a backward pass by itself says nothing and is not timed. ``skips``: rows that are
    not scored cost next to nothing, which only the estimate of a run's time is interested in. ``asked``: more cases for
    its audit, as JSON, where it does not take most of those that there are.
    """

    function: Callable[..., Any]
    arguments: tuple[str, ...]
    form: str
    consumes: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cuda", "cpu", "interpreter")
    refuses: Callable[[Shape], str | None] = lambda _shape: None
    cases: int = 0
    early: bool = False
    skips: bool = False
    asked: tuple[str, ...] = ()

    @property
    def ref(self) -> str:
        """Where it can be imported from."""
        return f"{self.function.__module__}:{self.function.__qualname__}"

    def call(self, shape: Shape) -> Call:
        """The function on the tensors of problems of a shape."""
        settings = {name: shape.settings[name] for name in self.arguments if name in shape.settings}

        def call(tensors: Tensors) -> tuple[Tensor, ...]:
            found = self.function(*(settings[name] if name in settings else tensors[name] for name in self.arguments))
            return found if isinstance(found, tuple) else (found,)

        return call


@dataclass(frozen=True, kw_only=True, eq=False)
class Provider:
    """Who answers. ``packages`` are the distributions that must be installed; the first one's version is told."""

    name: str
    packages: tuple[str, ...]
    offers: Mapping[str, Offer]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement: a provider on a shape in a mode. Times in microseconds, memory in bytes.

    ``how`` says what was timed: ``graph`` replays, ``events`` around calls, or the ``wall`` clock. ``least`` is the
    time that the floor takes at the measured ceilings, ``share`` is least over median. ``errors`` are relative to the
    norm of the truth, ``rounding`` what storing the truth in the dtype costs. ``memory`` is that of a forward and a
    backward pass, ``launches`` and ``waits`` are those of a call in this mode, and unknown on a CPU.
    """

    operation: str
    provider: str
    version: str
    model: str
    tokens: int
    layout: str
    masked: float
    mask: str
    values: str
    upstream: float
    mode: Mode
    how: str
    median: float
    low: float
    high: float
    samples: int
    wall: float
    least: float
    share: float
    floor_bytes: int
    floor_flops: int
    memory: int
    launches: int | None = None
    waits: int | None = None
    errors: Mapping[str, float] = field(default_factory=dict)
    rounding: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Absence:
    """Why a provider was not timed: not installed, audit not green, or a shape that it cannot take."""

    operation: str
    provider: str
    reason: str
    shape: str = ""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All of one run, as it is stored: the machine, then rows and absences. ``cut``: why it ended before its end."""

    machine: Mapping[str, Any]
    rows: tuple[Row, ...]
    absences: tuple[Absence, ...]
    grid: str
    rehearsal: bool
    cut: str = ""
    schema: int = 1

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and words."""
        return asdict(self)


def from_json(data: Mapping[str, Any]) -> Comparison:
    """A stored run. ValueError where it is of another schema."""
    if data.get("schema") != 1:
        message = f"schema: expected 1, got {data.get('schema')!r}"
        raise ValueError(message)
    rows = tuple(Row(**row) for row in data["rows"])
    absences = tuple(Absence(**item) for item in data["absences"])
    return Comparison(**{**data, "rows": rows, "absences": absences})
