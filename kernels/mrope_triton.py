"""The Triton side of the fused multimodal rotary embedding: the kernels, their tile sizes and the launches.

Letters in names: B batch, H heads, S sequence, D head dimension, R rotated dimensions, L = R / 2 lanes (one lane turns
one pair of dimensions), A position axes, T tokens of one program, C heads of one chunk.

A program owns T tokens and all their heads. The heads are cut into equal chunks of C (a power of two that divides both
head counts, so no lane idles), and every load is issued before the first store: with loads and stores taking turns, the
compiler must assume that they alias and keeps two loads in flight instead of sixteen.
"""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-untyped,assignment"
# Triton ships neither stubs nor py.typed, and the body of a kernel is Triton's language, not Python's.

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from assay.kernels import choices

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
"""Whether the kernels below were decorated for Triton's CPU interpreter."""

# pi / 2 in three fp32 pieces; turns * HIGH is exact inside an FMA, and so is what it leaves of the angle.
_PI_2_HIGH = tl.constexpr(1.5707963705062866)
_PI_2_MIDDLE = tl.constexpr(-4.371138828673793e-08)
_PI_2_LOW = tl.constexpr(-1.7151245100058819e-15)
_TWO_OVER_PI = tl.constexpr(0.6366197466850281)
_MOST_QUARTER_TURNS = tl.constexpr(4194304.0)
_LARGEST_POSITION = tl.constexpr(16777216.0)


@triton.jit
def _cos_sin(position, frequency, EXACT: tl.constexpr):
    """Cosine and sine of position * frequency, all fp32; NaN outside the supported range.

    The angle loses multiples of pi / 2 in three FMA steps, then two polynomials (fitted to |x| <= 0.92) finish: within
    two units in the last place of fp32, where the hardware's sin.approx and cos.approx are six off, for fewer issue
    slots. EXACT adds back what the fp32 product dropped.
    """
    angle = position * frequency
    turns = tl.floor(angle * _TWO_OVER_PI + 0.5)
    supported = (tl.abs(turns) <= _MOST_QUARTER_TURNS) & (tl.abs(position) <= _LARGEST_POSITION)
    turns = tl.where(supported, turns, 0.0)
    if INTERPRETED:  # float64 stands in for the FMA, which the interpreter would round twice
        x = (angle.to(tl.float64) - turns.to(tl.float64) * _PI_2_HIGH).to(tl.float32)
        x = (x.to(tl.float64) - turns.to(tl.float64) * _PI_2_MIDDLE).to(tl.float32)
        x = (x.to(tl.float64) - turns.to(tl.float64) * _PI_2_LOW).to(tl.float32)
        dropped = (position.to(tl.float64) * frequency.to(tl.float64) - angle.to(tl.float64)).to(tl.float32)
    else:
        x = tl.fma(turns, -_PI_2_HIGH, angle)
        x = tl.fma(turns, -_PI_2_MIDDLE, x)
        x = tl.fma(turns, -_PI_2_LOW, x)
        dropped = tl.fma(position, frequency, -angle)
    if EXACT:
        x += dropped
    x = tl.where(supported, x, float("nan"))
    square = x * x
    sine = x + x * square * ((-0.00019398031872697175 * square + 0.008331166580319405) * square - 0.16666635870933533)
    tail = (2.430462154734414e-05 * square - 0.0013886034721508622) * square + 0.04166661575436592
    cosine = 1.0 - (0.5 * square - square * square * tail)
    quarter = turns.to(tl.int32) & 3
    swapped = (quarter & 1) != 0
    c = tl.where(swapped, sine, cosine)
    s = tl.where(swapped, cosine, sine)
    return tl.where((quarter == 1) | (quarter == 2), -c, c), tl.where(quarter >= 2, -s, s)


@triton.jit
def _lane_axes(axes_ptr, lanes_L, HALF: tl.constexpr):
    """Which axis each lane reads; the lanes past the last one read none."""
    return tl.load(axes_ptr + lanes_L, mask=lanes_L < HALF, other=-1).to(tl.int32)


