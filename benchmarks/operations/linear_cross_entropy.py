"""``linear_cross_entropy``: the same mean from hidden states [S,H] and the head's weight [V,H]."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from assay.benchmarks.nouns import Floor, Mode, Problem, Shape, Tensors
from assay.benchmarks.operations._labels import IGNORED, labels, scored

NAME = "linear_cross_entropy"
AUDITED = "masked_loss.linear_cross_entropy"
NOTHING: tuple[str, ...] = ("all-masked", "no-sample")
"""Cases of its audit in which there is nothing to do."""
MODELS = {
    "Qwen2.5-VL-7B": {"width": 3584, "vocabulary": 152_064},
    "Qwen3-VL-8B": {"width": 4096, "vocabulary": 151_936},
    "Qwen2.5-VL-72B": {"width": 8192, "vocabulary": 152_064},
    "small": {"width": 256, "vocabulary": 8_000},
    "tiny": {"width": 48, "vocabulary": 331},
}
"""From the released configurations; the last two are for a CPU."""
EXACT = 8192
"""Scored rows up to which the truth is computed: a second on a large GPU."""
BLOCK = 512


def shapes(grid: str) -> Iterator[Shape]:
    """The shapes of a grid, the most telling first."""
    if grid in ("small", "tiny"):
        tokens = {"small": 1024, "tiny": 7}[grid]
        for masked in (0.0, 0.9) if grid == "small" else (0.0, 0.5):
            yield Shape(model=grid, tokens=tokens, settings=MODELS[grid], masked=masked)
        return
    for tokens, masked in ((2048, 0.0), (8192, 0.9), (8192, 0.0), (8192, 0.98), (8192, 0.5)):
        yield Shape(model="Qwen2.5-VL-7B", tokens=tokens, settings=MODELS["Qwen2.5-VL-7B"], masked=masked)
    for model in ("Qwen3-VL-8B", "Qwen2.5-VL-72B"):
        for masked in (0.0, 0.9):
            yield Shape(model=model, tokens=2048, settings=MODELS[model], masked=masked)
    first = Shape(model="Qwen2.5-VL-7B", tokens=2048, settings=MODELS["Qwen2.5-VL-7B"])
    yield replace(first, values="peaked")
    yield replace(first, upstream=0.125)
    yield replace(first, tokens=8192, masked=0.9, mask="random")
    yield replace(first, tokens=32768, masked=0.9)
    yield replace(first, tokens=131072, masked=0.98)
    yield replace(first, tokens=32768)


def problem(shape: Shape, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Problem:
    """Tensors: ``hidden`` [S,H], ``head`` [V,H], ``labels`` [S] int64 aligned with them, of which some are -100."""
    width, vocabulary = shape.settings["width"], shape.settings["vocabulary"]
    draw = torch.Generator(device=device).manual_seed(shape.tokens)
    hidden = torch.randn(shape.tokens, width, generator=draw, device=device, dtype=dtype)
    head = torch.randn(vocabulary, width, generator=draw, device=device, dtype=dtype).mul_(width**-0.5)
    target = labels(shape, vocabulary, device)
    if shape.values == "peaked":
        rows = (target != IGNORED).nonzero()[:, 0]
        hidden[rows] += 12 * head[target[rows]]  # the label's logit is some 12 above the others'

    def truth() -> Tensors:
        return _truth(hidden.detach(), head.detach(), target, shape.upstream)

    return Problem(
        shape=shape, tensors={"hidden": hidden.requires_grad_(), "head": head.requires_grad_(), "labels": target},
        outputs=("loss",), differentiable=("hidden", "head"), upstream=(torch.tensor(shape.upstream, device=device),),
        floors=floors(shape, dtype.itemsize), truth=truth if scored(shape) <= EXACT else None,
    )  # fmt: skip


def _truth(hidden: torch.Tensor, head: torch.Tensor, target: torch.Tensor, upstream: float) -> Tensors:
    """In float64, some rows at a time; rows that are not scored have a gradient of zero."""
    rows = (target != IGNORED).nonzero()[:, 0]
    wide, loss = head.double(), torch.zeros((), dtype=torch.float64, device=head.device)
    first, second = torch.zeros_like(hidden, dtype=torch.float64), torch.zeros_like(wide)
    for start in range(0, len(rows), BLOCK):
        part = rows[start : start + BLOCK]
        states = hidden[part].double()
        logs = torch.log_softmax(states @ wide.t(), -1)
        loss -= logs.gather(-1, target[part][:, None]).sum() / len(rows)
        slopes = logs.exp_()
        slopes[torch.arange(len(part), device=head.device), target[part]] -= 1
        slopes *= upstream / len(rows)
        first[part] = slopes @ wide
        second += slopes.t() @ states
    return {"loss": loss, "grad:hidden": first, "grad:head": second}


def floors(shape: Shape, size: int) -> dict[Mode, Floor]:
    """Two products for the gradients beside that of the logits, of scored rows; the head is read and written."""
    width, vocabulary, rows = shape.settings["width"], shape.settings["vocabulary"], scored(shape)
    product, weight = 2 * rows * width * vocabulary, width * vocabulary * size
    states = shape.tokens * width * size
    return {
        "forward": Floor(bytes=weight + rows * width * size, flops=product),
        "backward": Floor(bytes=2 * weight + states, flops=2 * product),
        "both": Floor(bytes=3 * weight + 2 * states, flops=3 * product),
    }  # fmt: skip
