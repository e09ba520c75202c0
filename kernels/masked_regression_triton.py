"""The Triton side of the masked regression: the kernel, its tile sizes and the launches.

Letters in names: N rows (tokens), R rows of one program, D channels, C channels of one program, T tokens of a target
grid.

One kernel does everything: it looks up where a row's target is, brings the target to mean 0 and variance 1 where that
is asked for, and has loss and slope while both rows are in registers. It adds its losses to one number per program,
stores every loss, stores the gradient, or does several of these. Tokens that the mask leaves out are not loaded; single
elements that it leaves out are loaded with their token and then dropped.
"""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-untyped,assignment"
# Triton ships neither stubs nor py.typed, and the body of a kernel is Triton's language, not Python's.

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from assay.kernels import choices

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
"""Whether the kernels below were decorated for Triton's CPU interpreter."""


@triton.jit
def _power(size, power):
    """|d|^(power - 1), at 0 any finite number, and |d|^power / power.

    In float64: at power 3 the hardware's fp32 logarithm alone would cost four units in the last place.
    """
    nothing = size == 0.0
    wide = tl.where(nothing, 1.0, size).to(tl.float64)
    slope = tl.exp2((power - 1.0) * tl.log2(wide))
    loss = slope * wide / power
    return slope.to(tl.float32), tl.where(nothing, 0.0, loss.to(tl.float32))


@triton.jit
def _elementwise(d, number, KIND: tl.constexpr):
    """(loss, its derivative by d) of a difference, both 0 at 0 and NaN at NaN; `number` is beta or the power."""
    if KIND == "mse":
        loss, slope = d * d, 2.0 * d
    elif KIND == "half_square":
        loss, slope = 0.5 * d * d, d
    elif KIND == "smooth_l1":
        slope = tl.minimum(d * (1.0 / number), 1.0, tl.PropagateNan.ALL)
        slope = tl.maximum(slope, -1.0, tl.PropagateNan.ALL)
        loss = slope * (d - 0.5 * number * slope)
    else:
        size = tl.abs(d)
        loss, slope = size, tl.where(d > 0.0, 1.0, tl.where(d < 0.0, -1.0, d))
        if KIND == "power":
            raised, loss = _power(size, number)
            slope *= raised
        else:
            tl.static_assert(KIND == "l1")
    return loss, slope


@triton.jit
def _direction(x_RC):
    """(x over its norm [R, C], 1 over its norm [R], whether it is not 0 [R]); all 0 for a row of zeros.

    Rows of very small or very large numbers are first multiplied by a power of two, so that no square leaves fp32.
    """
    largest_R = tl.max(tl.abs(x_RC), axis=1)
    scale_R = tl.where(largest_R < 2.0**-40, 2.0**64, tl.where(largest_R > 2.0**40, 2.0**-80, 1.0))
    x_RC *= scale_R[:, None]
    square_R = tl.sum(x_RC * x_RC, axis=1)
    exists_R = square_R != 0.0
    inverse_R = tl.where(exists_R, 1.0 / tl.sqrt_rn(tl.where(exists_R, square_R, 1.0)), 0.0)
    return x_RC * inverse_R[:, None], inverse_R * scale_R, exists_R


@triton.jit
def _cosine(p_RC, t_RC):
    """(1 - cos [R], its derivative by p [R, C]).

    As half the squared distance of the two directions, which is not negative and does not cancel where they agree.
    """
    p_RC, inverse_R, p_exists_R = _direction(p_RC)
    t_RC, _, t_exists_R = _direction(t_RC)
    cosine_R = tl.sum(p_RC * t_RC, axis=1)
    apart_RC = p_RC - t_RC
    loss_R = tl.where(p_exists_R & t_exists_R, 0.5 * tl.sum(apart_RC * apart_RC, axis=1), 1.0 - cosine_R)
    return loss_R, (cosine_R[:, None] * p_RC - t_RC) * inverse_R[:, None]