@triton.jit
def _trigonometry(tables, axes_ptr, batch, tokens_T, present_T, HALF: tl.constexpr, LANES: tl.constexpr,
                  AXES: tl.constexpr, EXACT: tl.constexpr):  # fmt: skip
    """Cosine and sine [T, L] of the tokens' positions; NaN in a lane whose axis does not exist."""
    positions_ptr, inv_freq_ptr, stride_a, stride_b, stride_s, _ = tables
    lanes_L = tl.arange(0, LANES)
    frequency = tl.load(inv_freq_ptr + lanes_L, mask=lanes_L < HALF, other=0.0)[None, :]
    rows_T = positions_ptr + batch * stride_b + tokens_T * stride_s
    if axes_ptr is None:
        position = tl.load(rows_T, mask=present_T, other=0).to(tl.float32)[:, None]
    else:
        axes_L = _lane_axes(axes_ptr, lanes_L, HALF)
        position = tl.full((1, 1), float("nan"), tl.float32)
        for a in tl.static_range(AXES):
            here_T = tl.load(rows_T + tl.full((), a, tl.int64) * stride_a, mask=present_T, other=0).to(tl.float32)
            position = tl.where((axes_L == a)[None, :], here_T[:, None], position)
    position, frequency = tl.broadcast(position, frequency)
    return _cos_sin(position, frequency, EXACT)


@triton.jit
def _stored_tables(tables, axes_ptr, batch, tokens_T, present_T, HALF: tl.constexpr, LANES: tl.constexpr,
                   AXES: tl.constexpr):  # fmt: skip
    """Cosine and sine [T, L] read from tables; NaN in a lane whose axis does not exist."""
    cos_ptr, sin_ptr, stride_a, stride_b, stride_s, stride_l = tables
    lanes_L = tl.arange(0, LANES)
    offsets = batch * stride_b + tokens_T[:, None] * stride_s + (lanes_L.to(tl.int64) * stride_l)[None, :]
    exists = present_T[:, None] & (lanes_L < HALF)[None, :] if HALF != LANES else present_T[:, None]
    if axes_ptr is not None:
        axes_L = _lane_axes(axes_ptr, lanes_L, HALF)
        offsets += (axes_L.to(tl.int64) * stride_a)[None, :]
        exists = exists & ((axes_L >= 0) & (axes_L < AXES))[None, :]
    c = tl.load(cos_ptr + offsets, mask=exists, other=float("nan"))
    s = tl.load(sin_ptr + offsets, mask=exists, other=float("nan"))
    return c.to(tl.float32), s.to(tl.float32)


@triton.jit
def _places(x, span: tl.constexpr, where, heads: tl.constexpr):
    """Pointers [T, C, PADDED] to a span of dimensions of the first chunk of heads, and which of them exist."""
    ptr, stride_b, stride_s, stride_h, stride_d = x
    START: tl.constexpr = span[0]
    WIDTH: tl.constexpr = span[1]
    PADDED: tl.constexpr = span[2]
    UNIT: tl.constexpr = heads[4]
    batch, group, tokens_T, present_T = where
    dims, heads_C = START + tl.arange(0, PADDED), tl.arange(0, heads[1]).to(tl.int64) + group * (heads[1] * heads[2])
    rows_TC = ptr + batch * stride_b + tokens_T[:, None] * stride_s + heads_C[None, :] * stride_h
    exists = present_T[:, None, None]
    if WIDTH != PADDED:
        exists = exists & (dims < START + WIDTH)[None, None, :]
    if not UNIT:  # with unit strides int32 is enough, and costs the compiler 30 registers less
        dims = dims.to(tl.int64) * stride_d
    return rows_TC[:, :, None] + dims[None, None, :], heads_C[None, :, None], exists


@triton.jit
def _load_heads(x, span: tl.constexpr, where, heads: tl.constexpr):
    """All chunks [T, C, PADDED] of a span of dimensions, in the tensor's own dtype."""
    places, heads_C, exists = _places(x, span, where, heads)
    HEADS: tl.constexpr = heads[0]
    CHUNK: tl.constexpr = heads[1]
    RAGGED: tl.constexpr = heads[3]
    chunks = ()
    for i in tl.static_range(heads[2]):
        mask = exists & (heads_C + i * CHUNK < HEADS) if RAGGED else exists
        chunks = chunks + (tl.load(places + tl.full((), i * CHUNK, tl.int64) * x[3], mask=mask),)
    return chunks


@triton.jit
def _store_heads(chunks, x, span: tl.constexpr, where, heads: tl.constexpr):
    """The opposite of `_load_heads`; the one rounding of the rotation happens here."""
    places, heads_C, exists = _places(x, span, where, heads)
    HEADS: tl.constexpr = heads[0]
    CHUNK: tl.constexpr = heads[1]
    RAGGED: tl.constexpr = heads[3]
    for i in tl.static_range(heads[2]):
        mask = exists & (heads_C + i * CHUNK < HEADS) if RAGGED else exists
        tl.store(places + tl.full((), i * CHUNK, tl.int64) * x[3], chunks[i].to(x[0].dtype.element_ty), mask=mask)


