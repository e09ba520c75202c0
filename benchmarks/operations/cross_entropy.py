"""``cross_entropy``: the mean over scored tokens, from logits [S,V] that are there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from assay.benchmarks.nouns import Floor, Mode, Problem, Shape, Tensors
from assay.benchmarks.operations._labels import IGNORED, labels, scored

NAME = "cross_entropy"
AUDITED = "masked_loss.cross_entropy"
NOTHING: tuple[str, ...] = ("all-masked", "all-masked-sum", "no-sample")
"""Cases of its audit in which there is nothing to do."""
VOCABULARIES = {"Qwen2.5-VL-7B": 152_064, "Qwen3-VL-8B": 151_936, "Qwen3.5-like": 248_320, "odd": 151_937}
"""From the released configurations; the last one is no multiple of anything."""
MASKED = (0.0, 0.5, 0.9, 0.98)
PEAK = 30.0
"""How far the label's logit stands out where values are peaked: about half of the probability."""
EXACT = 16384
"""Tokens up to which the truth is computed: 20 GB of gradient."""
BLOCK = 256
"""Rows that the truth is computed on at a time."""


def shapes(grid: str) -> Iterator[Shape]:
    """The shapes of a grid, the most telling first."""
    if grid == "tiny":
        for masked in (0.0, 0.5):
            yield Shape(model="tiny", tokens=7, settings={"vocabulary": 331}, masked=masked)
        return
    tokens = 4096 if grid == "full" else 64
    models = VOCABULARIES if grid == "full" else {"Qwen2.5-VL-7B": VOCABULARIES["Qwen2.5-VL-7B"]}
    for masked in MASKED:
        yield Shape(model="Qwen2.5-VL-7B", tokens=tokens, settings=_settings("Qwen2.5-VL-7B"), masked=masked)
    for model in models:
        if model != "Qwen2.5-VL-7B":
            yield Shape(model=model, tokens=tokens, settings=_settings(model))
    first = Shape(model="Qwen2.5-VL-7B", tokens=tokens, settings=_settings("Qwen2.5-VL-7B"))
    for masked in MASKED[1:]:
        yield replace(first, masked=masked, mask="random")
    yield replace(first, values="peaked")
    yield replace(first, upstream=0.125)
    if grid == "full":
        yield replace(first, tokens=16384, masked=0.9)
        yield replace(first, tokens=2048)
        yield replace(first, tokens=16384)
        yield replace(first, tokens=32768, masked=0.9)


def _settings(model: str) -> dict[str, int]:
    return {"vocabulary": VOCABULARIES[model]}


def problem(shape: Shape, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Problem:
    """Tensors: ``logits`` [S,V], ``labels`` [S] int64 aligned with them, of which some are -100."""
    vocabulary = shape.settings["vocabulary"]
    draw = torch.Generator(device=device).manual_seed(shape.tokens)
    logits = torch.randn(shape.tokens, vocabulary, generator=draw, device=device, dtype=dtype).mul_(2)
    target = labels(shape, vocabulary, device)
    if shape.values == "peaked":
        rows = (target != IGNORED).nonzero()[:, 0]
        logits[rows, target[rows]] = logits[rows].float().logsumexp(-1).to(dtype)

    def truth() -> Tensors:
        count, loss = (target != IGNORED).sum(), logits.new_zeros((), dtype=torch.float64)
        grad = torch.empty_like(logits, dtype=torch.float64, requires_grad=False)
        for start in range(0, shape.tokens, BLOCK):
            part = logits.detach()[start : start + BLOCK].double().requires_grad_()
            total = torch.nn.functional.cross_entropy(part, target[start : start + BLOCK], reduction="sum") / count
            (total * shape.upstream).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            loss = loss + total.detach()
            assert part.grad is not None
            grad[start : start + BLOCK] = part.grad
        return {"loss": loss, "grad:logits": grad}

    return Problem(
        shape=shape, tensors={"logits": logits.requires_grad_(), "labels": target}, outputs=("loss",),
        differentiable=("logits",), upstream=(torch.tensor(shape.upstream, device=device),),
        floors=floors(shape, dtype.itemsize), truth=truth if shape.tokens <= EXACT else None,
    )  # fmt: skip


def floors(shape: Shape, size: int) -> dict[Mode, Floor]:
    """Scored rows are read once; the gradient of every row is written once, zeros too."""
    row = shape.settings["vocabulary"] * size
    read, written = scored(shape) * row, shape.tokens * row
    return {
        "forward": Floor(bytes=read), "backward": Floor(bytes=read + written), "both": Floor(bytes=read + written),
    }  # fmt: skip
