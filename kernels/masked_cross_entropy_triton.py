"""The Triton kernels of the masked cross-entropy; `masked_cross_entropy_launch` cuts the work and starts them.

Letters in names: N rows (tokens), V vocabulary, C columns of one block.

One program owns one row and walks it in blocks. A block's maximum is taken before its exponentials, so that there is
one exponential per logit and pass; running maxima per thread would take three. Sums are made in a fixed order, without
atomics: equal inputs give equal bits.

With x the logits after the soft-cap, peak their maximum and mass the sum of exp(x - peak), the loss of a row is

    log mass - (x[y] - peak) - smoothing * mean(x - x[y]) + z_loss * (peak + log mass)^2

in which no two large rounded numbers are subtracted: moving all logits by 120 costs no accuracy.
"""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-untyped,assignment"
# Triton ships neither stubs nor py.typed, and the body of a kernel is Triton's language, not Python's.

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
"""Whether the kernels below were decorated for Triton's CPU interpreter."""


@triton.jit
def _tanh(u):
    """The hyperbolic tangent in fp32, within two units in the last place (hardware's tanh.approx errs by 5e-4).

    Small arguments take an odd polynomial (Cephes), for which 1 - 2 / (exp(2u) + 1) would cancel.
    """
    square = u * u
    small = (((-5.70498872745e-3 * square + 2.06390887954e-2) * square - 5.37397155531e-2) * square
             + 1.33314422036e-1) * square - 3.33332819422e-1  # fmt: skip
    return tl.where(tl.abs(u) < 0.625, u + u * square * small, 1.0 - 2.0 / (tl.exp(2.0 * u) + 1.0))


@triton.jit
def _exp(x):
    """The exponential of fp32 numbers of at most about 0, by one instruction; 0 where it is below 2^-126.

    `tl.exp` spends three more on numbers below that, which any sum here loses: the largest term is 1.
    """
    if INTERPRETED:
        power = tl.exp(x)
    else:
        power = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x * 1.4426950408889634], dtype=tl.float32, is_pure=True, pack=1
        )
    return power


@triton.jit
def _capped(x, softcap, CAPPED: tl.constexpr):
    if CAPPED:
        x = softcap * _tanh(x / softcap)
    return x


@triton.jit
def _read(row_ptr, columns_C, V, CAPPED: tl.constexpr):
    """One block of logits as they are stored; past the vocabulary -inf, or what the soft-cap takes (`_widened`)."""
    return tl.load(row_ptr + columns_C, mask=columns_C < V, other=0.0 if CAPPED else -float("inf"))


@triton.jit
def _widened(x, columns_C, softcap, V, CAPPED: tl.constexpr, WHOLE: tl.constexpr):
    """A block in fp32 under the soft-cap, -inf past the vocabulary. WHOLE: no block reaches past it."""
    x = _capped(x.to(tl.float32), softcap, CAPPED)
    if CAPPED and not WHOLE:
        x = tl.where(columns_C < V, x, -float("inf"))
    return x


@triton.jit
def _write(row_ptr, columns_C, values, V: tl.constexpr, WHOLE: tl.constexpr):
    rounded = values.to(row_ptr.dtype.element_ty)
    if WHOLE:
        tl.store(row_ptr + columns_C, rounded)
    else:
        tl.store(row_ptr + columns_C, rounded, mask=columns_C < V)


