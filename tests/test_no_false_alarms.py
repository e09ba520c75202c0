"""Right code written otherwise is not accused: the reference and rewrites of it pass every law.

``ASSAY_EXAMPLES`` sets the number of searched examples of each reference for a scheduled run, such as 10000; a rewrite
gets a twentieth of it. Without it there are few.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

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
from assay.reference.mrope_rules import PositionRule

EXAMPLES = 8
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


def index_by_types(
    input_ids: Tensor,
    mm_token_type_ids: Tensor,
    image_grid_thw: Tensor | None = None,
    video_grid_thw: Tensor | None = None,
    second_per_grid_ts: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Hugging Face's signature from release 5.3 on, in numpy; the rate and the merge size are those of its model."""
    mask = np.ones(input_ids.shape, bool) if attention_mask is None else attention_mask.numpy().astype(bool)
    blocks = {1: _blocks(image_grid_thw, None), 2: _blocks(video_grid_thw, second_per_grid_ts)}
    ids, deltas = np.zeros((3, *mask.shape), np.int64), []
    for row, real in enumerate(mask):
        ids[:, row, real] = own = _numbered(mm_token_type_ids[row].numpy()[real], blocks)
        deltas.append(own.max(initial=-1) + 1 - real.sum())
    if any(blocks.values()):
        raise ValueError("grids are left over")
    return torch.from_numpy(ids), torch.tensor(deltas)[:, None]