@triton.jit
def _normalised(t_RC, read_R, inside_C, eps, D: tl.constexpr, BLOCK_C: tl.constexpr):
    """Each row that is read with mean 0 and variance 1 over its D channels; 0 past them and elsewhere."""
    t_RC -= (tl.sum(t_RC, axis=1) / D)[:, None]
    if D != BLOCK_C:
        t_RC = tl.where(inside_C[None, :], t_RC, 0.0)
    variance_R = tl.sum(t_RC * t_RC, axis=1) / D
    inverse_R = 1.0 / tl.sqrt_rn(tl.where(read_R, variance_R + eps, 1.0))
    return t_RC * inverse_R[:, None]


@triton.jit
def _choice(mask_ptr, row_R, counts_R, columns_C, inside_C, D: tl.constexpr, BY_ELEMENT: tl.constexpr):
    """(rows that are read [R], elements that are read [R, C], elements that count [R, C])."""
    if BY_ELEMENT:  # by single elements, loads would be narrow: they are read with their row
        places_RC = row_R[:, None] * D + columns_C[None, :]
        entry_RC = tl.load(mask_ptr + places_RC, mask=counts_R[:, None] & inside_C[None, :], other=0) != 0
        read_R = tl.max(entry_RC.to(tl.int32), axis=1) != 0
        read_RC = read_R[:, None] & inside_C[None, :]
    else:
        read_R = tl.load(mask_ptr + row_R, mask=counts_R, other=0) != 0
        read_RC = read_R[:, None] & inside_C[None, :]
        entry_RC = read_RC
    return read_R, read_RC, entry_RC


@triton.jit
def _goal(target, indices_ptr, outer_R, inner_R, row_R, columns_C, read_R, read_RC):
    """The target [R, C] in fp32, 0 where not read, NaN in a row whose index lies outside the grid."""
    ptr, tokens, stride_o, stride_t = target
    at_R = inner_R
    if indices_ptr is not None:
        at_R = tl.load(indices_ptr + row_R, mask=read_R, other=0)
        known_R = (at_R >= 0) & (at_R < tokens)
        at_R, read_RC = tl.where(known_R, at_R, 0), read_RC & known_R[:, None]
    places_RC = ptr + (outer_R * stride_o + at_R * stride_t)[:, None] + columns_C[None, :]
    t_RC = tl.load(places_RC, mask=read_RC, other=0.0).to(tl.float32)
    if indices_ptr is not None:
        t_RC = tl.where(known_R[:, None], t_RC, float("nan"))
    return t_RC


@triton.jit
def _weights(weight_ptr, row_R, read_R):
    weight_R = tl.where(read_R, 1.0, 0.0)
    if weight_ptr is not None:
        weight_R = tl.load(weight_ptr + row_R, mask=read_R, other=0.0).to(tl.float32)
    return weight_R


@triton.jit
def _factor(factor_R, upstream, outer_R, inner_R, columns_C, read_R, read_RC, BY: tl.constexpr):
    """What the slope is multiplied by: [R, 1], or [R, C] with one upstream gradient per element; 0 where not read."""
    ptr, stride_o, stride_i, stride_c = upstream
    if BY == "all":
        factor_R *= tl.load(ptr)
    elif BY == "token":
        factor_R *= tl.load(ptr + outer_R * stride_o + inner_R * stride_i, mask=read_R, other=0.0)
    factor_RC = tl.where(read_R, factor_R, 0.0)[:, None]
    if BY == "element":
        places_RC = (outer_R * stride_o + inner_R * stride_i)[:, None] + (columns_C.to(tl.int64) * stride_c)[None, :]
        factor_RC = factor_RC * tl.load(ptr + places_RC, mask=read_RC, other=0.0)
    return factor_RC


