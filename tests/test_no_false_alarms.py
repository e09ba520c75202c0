"""Right code written otherwise is not accused: the reference and rewrites of it pass every law.

``ASSAY_EXAMPLES`` sets the number of searched examples for a scheduled run, such as 10000; without it there are few.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from assay.audits import registry
from assay.audits.components.mrope.positions import Inputs as Batch
from assay.audits.components.mrope.rotate import Inputs as Heads
from assay.audits.components.mrope.rotate import full_tables, reference
from assay.audits.run import Options, audit
from assay.audits.terms import Candidate, Outputs, Verdict
from assay.reference import mrope

EXAMPLES = 60
MANY = int(os.environ.get("ASSAY_EXAMPLES", "0"))


def by_complex_numbers(inputs: Heads) -> Outputs:
    """Each lane is a complex number, times one of the length of the scaling."""
    turn = torch.polar(torch.full_like(_angles(inputs), inputs.attention_scaling), _angles(inputs))[:, None]

    def turned(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        product = torch.complex(a.float(), b.float()) * turn
        return product.real, product.imag

    return _each(inputs, turned)


def by_matrices(inputs: Heads) -> Outputs:
    """Each lane is a vector, times a matrix of two rows."""
    cos, sin = (t[:, None] for t in _tables(inputs))
    matrix = torch.stack([torch.stack([cos, -sin], dim=-1), torch.stack([sin, cos], dim=-1)], dim=-2)

    def turned(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        product = (matrix @ torch.stack([a, b], dim=-1).float()[..., None])[..., 0]
        return product[..., 0], product[..., 1]

    return _each(inputs, turned)


def by_full_width_tables(inputs: Heads) -> Outputs:
    """Hugging Face's form, all in the dtype of the queries: x cos + (-second, first) sin."""
    cos, sin = (table[:, None] for table in full_tables(inputs, merged=True))
    first, second = mrope.lane_channels(inputs.pairing, 2 * len(inputs.axes))
    order = torch.cat([first, second]).argsort()
    out = {}
    for name, x in (("q", inputs.q), ("k", inputs.k)):
        head, tail = x[..., : len(order)], x[..., len(order) :]
        turned = torch.cat((-head[..., second], head[..., first]), dim=-1)[..., order]
        out[name] = torch.cat([head * cos + turned * sin, tail], dim=-1)
    return out


def with_one_rounding(inputs: Heads) -> Outputs:
    """Float32 inside, rounded at the end, as kernels do it."""
    cos, sin = (t[:, None] for t in _tables(inputs))
    return _each(inputs, lambda a, b: (a * cos - b * sin, b * cos + a * sin))


def in_another_order(inputs: Heads) -> Outputs:
    """All in the dtype of the queries, with fused multiply-adds and the products the other way round."""
    cos, sin = (t[:, None].to(inputs.q.dtype) for t in _tables(inputs))
    return _each(inputs, lambda a, b: (torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(a * sin, b, cos)))


def from_float64_tables(inputs: Heads) -> Outputs:
    """Angles, cos and sin in float64, rounded once to the dtype of the queries."""
    return _each(inputs, _turn(_tables(dataclasses.replace(inputs, inv_freq=inputs.inv_freq.double())), inputs.q.dtype))


def with_a_sine_by_vectors(inputs: Heads) -> Outputs:
    """Sines of which all in a row are one bit smaller where one angle of the row is large, as compilers' are."""
    large = (_angles(inputs).abs() > 30).any(-1, keepdim=True)
    tables = (torch.where(large, torch.nextafter(table, torch.zeros(())), table) for table in _tables(inputs))
    return _each(inputs, _turn((next(tables), next(tables)), inputs.q.dtype))


def in_float64(inputs: Heads) -> Outputs:
    """Everything in float64, cast back at the end."""
    wide = dataclasses.replace(inputs, inv_freq=inputs.inv_freq.double(), q=inputs.q.double(), k=inputs.k.double())
    return {name: value.to(inputs.q.dtype) for name, value in reference(wide).items()}


def from_even_exponents(inputs: Heads) -> Outputs:
    """Frequencies made again with an even range, the form of many published implementations."""
    lanes = len(inputs.inv_freq)
    base = torch.round(inputs.inv_freq[-1].double() ** (-lanes / (lanes - 1)))
    inv_freq = 1.0 / base ** (torch.arange(0, 2 * lanes, 2, dtype=torch.float64) / (2 * lanes))
    return reference(dataclasses.replace(inputs, inv_freq=inv_freq.to(inputs.inv_freq)))


def dense_first(inputs: Heads) -> Outputs:
    """Copies its inputs before it turns them, and returns dense results."""
    dense = dataclasses.replace(inputs, q=inputs.q.contiguous(), k=inputs.k.contiguous())
    return {name: value.contiguous() for name, value in reference(dense).items()}


def compiled(inputs: Heads) -> Outputs:
    """The reference's rotation, captured by torch.compile, with autograd traced too."""
    cos, sin = (t.to(inputs.q.dtype) for t in _tables(inputs))
    q, k = _compiled(inputs.q, inputs.k, cos, sin, inputs.pairing)
    return {"q": q, "k": k}