def index_by_markers(
    input_ids: Tensor,
    image_grid_thw: Tensor | None = None,
    video_grid_thw: Tensor | None = None,
    second_per_grid_ts: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Hugging Face's signature up to release 4.57: a block is what stands behind a marker; deltas count padding."""
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    blocks = {151_655: _blocks(image_grid_thw, None), 151_656: _blocks(video_grid_thw, second_per_grid_ts)}
    ids, deltas = torch.zeros(3, *input_ids.shape, dtype=torch.int64), []
    for row, real in enumerate(mask.bool()):
        tokens, parts, at, top = input_ids[row, real].tolist(), [], 0, -1
        while at < len(tokens):
            here, marked = tokens[at], at > 0 and tokens[at - 1] == 151_652
            block = torch.from_numpy(blocks[here].pop(0)) if marked and here in blocks else torch.zeros(3, 1).long()
            stop = at + block.shape[1]
            if (here in blocks and not marked) or tokens[at:stop] != [here] * (stop - at):
                raise ValueError(f"row {row}: placeholders and grids do not fit")
            parts.append(block + top + 1)
            at, top = stop, int(parts[-1].max())
        ids[:, row, real] = torch.cat(parts, dim=1)
        deltas.append(top + 1 - len(real))
    if any(blocks.values()):
        raise ValueError("grids are left over")
    return ids, torch.tensor(deltas)


def positions_by_rule(
    rule: PositionRule,
    token_types: Tensor,
    *,
    attention_mask: Tensor | None = None,
    image_grids: Tensor | None = None,
    video_grids: Tensor | None = None,
    seconds_per_grid: Tensor | None = None,
    audio_lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The project's own signature, for rules that count seconds: recursion from block to block, in plain lists."""
    if audio_lengths is not None or (video_grids is not None and len(video_grids) and seconds_per_grid is None):
        raise ValueError("audio_lengths, seconds_per_grid: expected videos with their seconds")
    mask = torch.ones_like(token_types) if attention_mask is None else attention_mask
    blocks = {
        1: _blocks(image_grids, None, rule.spatial_merge),
        2: _blocks(video_grids, seconds_per_grid, rule.spatial_merge, rule.ids_per_second),
    }
    rows = [_placed(types[real.bool()].tolist(), blocks, 0) for types, real in zip(token_types, mask, strict=True)]
    if any(blocks.values()):
        raise ValueError("grids are left over")
    ids = torch.full((3, *token_types.shape), -7)
    for row, cells in enumerate(rows):
        ids[:, row, mask[row].bool()] = torch.tensor(cells, dtype=torch.int64).reshape(-1, 3).T
    tops = [max((max(cell) for cell in cells), default=-1) for cells in rows]
    return ids, torch.tensor(tops)[:, None] + 1 - mask.sum(-1, keepdim=True)


def _placed(kinds: list[int], blocks: dict[int, list[Any]], start: int) -> list[list[int]]:
    if not kinds:
        return []
    cells = blocks[kinds[0]].pop(0).T.tolist() if kinds[0] else [[0, 0, 0]]
    if kinds[: len(cells)] != [kinds[0]] * len(cells):
        raise ValueError("grids and tokens do not fit")
    here = [[start + offset for offset in cell] for cell in cells]
    return here + _placed(kinds[len(cells) :], blocks, max(map(max, here)) + 1)


def _blocks(grids: Tensor | None, seconds: Tensor | None, merge: int = 2, rate: float = 4.0) -> list[Any]:
    """Offsets [3,n] of the tokens of each grid; a second a frame where nothing is said."""
    found = []
    for place, (frames, height, width) in enumerate([] if grids is None else grids.tolist()):
        step = np.float32(1.0 if seconds is None else seconds[place]) * np.float32(rate)
        times = (np.arange(frames, dtype=np.float32) * step).astype(np.int64)
        axes = np.meshgrid(times, np.arange(height // merge), np.arange(width // merge), indexing="ij")
        found.append(np.stack(axes).reshape(3, -1))
    return found


def _numbered(kinds: Any, blocks: dict[int, list[Any]]) -> Any:
    """Ids [3,n] of a row of token types."""
    parts, at, top = [np.zeros((3, 0), np.int64)], 0, -1
    while at < len(kinds):
        block = blocks[kinds[at]].pop(0) if kinds[at] else np.zeros((3, 1), np.int64)
        size = block.shape[1]
        if (kinds[at : at + size] != kinds[at]).any() or at + size > len(kinds):
            raise ValueError("grids and tokens do not fit")
        parts.append(block + top + 1)
        at, top = at + size, parts[-1].max()
    return np.concatenate(parts, axis=1)


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
CALLED = {"index_by_types": "hf-5.3", "index_by_markers": "hf-4.57", "positions_by_rule": "assay"}
"""Functions with a signature of somebody else's, and the call form of each."""
RIGHT = [
    *(("mrope.rotate", form.__name__) for form in ROTATIONS),
    ("mrope.positions", "in_loops"),
    *(("mrope.positions", form) for form in CALLED),
]


def _passes(operation: str, form: str, options: Options) -> None:
    if form == "reference":
        candidate = next(item for item in registry.candidates(operation) if item.name == form)
    else:
        target = {"kind": "import", "ref": f"{__name__}:{form}", "operation": operation}
        called = CALLED.get(form, "")
        candidate = Candidate(operation=operation, name=form, form=called, target=target, trusted=True)
    report = audit(registry.operation(operation), candidate, options)
    found = [(item.rule, item.case, item.dtype, item.where, item.measured, item.limit) for item in report.findings]
    assert found == []
    assert report.verdict == Verdict.PASS


def _searched(operation: str) -> bool:
    """Whether cases are generated for an operation that has a reference."""
    named = {item.name for item in registry.candidates(operation)}
    return registry.operation(operation).strategy is not None and "reference" in named


def test_there_is_a_right_function_for_each_call_form_of_positions() -> None:
    assert set(CALLED.values()) == {form.name for form in registry.operation("mrope.positions").forms}


@pytest.mark.parametrize(("operation", "form"), RIGHT)
def test_a_harmless_rewrite_passes(operation: str, form: str) -> None:
    _passes(operation, form, Options(examples=EXAMPLES))


@pytest.mark.slow
@pytest.mark.timeout(24 * 3600)
@pytest.mark.skipif(MANY == 0, reason="hours: set ASSAY_EXAMPLES to a number, such as 10000")
@pytest.mark.parametrize("operation", [name for name in registry.operations() if _searched(name)])
def test_many_examples_do_not_accuse_a_reference(operation: str) -> None:
    _passes(operation, "reference", Options(examples=MANY))


@pytest.mark.slow
@pytest.mark.timeout(24 * 3600)
@pytest.mark.skipif(MANY == 0, reason="hours: set ASSAY_EXAMPLES to a number, such as 10000")
@pytest.mark.parametrize(("operation", "form"), RIGHT)
def test_many_examples_do_not_accuse_a_rewrite(operation: str, form: str) -> None:
    _passes(operation, form, Options(examples=MANY // 20))


@pytest.mark.slow
@pytest.mark.skipif(MANY == 0, reason="half a minute of compiling: set ASSAY_EXAMPLES")
def test_a_compiled_form_passes() -> None:
    """On two cases: each combination of strides and sizes is compiled anew."""
    _passes("mrope.rotate", "compiled", Options(cases=("image", "qwen3.5")))