@triton.jit
def _row(x, row):
    """The pointer to a row of x: (pointer, rows per outer step, outer stride, inner stride)."""
    ptr, inner_rows, outer, inner = x
    return ptr + (row // inner_rows).to(tl.int64) * outer + (row % inner_rows).to(tl.int64) * inner


@triton.jit
def _label(labels_ptr, row, length, ignore_index, SHIFT: tl.constexpr):
    """The label that a row is scored against, ignore_index where it has none; and where that label stands."""
    if SHIFT:  # the last position of a sequence has no successor
        has_next = row % length != length - 1
        return tl.load(labels_ptr + row + 1, mask=has_next, other=ignore_index), row + 1
    return tl.load(labels_ptr + row), row


@triton.jit
def _is_idle(label, divisor_ptr, ignore_index):
    """Whether a row is not scored, itself or (an infinite divisor) with all others."""
    idle = label == ignore_index
    if divisor_ptr is not None:
        idle = idle | (tl.load(divisor_ptr) == float("inf"))
    return idle


@triton.jit
def _statistics(row_ptr, pivot, softcap, V: tl.constexpr, BLOCK: tl.constexpr, CAPPED: tl.constexpr,
                SMOOTHED: tl.constexpr):  # fmt: skip
    """(maximum, sum of exp(x - maximum), sum of x - pivot) of one row."""
    WHOLE: tl.constexpr = V % BLOCK == 0
    columns_C = tl.arange(0, BLOCK)
    peak, mass, lean = -float("inf"), 0.0, 0.0
    ahead = _read(row_ptr, columns_C, V, CAPPED)
    for start in range(0, V, BLOCK):
        x = _widened(ahead, columns_C, softcap, V - start, CAPPED, WHOLE)
        ahead = _read(row_ptr + start + BLOCK, columns_C, V - start - BLOCK, CAPPED)
        higher = tl.maximum(peak, tl.max(x))
        centre = tl.where(higher == -float("inf"), 0.0, higher)  # so far only logits of -inf: exp(x - centre) is 0
        mass = mass * tl.exp(peak - centre) + tl.sum(_exp(x - centre))
        if SMOOTHED:
            lean += tl.sum(tl.where(columns_C < V - start, x - pivot, 0.0))
        peak = higher
    return peak, mass, lean


@triton.jit
def _loss(at_label, peak, mass, lean, numbers, V: tl.constexpr, SMOOTHED: tl.constexpr, SQUARED: tl.constexpr):
    log_mass = tl.log(mass)
    loss = log_mass - (at_label - peak)
    if SMOOTHED:
        loss -= numbers[1] * (lean / V)
    if SQUARED:
        lse = peak + log_mass
        loss += numbers[2] * lse * lse
    return loss


@triton.jit
def _coefficient(weight_ptr, divisor_ptr, place, known):
    """What the gradient of a row is multiplied by; NaN where the label is outside the vocabulary."""
    factor = 1.0
    if weight_ptr is not None:
        factor = tl.load(weight_ptr + place).to(tl.float32)
    if divisor_ptr is not None:
        factor /= tl.load(divisor_ptr)
    return tl.where(known, factor, float("nan"))


@triton.jit
def _slope(x, hit, peak, mass, numbers, factor, V: tl.constexpr, CAPPED: tl.constexpr, SMOOTHED: tl.constexpr,
           SQUARED: tl.constexpr):  # fmt: skip
    """The derivative by logits in fp32. hit: 1 for the label's, 0 for others; None: x has only others."""
    pull = factor / mass
    if SQUARED:
        pull *= 1.0 + 2.0 * numbers[2] * (peak + tl.log(mass))
    return _bent(_exp(x - peak) * pull, hit, x, numbers, factor, V, CAPPED, SMOOTHED)


@triton.jit
def _bent(slope, hit, x, numbers, factor, V: tl.constexpr, CAPPED: tl.constexpr, SMOOTHED: tl.constexpr):
    """What the label, the smoothing and the soft-cap make of the derivative of the row's log mass. x: under the cap."""
    if hit is not None:
        slope -= hit * (factor * (1.0 - numbers[1]) if SMOOTHED else factor)
    if SMOOTHED:
        slope -= factor * numbers[1] / V
    if CAPPED:
        t = x / numbers[0]
        slope *= (1.0 - t) * (1.0 + t)
    return slope


@triton.jit
def _write_label(target_ptr, slope, known):
    """The label's entry of the gradient, rounded once, over what its block has left there.

    This spares each logit a comparison. Sums over the row, and so a barrier of the program, must stand between the
    reading of the label's logit and the block's being written.
    """
    tl.debug_barrier()  # another thread has stored the block
    tl.store(target_ptr, slope.to(target_ptr.dtype.element_ty), mask=known)


@triton.jit
def rows_kernel(
    logits, labels_ptr, weight_ptr, divisor_ptr, losses_ptr, peaks_ptr, masses_ptr, length, ignore_index, numbers,
    V: tl.constexpr, BLOCK: tl.constexpr, SHIFT: tl.constexpr, CAPPED: tl.constexpr, SMOOTHED: tl.constexpr,
    SQUARED: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    """The weighted loss of one row, 0 where it is ignored; with GRADIENT its derivative is written over its logits.

    logits: (pointer, rows per outer step, outer stride, inner stride). length: the sequence length, for SHIFT.
    numbers: (softcap, smoothing, z_loss). weight_ptr, divisor_ptr: may be None, for 1. peaks_ptr, masses_ptr: where
    the statistics are kept for a later pass, or None. An ignored row is not read.
    """
    WHOLE: tl.constexpr = V % BLOCK == 0
    row = tl.program_id(0)
    row_ptr = _row(logits, row)
    columns_C = tl.arange(0, BLOCK)
    label, place = _label(labels_ptr, row, length, ignore_index, SHIFT)
    if _is_idle(label, divisor_ptr, ignore_index):
        tl.store(losses_ptr + row, 0.0)
        if peaks_ptr is not None:
            tl.store(peaks_ptr + row, 0.0)
            tl.store(masses_ptr + row, 1.0)
        if GRADIENT:
            for start in range(0, V, BLOCK):
                _write(row_ptr + start, columns_C, tl.zeros([BLOCK], tl.float32), V - start, WHOLE)
    else:
        known = (label >= 0) & (label < V)
        at_label = tl.load(row_ptr + label, mask=known, other=float("nan")).to(tl.float32)
        at_label = _capped(at_label, numbers[0], CAPPED)
        pivot = tl.where(at_label == -float("inf"), 0.0, at_label)
        peak, mass, lean = _statistics(row_ptr, pivot, numbers[0], V, BLOCK, CAPPED, SMOOTHED)
        loss = _loss(at_label, peak, mass, lean, numbers, V, SMOOTHED, SQUARED)
        if weight_ptr is not None:
            loss *= tl.load(weight_ptr + place).to(tl.float32)
        tl.store(losses_ptr + row, loss)
        if peaks_ptr is not None:
            tl.store(peaks_ptr + row, peak)
            tl.store(masses_ptr + row, mass)
        if GRADIENT:
            factor = _coefficient(weight_ptr, divisor_ptr, place, known)
            ahead = _read(row_ptr, columns_C, V, CAPPED)
            for start in range(0, V, BLOCK):
                x = _widened(ahead, columns_C, numbers[0], V - start, CAPPED, WHOLE)
                ahead = _read(row_ptr + start + BLOCK, columns_C, V - start - BLOCK, CAPPED)
                slope_C = _slope(x, None, peak, mass, numbers, factor, V, CAPPED, SMOOTHED, SQUARED)
                _write(row_ptr + start, columns_C, slope_C, V - start, WHOLE)
            slope = _slope(at_label, 1.0, peak, mass, numbers, factor, V, CAPPED, SMOOTHED, SQUARED)
            _write_label(row_ptr + label, slope, known)


@triton.jit
def gradient_kernel(
    logits, gradient, labels_ptr, weight_ptr, divisor_ptr, upstream_ptr, peaks_ptr, masses_ptr, length, ignore_index,
    upstream_stride, numbers, V: tl.constexpr, BLOCK: tl.constexpr, SHIFT: tl.constexpr, CAPPED: tl.constexpr,
    SMOOTHED: tl.constexpr, SQUARED: tl.constexpr,
):  # fmt: skip
    """One block of one row of the derivative by the logits, from the statistics that `rows_kernel` kept.

    upstream_ptr: the gradient that comes back, for each row or (upstream_stride 0) for all. gradient: as `logits`, and
    may be the same memory. The rest as for `rows_kernel`.
    """
    WHOLE: tl.constexpr = V % BLOCK == 0
    BLOCKS: tl.constexpr = (V + BLOCK - 1) // BLOCK
    row = tl.program_id(0) // BLOCKS
    start = (tl.program_id(0) % BLOCKS) * BLOCK
    columns_C = tl.arange(0, BLOCK)
    label, place = _label(labels_ptr, row, length, ignore_index, SHIFT)
    target_ptr = _row(gradient, row) + start
    if _is_idle(label, divisor_ptr, ignore_index):
        _write(target_ptr, columns_C, tl.zeros([BLOCK], tl.float32), V - start, WHOLE)
    else:
        factor = _coefficient(weight_ptr, divisor_ptr, place, (label >= 0) & (label < V))
        factor *= tl.load(upstream_ptr + row * upstream_stride)
        peak, mass = tl.load(peaks_ptr + row), tl.load(masses_ptr + row)
        x = _read(_row(logits, row) + start, columns_C, V - start, CAPPED)
        x = _widened(x, columns_C, numbers[0], V - start, CAPPED, WHOLE)
        hit_C = tl.where(columns_C == label.to(tl.int32) - start, 1.0, 0.0)
        slope_C = _slope(x, hit_C, peak, mass, numbers, factor, V, CAPPED, SMOOTHED, SQUARED)
        _write(target_ptr, columns_C, slope_C, V - start, WHOLE)


@triton.jit
def count_kernel(
    labels_ptr, weight_ptr, normaliser_ptr, count_ptr, strangers_ptr, divisor_ptr, rows, length, ignore_index,
    vocabulary, SHIFT: tl.constexpr, MEAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program counts the labels that are scored, and those outside the vocabulary, and finds the divisor.

    The divisor is 1 without MEAN; else the normaliser or, where normaliser_ptr is None, the sum of the weights, or the
    number of labels that are scored. Where there are none, or their weights sum to 0, it is infinite: the mean is then
    0, as are all gradients, and no row is read.
    """
    rows_N = tl.arange(0, BLOCK)
    counts_N, strange_N = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int32)
    weights_N = tl.zeros([BLOCK], tl.float32)
    start = 0
    while start < rows:
        row_N = start + rows_N
        scored = row_N < rows
        if SHIFT:
            scored = scored & (row_N % length != length - 1)
        place_N = row_N + 1 if SHIFT else row_N
        label_N = tl.load(labels_ptr + place_N, mask=scored, other=ignore_index)
        scored = scored & (label_N != ignore_index)
        counts_N += scored.to(tl.int32)
        strange_N += (scored & ((label_N < 0) | (label_N >= vocabulary))).to(tl.int32)
        if weight_ptr is not None:
            weights_N += tl.load(weight_ptr + place_N, mask=scored, other=0.0).to(tl.float32)
        start += BLOCK
    count = tl.sum(counts_N)
    tl.store(count_ptr, count)
    tl.store(strangers_ptr, tl.sum(strange_N))
    divisor = 1.0
    if MEAN:
        if normaliser_ptr is not None:
            divisor, idle = tl.load(normaliser_ptr).to(tl.float32), count == 0
        else:
            divisor = tl.sum(weights_N) if weight_ptr is not None else count.to(tl.float32)
            idle = divisor == 0.0
        divisor = tl.where(idle, float("inf"), divisor)
    tl.store(divisor_ptr, divisor)


@triton.jit
def sum_kernel(losses_ptr, divisor_ptr, value_ptr, rows, BLOCK: tl.constexpr):
    """One program adds all losses in a fixed order and divides once."""
    rows_N = tl.arange(0, BLOCK)
    sums_N = tl.zeros([BLOCK], tl.float32)
    start = 0
    while start < rows:
        sums_N += tl.load(losses_ptr + start + rows_N, mask=start + rows_N < rows, other=0.0)
        start += BLOCK
    tl.store(value_ptr, tl.sum(sums_N) / tl.load(divisor_ptr))


@triton.jit
def scale_kernel(x, factor_ptr, blocks, V: tl.constexpr, BLOCK: tl.constexpr):
    """Multiply all rows of x by a number on the device; where that is 1, nothing is read or written.

    The programs, few and each with many of all `blocks`, then end at once. x: as `logits` in `rows_kernel`.
    """
    WHOLE: tl.constexpr = V % BLOCK == 0
    BLOCKS: tl.constexpr = (V + BLOCK - 1) // BLOCK
    factor = tl.load(factor_ptr)
    if factor != 1.0:
        columns_C = tl.arange(0, BLOCK)
        at = tl.program_id(0)
        while at < blocks:
            row, start = at // BLOCKS, (at % BLOCKS) * BLOCK
            row_ptr = _row(x, row) + start
            values = _read(row_ptr, columns_C, V - start, False)
            _write(row_ptr, columns_C, values.to(tl.float32) * factor, V - start, WHOLE)
            at += tl.num_programs(0)
