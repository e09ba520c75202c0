"""What can be tuned: for each kernel, problems of the comparison, how it is called, and a handful of settings to try.

The settings are tried as `choices.forced` has them, so that what is timed is what a stored choice would launch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch

from assay.benchmarks.nouns import Mode, Offer, Problem, Shape
from assay.benchmarks.providers import ours
from assay.kernels import choices, mrope_triton
from assay.kernels import masked_cross_entropy_launch as launch
from assay.kernels import masked_regression_triton as regression

Settings = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """One kernel that `choices` can tell: whose problems it is timed on, in which mode, what is tried."""

    kernel: str
    operation: str
    mode: Mode
    function: Callable[..., Any]
    arguments: tuple[str, ...]
    tried: tuple[Settings, ...]
    """Besides the formula, which is always the first."""
    shape_class: Callable[[Shape, int], str]
    """What `choices` calls a shape, by the bytes of an element."""
    job: Callable[[Shape, Settings, int], tuple[Any, ...]]
    """What `benchmarks/compiled` calls the launch for a shape, settings and a chip."""
    consumes: tuple[str, ...] = ()
    wanted: Callable[[Shape], bool] = field(default=lambda _shape: True)
    """Of the comparison's shapes, those that stand for a class."""

    def shapes(self, grid: str, itemsize: int) -> Mapping[str, Shape]:
        """For each class of shapes the first one that the grid has of it."""
        operation = import_module(f"assay.benchmarks.operations.{self.operation}")
        found: dict[str, Shape] = {}
        for shape in operation.shapes(grid):
            if grid == "tiny" or self.wanted(shape):
                found.setdefault(self.shape_class(shape, itemsize), shape)
        return found

    def problem(self, shape: Shape, device: torch.device, dtype: torch.dtype) -> Problem:
        """The comparison's problem of a shape."""
        made: Problem = import_module(f"assay.benchmarks.operations.{self.operation}").problem(shape, device, dtype)
        return made

    @property
    def offer(self) -> Offer:
        """The function as the comparison calls it."""
        return Offer(function=self.function, arguments=self.arguments, form="", consumes=self.consumes)


def _blocks(*pairs: tuple[int, int]) -> tuple[Settings, ...]:
    return tuple({"block": block, "warps": warps} for block, warps in pairs)


def _one_read(block: int, warps: int, residents: int) -> Settings:
    return {"form": choices.ONE_READ, "block": block, "warps": warps, "residents": residents}


def _logits_class(shape: Shape, itemsize: int) -> str:
    dtype = torch.float32 if itemsize == 4 else torch.bfloat16
    logits = torch.empty(1, 1, shape.settings["vocabulary"], dtype=dtype, device="meta")
    return launch.shape_class(logits, launch.Rules())


def _heads_class(shape: Shape, itemsize: int) -> str:
    told = shape.settings
    half = sum(told["sections"])
    return mrope_triton.shape_class(told["heads"], told["kv_heads"], half, told["channels"] - 2 * half, itemsize)


def _channels_class(shape: Shape, itemsize: int) -> str:
    rules = regression.Rules(kind="smooth_l1", normalise=True)
    return regression.shape_class(shape.settings["channels"], rules, itemsize)


def _logits_job(kernel: str) -> Callable[[Shape, Settings, int], tuple[Any, ...]]:
    def job(shape: Shape, settings: Settings, arch: int) -> tuple[Any, ...]:
        name = "shared" if settings.get("form") == choices.ONE_READ else kernel
        return name, shape.settings["vocabulary"], "bf16", "plain", arch

    return job


def _heads_job(shape: Shape, _settings: Settings, arch: int) -> tuple[Any, ...]:
    return "forward", shape.model, "bf16", shape.layout, arch


def _channels_job(shape: Shape, _settings: Settings, arch: int) -> tuple[Any, ...]:
    return {"ViT-g": "i-jepa", "wide": "wide"}[shape.model], "fused", "bf16", arch


def _unmasked(shape: Shape) -> bool:
    """All rows scored, and values as they come: a class of shapes knows neither."""
    return not shape.masked and shape.values == "random" and shape.upstream == 1


_LOGITS = ("logits", "labels")
TUNED: Sequence[Tuned] = (
    Tuned(
        kernel="cross_entropy.rows", operation="cross_entropy", mode="forward", function=ours.cross_entropy,
        arguments=_LOGITS, shape_class=_logits_class, job=_logits_job("rows"), wanted=_unmasked,
        tried=_blocks((4096, 8), (8192, 8), (16384, 16), (16384, 32)),
    ),
    Tuned(
        kernel="cross_entropy.gradient", operation="cross_entropy", mode="backward", function=ours.cross_entropy,
        arguments=_LOGITS, shape_class=_logits_class, job=_logits_job("gradient"), wanted=_unmasked,
        tried=_blocks((2048, 4), (4096, 4), (4096, 8), (16384, 32)),
    ),
    Tuned(
        kernel="cross_entropy.fused", operation="cross_entropy", mode="both", function=ours.cross_entropy_inplace,
        arguments=_LOGITS, shape_class=_logits_class, job=_logits_job("fused"), wanted=_unmasked, consumes=("logits",),
        tried=(
            *_blocks((8192, 16), (16384, 16), (32768, 32)),
            *(_one_read(*sizes) for sizes in ((8192, 8, 2), (16384, 16, 1), (8192, 16, 1))),
        ),
    ),
    Tuned(
        kernel="rotary.rotate", operation="rotary", mode="forward", function=ours.rotate,
        arguments=ours.TABLES, shape_class=_heads_class, job=_heads_job,
        tried=tuple(
            {"warps": warps, "registers": registers}
            for warps, registers in ((1, 96), (2, 64), (2, 96), (4, 64), (4, 128), (8, 64))
        ),
    ),
    Tuned(
        kernel="masked_regression.rows", operation="masked_regression", mode="both",
        function=ours.masked_regression_inplace, arguments=ours.REGRESSION, shape_class=_channels_class,
        job=_channels_job, wanted=_unmasked, consumes=("prediction",),
        tried=tuple(
            {"elements": elements, "per_thread": thread}
            for elements, thread in ((2048, 16), (4096, 32), (1024, 16), (2048, 8))
        ),
    ),
)  # fmt: skip