@torch.compile(backend="aot_eager", dynamic=True)
def _compiled(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, pairing: str) -> tuple[Tensor, Tensor]:
    return mrope.rotate(q, cos, sin, pairing=pairing), mrope.rotate(k, cos, sin, pairing=pairing)


def in_loops(inputs: Batch) -> Outputs:
    """The ids token by token, in numpy, from the paper's description alone."""
    ids = np.zeros((3, *inputs.token_types.shape), dtype=np.int64)
    following = np.zeros(len(inputs.token_types), dtype=np.int64)
    grids = {1: inputs.image_grids.tolist(), 2: inputs.video_grids.tolist()}
    seconds = inputs.seconds_per_grid.numpy()
    for sample, mask in enumerate(inputs.attention_mask.tolist()):
        tokens = [place for place, real in enumerate(mask) if real]
        top = -1
        while tokens:
            kind = int(inputs.token_types[sample, tokens[0]])
            video = len(inputs.video_grids) - len(grids[2])
            block = [(0, 0, 0)] if kind == 0 else _cells(inputs, grids[kind].pop(0), seconds[video] if kind == 2 else 0)
            here, tokens = tokens[: len(block)], tokens[len(block) :]
            assert {int(inputs.token_types[sample, place]) for place in here} == {kind}
            for place, cell in zip(here, block, strict=True):
                ids[:, sample, place] = [top + 1 + offset for offset in cell]
            top = int(ids[:, sample, here].max())
        following[sample] = top + 1
    assert not any(grids.values()), "grids without tokens"
    return {"positions": torch.from_numpy(ids), "next": torch.from_numpy(following)}


def _cells(inputs: Batch, grid: list[int], seconds: float | np.float32) -> list[tuple[int, int, int]]:
    frames, height, width = grid
    found = []
    for frame in range(frames):
        time = int(np.float32(frame) * (np.float32(seconds) * np.float32(inputs.ids_per_second)))
        for row in range(height // inputs.spatial_merge):
            found += [(time, row, column) for column in range(width // inputs.spatial_merge)]
    return found


def _angles(inputs: Heads) -> Tensor:
    return inputs.positions[inputs.axes].permute(1, 2, 0) * inputs.inv_freq


def _tables(inputs: Heads) -> tuple[Tensor, Tensor]:
    return _angles(inputs).cos() * inputs.attention_scaling, _angles(inputs).sin() * inputs.attention_scaling


Lanes = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def _turn(tables: tuple[Tensor, Tensor], dtype: torch.dtype) -> Lanes:
    cos, sin = (t[:, None].to(dtype) for t in tables)
    return lambda a, b: (a * cos - b * sin, b * cos + a * sin)


def _each(inputs: Heads, turned: Lanes) -> Outputs:
    """Queries and keys with both channels of each lane turned; the rest as it was."""
    first, second = mrope.lane_channels(inputs.pairing, 2 * len(inputs.axes))
    out = {}
    for name, x in (("q", inputs.q), ("k", inputs.k)):
        value = x.clone()
        one, other = turned(x[..., first], x[..., second])
        value[..., first], value[..., second] = one.to(x.dtype), other.to(x.dtype)
        out[name] = value
    return out


ROTATIONS = (
    by_complex_numbers, by_matrices, by_full_width_tables, with_one_rounding, in_another_order, from_float64_tables,
    with_a_sine_by_vectors, in_float64, from_even_exponents, dense_first,
)  # fmt: skip
RIGHT = [
    *(("mrope.rotate", form.__name__) for form in ROTATIONS),
    ("mrope.positions", "in_loops"),
]


def _passes(operation: str, form: str, options: Options) -> None:
    if form == "reference":
        candidate = next(item for item in registry.candidates(operation) if item.name == form)
    else:
        target = {"kind": "import", "ref": f"{__name__}:{form}", "operation": operation}
        candidate = Candidate(operation=operation, name=form, target=target, trusted=True)
    report = audit(registry.operation(operation), candidate, options)
    found = [(item.rule, item.case, item.dtype, item.where, item.measured, item.limit) for item in report.findings]
    assert found == []
    assert report.verdict == Verdict.PASS


@pytest.mark.parametrize(("operation", "form"), RIGHT)
def test_a_harmless_rewrite_passes(operation: str, form: str) -> None:
    _passes(operation, form, Options(examples=EXAMPLES))


@pytest.mark.slow
@pytest.mark.timeout(24 * 3600)
@pytest.mark.skipif(MANY == 0, reason="hours: set ASSAY_EXAMPLES to a number, such as 10000")
@pytest.mark.parametrize(
    ("operation", "form"), [("mrope.rotate", "reference"), ("mrope.positions", "reference"), *RIGHT]
)
def test_many_examples_accuse_nobody(operation: str, form: str) -> None:
    _passes(operation, form, Options(examples=MANY))


@pytest.mark.slow
@pytest.mark.skipif(MANY == 0, reason="half a minute of compiling: set ASSAY_EXAMPLES")
def test_a_compiled_form_passes() -> None:
    """On two cases: each combination of strides and sizes is compiled anew."""
    _passes("mrope.rotate", "compiled", Options(cases=("image", "qwen3.5")))