@triton.jit
def regression_kernel(
    prediction, gradient, target, mask_ptr, indices_ptr, weight_ptr, divisor_ptr, upstream, losses_ptr, rows, number,
    eps, D: tl.constexpr, KIND: tl.constexpr, NORMALISE: tl.constexpr, BY_ELEMENT: tl.constexpr, LOSSES: tl.constexpr,
    UPSTREAM: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """R rows of C channels: their losses, their gradient, or both.

    prediction: (pointer, rows per outer step, outer stride, inner stride). gradient: the same, may be the same memory;
    its pointer is None for none. target: (pointer, T, outer stride, token stride). mask_ptr: bytes [N], or [N, D] with
    BY_ELEMENT. indices_ptr [N] and weight_ptr [N]: may be None. divisor_ptr: one fp32; infinite: nothing is read.
    upstream: (pointer, outer, inner, channel stride), which UPSTREAM says how to read: "one" (not at all),
    "all", "token" or "element". LOSSES: "sum" (one per program), "each" (one per entry) or "no". number: beta or power.
    """
    row_R = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns_C = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside_C, exists_R = columns_C < D, row_R < rows
    ptr, per_outer, stride_o, stride_i = prediction
    outer_R, inner_R = (row_R // per_outer).to(tl.int64), (row_R % per_outer).to(tl.int64)
    row_R = row_R.to(tl.int64)
    divisor = tl.load(divisor_ptr)
    counts_R = row_R < tl.where(divisor == float("inf"), 0, rows)
    read_R, read_RC, entry_RC = _choice(mask_ptr, row_R, counts_R, columns_C, inside_C, D, BY_ELEMENT)
    weight_R = _weights(weight_ptr, row_R, read_R)

    at_RC = (outer_R * stride_o + inner_R * stride_i)[:, None] + columns_C[None, :]
    p_RC = tl.load(ptr + at_RC, mask=read_RC, other=0.0).to(tl.float32)
    t_RC = _goal(target, indices_ptr, outer_R, inner_R, row_R, columns_C, read_R, read_RC)
    if gradient[0] is not None:  # its loads ahead of all stores
        factor_RC = _factor(weight_R / divisor, upstream, outer_R, inner_R, columns_C, read_R, read_RC, UPSTREAM)
    if NORMALISE:
        t_RC = _normalised(t_RC, read_R, inside_C, eps, D, BLOCK_C)

    if KIND == "cosine":
        loss_R, slope_RC = _cosine(p_RC, t_RC)
        loss_R = tl.where(read_R, loss_R, 0.0) * weight_R
        if LOSSES == "each":
            tl.store(losses_ptr + row_R, loss_R, mask=exists_R)
    else:  # what is not read has no difference, and so neither loss nor slope
        loss_RC, slope_RC = _elementwise(p_RC - t_RC, number, KIND)
        if BY_ELEMENT:
            loss_RC = tl.where(entry_RC, loss_RC, 0.0)
        if LOSSES == "each":
            places_RC = row_R[:, None] * D + columns_C[None, :]
            tl.store(losses_ptr + places_RC, loss_RC * weight_R[:, None], mask=exists_R[:, None] & inside_C[None, :])
        loss_R = tl.sum(loss_RC, axis=1) * weight_R
    if LOSSES == "sum":
        tl.store(losses_ptr + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), tl.sum(loss_R))
    if gradient[0] is not None:
        out, _, stride_o, stride_i = gradient
        at_RC = (outer_R * stride_o + inner_R * stride_i)[:, None] + columns_C[None, :]
        slope_RC *= factor_RC
        if BY_ELEMENT:
            slope_RC = tl.where(entry_RC, slope_RC, 0.0)
        tl.store(out + at_RC, slope_RC.to(out.dtype.element_ty), mask=exists_R[:, None] & inside_C[None, :])


@triton.jit
def tally_kernel(
    entries_ptr, weight_ptr, normaliser_ptr, count_ptr, divisor_ptr, rows, PER: tl.constexpr, MEAN: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One program adds the entries of all rows, `entries_ptr` [N] times PER, and finds the divisor.

    The divisor is 1 without MEAN; else the normaliser or, where normaliser_ptr is None, the sum of the entries'
    weights. Where nothing counts, or those sum to 0, it is infinite: the mean and all gradients are then 0.
    """
    rows_N = tl.arange(0, BLOCK)
    counts_N, weights_N = tl.zeros([BLOCK], tl.int64), tl.zeros([BLOCK], tl.float32)
    start = 0
    while start < rows:
        entries_N = tl.load(entries_ptr + start + rows_N, mask=start + rows_N < rows, other=0).to(tl.int64)
        counts_N += entries_N
        if weight_ptr is not None:
            weight_N = tl.load(weight_ptr + start + rows_N, mask=entries_N > 0, other=0.0).to(tl.float32)
            weights_N += weight_N * entries_N.to(tl.float32)
        start += BLOCK
    count = tl.sum(counts_N) * PER
    tl.store(count_ptr, count)
    divisor = 1.0
    if MEAN:
        if normaliser_ptr is not None:
            divisor, idle = tl.load(normaliser_ptr).to(tl.float32), count == 0
        else:
            divisor = tl.sum(weights_N) * PER if weight_ptr is not None else count.to(tl.float32)
            idle = divisor == 0.0
        divisor = tl.where(idle, float("inf"), divisor)
    tl.store(divisor_ptr, divisor)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How an entry is judged."""

    kind: str
    """l1, smooth_l1, mse, power or cosine."""
    number: float = 0.0
    """beta of smooth_l1, exponent of power."""
    normalise: bool = False
    eps: float = 1e-5

    @property
    def whole_rows(self) -> bool:
        """Whether one program needs all channels of a row."""
        return self.normalise or self.kind == "cosine"

    def arguments(self) -> dict[str, Any]:
        """The kernel's arguments; the powers 1 and 2 need no logarithm."""
        kind = {1.0: "l1", 2.0: "half_square"}.get(self.number, "power") if self.kind == "power" else self.kind
        return {"number": self.number, "eps": self.eps, "KIND": kind, "NORMALISE": self.normalise}


MOST_CHANNELS = 8192
"""Of a row that one program has to hold whole."""
_LEAST_CUT = 128  # channels; wider blocks are cut until at most one lane in nine is idle
_MOST_ROWS = 256  # each has its own addresses, in 64 bits
_REDUCED = 4096


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """How one launch cuts its tensors."""

    rows: int
    channels: int
    warps: int


def shape_class(channels: int, rules: Rules, itemsize: int) -> str:
    """What `choices` calls rows of so many channels: the power of two that they fit, the loss, bytes of an element."""
    whole = ", whole rows" if rules.whole_rows else ""
    return f"{triton.next_power_of_2(channels)} channels, {rules.arguments()['KIND']}{whole}, {itemsize} bytes"


def tiles(channels: int, rules: Rules, *, elements: int = 2048, per_thread: int = 0) -> Tiles:
    """About `elements` a program; a wider row is cut, or gets more warps where it may not be.

    Where a row's sums need shuffles and barriers, a thread takes 32 elements, else 16, of which fp64 powers fill the
    registers, unless `per_thread` says otherwise. The sizes follow from the shape instead of a search at the first
    call, which would time kernels inside a training step.
    """
    block = triton.next_power_of_2(channels)
    if not rules.whole_rows:
        block = min(block, elements)
        while block > _LEAST_CUT and 8 * block * triton.cdiv(channels, block) > 9 * channels:
            block //= 2
    rows = min(max(1, elements // block), _MOST_ROWS)
    per_thread = per_thread or (32 if rules.whole_rows and rules.kind != "power" else 16)
    return Tiles(rows=rows, channels=block, warps=min(32, max(1, rows * block // (32 * per_thread))))


def tiles_for(x: Tensor, rules: Rules) -> Tiles:
    """The tiles for rows of x [..., D]: as was chosen for its chip, else by the formula."""
    shape = shape_class(x.shape[-1], rules, x.element_size())
    return tiles(x.shape[-1], rules, **choices.look_up("masked_regression.rows", shape, x))


@dataclass(frozen=True, kw_only=True)
class Operands:
    """What one launch reads: prediction [O, I, D] and target [O, T, D] with stride 1 in D, the rest flat or None."""

    prediction: Tensor
    target: Tensor
    mask: Tensor
    """Bytes, contiguous: [O * I], or [O * I * D] where `by_element`."""
    by_element: bool
    indices: Tensor | None
    weight: Tensor | None
    divisor: Tensor


def _here(x: Tensor) -> AbstractContextManager[Any]:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _operand(x: Tensor | None, like: Tensor) -> tuple[Any, ...]:
    """(pointer, rows per outer step, outer stride, inner stride); dense rows are known when compiling."""
    outer, inner, _ = (like if x is None else x).stride()
    return x, max(like.shape[1], 1), outer, tl.constexpr(inner) if inner == like.shape[2] else inner


def _launch(
    read: Operands, rules: Rules, *, losses: Tensor | None, each: bool, gradient: Tensor | None, upstream: Tensor | None
) -> None:
    outer, inner, channels = read.prediction.shape
    rows = outer * inner
    if not rows:
        return
    cut = tiles_for(read.prediction, rules)
    strides = (*upstream.stride(), 0, 0, 0)[:3] if upstream is not None else (0, 0, 0)
    by = "one" if upstream is None else ("all", "", "token", "element")[upstream.dim()]
    target = read.target
    with _here(read.prediction):
        regression_kernel[(triton.cdiv(rows, cut.rows), triton.cdiv(channels, cut.channels))](
            _operand(read.prediction, read.prediction), _operand(gradient, read.prediction),
            (target, *_operand(target, target)[1:]), read.mask, read.indices, read.weight,
            read.divisor, (upstream, *strides), losses, rows, **rules.arguments(), D=channels,
            BY_ELEMENT=read.by_element, LOSSES="no" if losses is None else "each" if each else "sum", UPSTREAM=by,
            BLOCK_R=cut.rows, BLOCK_C=cut.channels, num_warps=cut.warps,
        )  # fmt: skip


def launch_tally(
    entries: Tensor, weight: Tensor | None, normaliser: Tensor | None, *, per: int, mean: bool
) -> tuple[Tensor, Tensor]:
    """(count int64, divisor fp32), 0-d, of contiguous entries [N] (an integer dtype) times `per`."""
    count = torch.empty((), dtype=torch.int64, device=entries.device)
    divisor = torch.empty((), dtype=torch.float32, device=entries.device)
    block = min(triton.next_power_of_2(max(entries.numel(), 1)), _REDUCED)
    with _here(entries):
        tally_kernel[(1,)](
            entries, weight, normaliser, count, divisor, entries.numel(), PER=per, MEAN=mean, BLOCK=block, num_warps=8
        )
    return count, divisor


def launch_value(read: Operands, rules: Rules, gradient: Tensor | None = None) -> Tensor:
    """The sum of all losses over the divisor, fp32 0-d; with the gradient of it [O, I, D], if wanted.

    The programs' sums are added by torch, in a fixed order.
    """
    outer, inner, channels = read.prediction.shape
    cut = tiles_for(read.prediction, rules)
    programs = triton.cdiv(outer * inner, cut.rows) * triton.cdiv(channels, cut.channels)
    sums = torch.empty(programs, dtype=torch.float32, device=read.prediction.device)
    _launch(read, rules, losses=sums, each=False, gradient=gradient, upstream=None)
    return sums.sum() / read.divisor


def launch_each(read: Operands, rules: Rules) -> Tensor:
    """Every loss, fp32: [O, I, D], or [O, I] for the cosine."""
    shape = read.prediction.shape[:2] if rules.kind == "cosine" else read.prediction.shape
    losses = torch.empty(shape, dtype=torch.float32, device=read.prediction.device)
    _launch(read, rules, losses=losses, each=True, gradient=None, upstream=None)
    return losses


def launch_gradient(read: Operands, rules: Rules, upstream: Tensor, gradient: Tensor) -> None:
    """Fill gradient [O, I, D], which may be the prediction; upstream: fp32, 0-d or shaped as the losses."""
    _launch(read, rules, losses=None, each=False, gradient=gradient, upstream=upstream)