@triton.jit
def _turn_halves(mine, others, c, s, SECOND: tl.constexpr, COUNT: tl.constexpr):
    turned = ()
    for i in tl.static_range(COUNT):
        crossed = others[i].to(tl.float32) * s
        turned = turned + (tl.fma(mine[i].to(tl.float32), c, crossed if SECOND else -crossed),)
    return turned


@triton.jit
def _turn_neighbours(pairs, c, s, COUNT: tl.constexpr):
    turned = ()
    for i in tl.static_range(COUNT):
        x, y = tl.split(tl.reshape(pairs[i], [pairs[i].shape[0], pairs[i].shape[1], pairs[i].shape[2] // 2, 2]))
        x, y = x.to(tl.float32), y.to(tl.float32)
        turned = turned + (tl.reshape(tl.join(tl.fma(x, c, -(y * s)), tl.fma(y, c, x * s)), pairs[i].shape),)
    return turned


@triton.jit
def rotate_kernel(
    q, k, q_out, k_out, tables, axes_ptr, seq_len, scaling,
    HEADS_Q: tl.constexpr, HEADS_K: tl.constexpr, HALF: tl.constexpr, TAIL: tl.constexpr, AXES: tl.constexpr,
    FROM_POSITIONS: tl.constexpr, EXACT: tl.constexpr, ADJACENT: tl.constexpr, CONJUGATE: tl.constexpr,
    LANES: tl.constexpr, TAIL_A: tl.constexpr, TAIL_B: tl.constexpr, BLOCK_T: tl.constexpr,
    CHUNK: tl.constexpr, COUNT_Q: tl.constexpr, COUNT_K: tl.constexpr, RAGGED: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Turn T tokens' heads of q and k.

    q, k, q_out, k_out: (pointer, batch stride, token stride, head stride, dimension stride). tables: (cos, sin, axis
    stride, batch stride, token stride, lane stride), or (positions, inverse frequencies, ...) with FROM_POSITIONS.
    TAIL: how many unrotated dimensions to copy, TAIL_A and then (padded to a power of two) TAIL_B; in place 0.
    UNIT: all dimension strides are 1.
    """
    blocks = tl.cdiv(seq_len, BLOCK_T)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    tokens_T = (tl.program_id(0) % blocks) * BLOCK_T + tl.arange(0, BLOCK_T)
    group = tl.program_id(1).to(tl.int64) if RAGGED else tl.program_id(1).to(tl.int64) * 0
    where = (batch, group, tokens_T.to(tl.int64), tokens_T < seq_len)
    heads_q: tl.constexpr = (HEADS_Q, CHUNK, COUNT_Q, RAGGED, UNIT)
    heads_k: tl.constexpr = (HEADS_K, CHUNK, COUNT_K, RAGGED, UNIT)
    first: tl.constexpr = (0, 2 * HALF, 2 * LANES) if ADJACENT else (0, HALF, LANES)
    second: tl.constexpr = (HALF, HALF, LANES)
    tail_a: tl.constexpr = (2 * HALF, TAIL_A, TAIL_A)
    tail_b: tl.constexpr = (2 * HALF + TAIL_A, TAIL - TAIL_A, TAIL_B)

    if not FROM_POSITIONS:
        c, s = _stored_tables(tables, axes_ptr, batch, where[2], where[3], HALF, LANES, AXES)
    q1, k1 = _load_heads(q, first, where, heads_q), _load_heads(k, first, where, heads_k)
    if not ADJACENT:
        q2, k2 = _load_heads(q, second, where, heads_q), _load_heads(k, second, where, heads_k)
    if TAIL_A > 0:
        q3, k3 = _load_heads(q, tail_a, where, heads_q), _load_heads(k, tail_a, where, heads_k)
    if TAIL_B > 0:
        q4, k4 = _load_heads(q, tail_b, where, heads_q), _load_heads(k, tail_b, where, heads_k)
    if FROM_POSITIONS:
        c, s = _trigonometry(tables, axes_ptr, batch, where[2], where[3], HALF, LANES, AXES, EXACT)
        c, s = c * scaling, s * scaling
    if CONJUGATE:
        s = -s
    c, s = c[:, None, :], s[:, None, :]
    if ADJACENT:
        _store_heads(_turn_neighbours(q1, c, s, COUNT_Q), q_out, first, where, heads_q)
        _store_heads(_turn_neighbours(k1, c, s, COUNT_K), k_out, first, where, heads_k)
    else:
        _store_heads(_turn_halves(q1, q2, c, s, 0, COUNT_Q), q_out, first, where, heads_q)
        _store_heads(_turn_halves(q2, q1, c, s, 1, COUNT_Q), q_out, second, where, heads_q)
        _store_heads(_turn_halves(k1, k2, c, s, 0, COUNT_K), k_out, first, where, heads_k)
        _store_heads(_turn_halves(k2, k1, c, s, 1, COUNT_K), k_out, second, where, heads_k)
    if TAIL_A > 0:
        _store_heads(q3, q_out, tail_a, where, heads_q)
        _store_heads(k3, k_out, tail_a, where, heads_k)
    if TAIL_B > 0:
        _store_heads(q4, q_out, tail_b, where, heads_q)
        _store_heads(k4, k_out, tail_b, where, heads_k)


@triton.jit
def tables_kernel(
    tables, axes_ptr, cos_out_ptr, sin_out_ptr, seq_len, scaling, HALF: tl.constexpr, LANES: tl.constexpr,
    AXES: tl.constexpr, EXACT: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Merged half tables [B, S, L] of T tokens; `tables` as in `rotate_kernel` with FROM_POSITIONS."""
    blocks = tl.cdiv(seq_len, BLOCK_T)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    tokens_T = (tl.program_id(0) % blocks) * BLOCK_T + tl.arange(0, BLOCK_T)
    present_T = tokens_T < seq_len
    tokens_T = tokens_T.to(tl.int64)
    c, s = _trigonometry(tables, axes_ptr, batch, tokens_T, present_T, HALF, LANES, AXES, EXACT)
    lanes_L = tl.arange(0, LANES)
    offsets = (batch * seq_len + tokens_T)[:, None] * HALF + lanes_L[None, :]
    exists = present_T[:, None] & (lanes_L < HALF)[None, :]
    tl.store(cos_out_ptr + offsets, (c * scaling).to(cos_out_ptr.dtype.element_ty), mask=exists)
    tl.store(sin_out_ptr + offsets, (s * scaling).to(sin_out_ptr.dtype.element_ty), mask=exists)


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """How one launch cuts its tensors; the field names are the kernel's."""

    LANES: int
    TAIL_A: int
    TAIL_B: int
    BLOCK_T: int
    CHUNK: int
    COUNT_Q: int
    COUNT_K: int
    RAGGED: bool
    groups: int
    warps: int


_WARPS = 4


def shape_class(heads_q: int, heads_k: int, half: int, tail: int, itemsize: int) -> str:
    """What `choices` calls these heads: how many, the channels of each that are turned and that are copied, bytes."""
    return f"{heads_q}/{heads_k} heads, {2 * half}+{tail} channels, {itemsize} bytes"


def tiles(
    heads_q: int, heads_k: int, half: int, tail: int, itemsize: int, *, warps: int = 4, registers: int = 96,
    chunk: int = 8,
) -> Tiles:  # fmt: skip
    """Tile sizes for these head counts: 16 bytes per thread and access, at most `registers` of data in flight.

    They follow from the shape instead of a search at the first call, which would time kernels inside a training step
    and could choose differently on two ranks. Head counts whose common power of two is small (27 and 9, 64 and 4) are
    shared out over several programs. chunk: the most heads of one tile.
    """
    common = math.gcd(heads_q, heads_k) or 1
    chunk = min(common & -common, chunk)
    lanes = triton.next_power_of_2(half)
    tail_a = 1 << (tail.bit_length() - 1) if tail else 0
    tail_b = triton.next_power_of_2(tail - tail_a) if tail > tail_a else 0
    lane_threads = chunk * max(1, lanes * itemsize // 16)
    block_t = max(1, warps * 32 // lane_threads)
    chunk_registers = block_t * chunk * (2 * lanes + tail_a + tail_b) * itemsize / (warps * 32 * 4)
    count_q, count_k, groups = heads_q // chunk, heads_k // chunk, 1
    while (count_q + count_k) * chunk_registers > registers and max(count_q, count_k) > 1:
        groups += 1
        count_q, count_k = (math.ceil(heads / chunk / groups) for heads in (heads_q, heads_k))
    return Tiles(
        LANES=lanes, TAIL_A=tail_a, TAIL_B=tail_b, BLOCK_T=block_t, CHUNK=chunk, COUNT_Q=count_q, COUNT_K=count_k,
        RAGGED=groups > 1, groups=groups, warps=warps,
    )  # fmt: skip


def _lane_stride(table: Tensor, half: int, *, adjacent: bool) -> int:
    """Elements between neighbouring lanes; a full-width table holds each lane twice, side by side or L apart."""
    doubled = table.shape[-1] == 2 * half and adjacent
    return table.stride(-1) * (2 if doubled else 1)


def _operand(x: Tensor, *, folded: bool) -> tuple[Any, ...]:
    """(pointer, batch, token, head, dimension stride) of x [B, H, S, D]; dense heads are known when compiling."""
    batch, head, token, dim = x.stride()
    return (
        x,
        batch,
        batch if folded and x.shape[2] == 1 else token,
        tl.constexpr(head) if head == x.shape[3] else head,
        dim,
    )


def _batch_folds(x: Tensor, batch_dim: int, token_dim: int) -> bool:
    """Whether the batch continues the sequence in memory, so that both can be walked as one."""
    tokens = x.shape[token_dim]
    return tokens == 1 or x.stride(batch_dim) == tokens * x.stride(token_dim)


def launch_rotate(
    q: Tensor, k: Tensor, q_out: Tensor, k_out: Tensor, tables: tuple[Tensor, Tensor], axes: Tensor | None, *,
    half: int, adjacent: bool, conjugate: bool, from_positions: bool, exact: bool = True, scaling: float = 1.0,
) -> None:  # fmt: skip
    """Rotate q [B, Hq, S, D] and k [B, Hk, S, D] into q_out and k_out (the same tensors: in place), any strides.

    tables: cos and sin [A, B or 1, S, L or 2L], or positions [A, B or 1, S] and inverse frequencies [L].
    """
    batch, heads_q, seq_len, head_dim = q.shape
    if not batch or not seq_len or not heads_q + k.shape[1]:
        return
    first = tables[0]
    tail = 0 if q_out is q else head_dim - 2 * half
    shape = (heads_q, k.shape[1], half, tail, q.element_size())
    cut = tiles(*shape, **choices.look_up("rotary.rotate", shape_class(*shape), q))
    folds = (
        first.shape[1] == batch
        and _batch_folds(first, 1, 2)
        and all(_batch_folds(x, 0, 2) for x in (q, k, q_out, k_out))
    )
    table_batch = 0 if first.shape[1] == 1 else first.stride(1)
    table_token = table_batch if folds and seq_len == 1 else first.stride(2)
    lane = 1 if from_positions else _lane_stride(first, half, adjacent=adjacent)
    if folds:
        batch, seq_len = 1, batch * seq_len
    programs = batch * triton.cdiv(seq_len, cut.BLOCK_T)
    with torch.cuda.device(q.device) if q.is_cuda else nullcontext():
        rotate_kernel[(programs, cut.groups)](
            *(_operand(x, folded=folds) for x in (q, k, q_out, k_out)),
            (*tables, first.stride(0), table_batch, table_token, lane), axes, seq_len, scaling,
            HEADS_Q=heads_q, HEADS_K=k.shape[1], HALF=half, TAIL=tail, AXES=first.shape[0],
            FROM_POSITIONS=from_positions, EXACT=exact, ADJACENT=adjacent, CONJUGATE=conjugate,
            LANES=cut.LANES, TAIL_A=cut.TAIL_A, TAIL_B=cut.TAIL_B, BLOCK_T=cut.BLOCK_T, CHUNK=cut.CHUNK,
            COUNT_Q=cut.COUNT_Q, COUNT_K=cut.COUNT_K, RAGGED=cut.RAGGED,
            UNIT=all(x.stride(3) == 1 for x in (q, k, q_out, k_out)), num_warps=cut.warps,
        )  # fmt: skip


def launch_tables(
    positions: Tensor,
    inv_freq: Tensor,
    axes: Tensor | None,
    cos_out: Tensor,
    sin_out: Tensor,
    *,
    exact: bool,
    scaling: float,
) -> None:
    """Fill cos_out and sin_out [B, S, L] (contiguous) from positions [A, B, S] and inverse frequencies [L]."""
    axis_count, batch, seq_len = positions.shape
    if not cos_out.numel():
        return
    lanes = triton.next_power_of_2(inv_freq.numel())
    block_t = max(1, _WARPS * 32 * 16 // cos_out.element_size() // lanes)  # 16 bytes per thread and store
    strides = (positions.stride(0), positions.stride(1), positions.stride(2), 1)
    with torch.cuda.device(positions.device) if positions.is_cuda else nullcontext():
        tables_kernel[(batch * triton.cdiv(seq_len, block_t),)](
            (positions, inv_freq, *strides), axes, cos_out, sin_out, seq_len, scaling,
            HALF=inv_freq.numel(), LANES=lanes, AXES=axis_count, EXACT=exact, BLOCK_T=block_t, num_warps=_WARPS,
        )  # fmt: skip
