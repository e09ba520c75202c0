"""``masked_regression``: smooth L1 between predictions and normalised targets gathered from a grid, as JEPA trains.

Letters: M rows of predictions, of which some do not count, T tokens of the target's grid, D channels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from assay.benchmarks.nouns import Floor, Mode, Problem, Shape, Tensors
from assay.reference.masked_regression import masked_regression

NAME = "masked_regression"
AUDITED = "masked_loss.regression"
NOTHING: tuple[str, ...] = ("all-masked", "no-sample")
"""Cases of its audit in which there is nothing to do."""
MODELS = {"ViT-g": {"channels": 1408}, "wide": {"channels": 4096}, "tiny": {"channels": 24}}
EXACT = 1 << 17


def shapes(grid: str) -> Iterator[Shape]:
    """The shapes of a grid, the most telling first."""
    if grid == "tiny":
        yield Shape(model="tiny", tokens=9, settings=MODELS["tiny"], masked=0.5)
        return
    tokens = 24576 if grid == "full" else 1024
    for masked in (0.0, 0.5, 0.9, 0.98):
        yield Shape(model="ViT-g", tokens=tokens, settings=MODELS["ViT-g"], masked=masked, mask="random")
    yield Shape(model="ViT-g", tokens=tokens, settings=MODELS["ViT-g"], masked=0.9)
    yield Shape(model="ViT-g", tokens=tokens, settings=MODELS["ViT-g"], upstream=0.125)
    if grid == "full":
        for masked in (0.0, 0.5, 0.9):
            yield Shape(model="wide", tokens=131072, settings=MODELS["wide"], masked=masked, mask="random")


def problem(shape: Shape, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Problem:
    """Tensors: ``prediction`` [1,M,D], ``target`` [1,M,D], ``indices`` [1,M] int64 into it, ``mask`` [1,M] bool."""
    channels = shape.settings["channels"]
    draw = torch.Generator(device=device).manual_seed(shape.tokens)
    size = (1, shape.tokens, channels)
    prediction = torch.randn(size, generator=draw, device=device, dtype=dtype)
    target = torch.randn(size, generator=draw, device=device, dtype=dtype).mul_(3).add_(1)
    order = torch.Generator().manual_seed(shape.tokens)
    indices = torch.randperm(shape.tokens, generator=order)[None].to(device)
    mask = torch.ones(1, shape.tokens, dtype=torch.bool)
    left_out = int(shape.masked * shape.tokens)
    places = torch.randperm(shape.tokens, generator=order) if shape.mask == "random" else torch.arange(shape.tokens)
    mask[0, places[:left_out]] = False

    tensors = {
        "prediction": prediction.requires_grad_(), "target": target, "indices": indices, "mask": mask.to(device),
    }  # fmt: skip

    def truth() -> Tensors:
        wide = prediction.detach().double().requires_grad_()
        loss = masked_regression(
            wide, target.double(), tensors["mask"], kind="smooth_l1", normalise_target=True, indices=indices
        )
        (grad,) = torch.autograd.grad(loss.value * shape.upstream, wide)
        return {"loss": loss.value.detach(), "grad:prediction": grad}

    return Problem(
        shape=shape, tensors=tensors, outputs=("loss",), differentiable=("prediction",),
        upstream=(torch.tensor(shape.upstream, device=device),), floors=floors(shape, dtype.itemsize),
        truth=truth if shape.tokens <= EXACT else None,
    )  # fmt: skip


def floors(shape: Shape, size: int) -> dict[Mode, Floor]:
    """Rows that count are read once, predictions and targets; the gradient of every row is written once."""
    row = shape.settings["channels"] * size
    read = 2 * (shape.tokens - int(shape.masked * shape.tokens)) * row
    written = shape.tokens * row
    return {
        "forward": Floor(bytes=read), "backward": Floor(bytes=read + written), "both": Floor(bytes=read + written),
    }  # fmt: skip
