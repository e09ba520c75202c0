"""The cross-entropy that reads each row of logits once: a team of programs shares a row and meets before it writes.

Letters in names: N rows (tokens), V vocabulary, C columns of a program's slice, G programs of a team.

A row of 150,000 logits is more than the registers of one program hold, so `rows_kernel` reads it twice. Here each
program of a team holds one slice in its registers. It publishes the slice's maximum and mass, waits until its whole
team has, and then writes its slice of the gradient over the logits.

**Why nobody waits for ever.** A team waits for nobody but its own programs, about the row that it is at. Each program
publishes a row before it waits for that row, and all walk the team's rows in the same order. Suppose that all of a
team wait, and take the one that waits for the earliest row: whom it waits for waits for that row or a later one, and
so has published this one. So somebody can always go on, if it runs at all. That all programs run at once is what a
cooperative launch is: the driver refuses a grid that the chip does not hold whole, and starts all of it or nothing,
other streams notwithstanding; `_cooperative` in the launch code sees to it that what is asked for fits. No row is
walked twice, each has memory of its own to meet in, and that is zeroed before each launch.

**Why nothing is read too early or too late.** What a program publishes of a row is one number of 64 bits, maximum and
mass, exchanged as one; it cannot be seen in part, and until it is seen it is 0, which no maximum and mass are together.
It needs no fence: nothing but itself is read because of it. No program reads logits that another one overwrites: each
its own slice, and the logit at the label only the program that has it.

While its team meets over a row a program already has the next one: it asks for logits a turn before it uses them,
publishes in the next turn, and writes in the one after that. Sums are made in a fixed order, without floating atomics:
equal inputs give equal bits.
"""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-untyped,assignment"
# Triton ships neither stubs nor py.typed, and the body of a kernel is Triton's language, not Python's.

import triton
import triton.language as tl

from assay.kernels.masked_cross_entropy_triton import (
    _bent,
    _capped,
    _coefficient,
    _exp,
    _loss,
    _row,
    _slope,
    _write_label,
)

IDLE = tl.constexpr(-2)
"""Stands for the label of a row that is not scored, itself or with all others, and of one past the last."""
MOST = tl.constexpr(32)
"""Programs of a team: a warp reads what they publish by one instruction, and so all its threads agree on who has."""


@triton.jit
def _label_of(labels_ptr, row, exists, length, ignore_index, V: tl.constexpr, SHIFT: tl.constexpr):
    """The label that a row is scored against in int32; -1 for one outside the vocabulary, IDLE where it has none."""
    if SHIFT:
        exists = exists & (row % length != length - 1)
        row += 1
    label = tl.load(labels_ptr + row, mask=exists, other=ignore_index)
    known = (label >= 0) & (label < V)
    return tl.where(label == ignore_index, IDLE, tl.where(known, label.to(tl.int32), -1))


@triton.jit
def _ask(logits, row, label, part, offsets_C, inside_C, SLICE: tl.constexpr, CAPPED: tl.constexpr):
    """(slice as it is stored, logit at the label if it is in it): asked for here, used a turn later."""
    scored = label != IDLE
    row_ptr = _row(logits, row)
    own = (label >= part * SLICE) & (label < part * SLICE + SLICE)
    at_label = tl.load(row_ptr + label, mask=own, other=float("nan"))
    other = 0.0 if CAPPED else -float("inf")
    return tl.load(row_ptr + offsets_C, mask=inside_C & scored, other=other), at_label.to(tl.float32)


@triton.jit
def _centre(peak):
    """What is subtracted before exponentials; not the maximum where it is -inf: exp(x - centre) is then 0."""
    return tl.where(peak == -float("inf"), 0.0, peak)


@triton.jit
def _own_share(slice_C, inside_C, softcap, CAPPED: tl.constexpr, SMOOTHED: tl.constexpr):
    """(what the gradient is made of later, maximum, mass, sum of x - centre) of one program's slice, in fp32.

    Kept are exp(x - centre), which saves the gradient an exponential for each logit; under the soft-cap, whose
    derivative needs them, the logits themselves.
    """
    x = _capped(slice_C.to(tl.float32), softcap, CAPPED)
    if CAPPED:
        x = tl.where(inside_C, x, -float("inf"))
    peak = tl.max(x)
    centre = _centre(peak)
    powers = _exp(x - centre)
    lean = 0.0
    if SMOOTHED:
        lean = tl.sum(tl.where(inside_C, x - centre, 0.0))
    return x if CAPPED else powers, peak, tl.sum(powers), lean


@triton.jit
def _bits(x):
    """An fp32 number in the lower half of 64 bits."""
    return x.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF


@triton.jit
def _number(word, HIGH: tl.constexpr):
    """The fp32 number in one half of 64 bits."""
    half = (word >> 32) if HIGH else word
    return half.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _publish(meeting_ptr, row, part, peak, mass, lean, SMOOTHED: tl.constexpr):
    """Leave one program's numbers of a row where its team waits for them. None of the words is 0."""
    words: tl.constexpr = 2 if SMOOTHED else 1
    place_ptr = meeting_ptr + (row.to(tl.int64) * MOST + part) * words
    tl.atomic_xchg(place_ptr, (_bits(peak) << 32) | _bits(mass), sem="relaxed", scope="gpu")
    if SMOOTHED:
        tl.atomic_xchg(place_ptr + 1, (tl.full((), 1, tl.int64) << 32) | _bits(lean), sem="relaxed", scope="gpu")


@triton.jit
def _wait(places_G, TEAM: tl.constexpr):
    """The words at places [MOST], when all of the team have left theirs.

    There is a place for each thread of a warp, and each warp looks for itself, without a barrier in between: threads
    that share a shuffle have all seen the same.
    """
    present_G = tl.arange(0, MOST) < TEAM
    words_G = tl.load(places_G, mask=present_G, other=1, volatile=True)
    while tl.min((words_G != 0).to(tl.int32)) == 0:
        words_G = tl.load(places_G, mask=present_G, other=1, volatile=True)
    return words_G


@triton.jit
def _meet(meeting_ptr, row, V: tl.constexpr, SLICE: tl.constexpr, TEAM: tl.constexpr, SMOOTHED: tl.constexpr):
    """Wait until all of the team have published a row: its (maximum, mass, sum of x - maximum)."""
    words: tl.constexpr = 2 if SMOOTHED else 1
    parts_G = tl.arange(0, MOST)
    places_G = meeting_ptr + (row.to(tl.int64) * MOST + parts_G) * words
    present_G = parts_G < TEAM
    words_G = _wait(places_G, TEAM)
    peaks_G = tl.where(present_G, _number(words_G, True), -float("inf"))
    masses_G = tl.where(present_G, _number(words_G, False), 0.0)
    peak = tl.max(peaks_G)
    centre = _centre(peak)
    lean = 0.0
    if SMOOTHED:
        leans_G = tl.where(present_G, _number(_wait(places_G + 1, TEAM), False), 0.0)
        columns_G = tl.minimum(V - parts_G * SLICE, SLICE)
        lean = tl.sum(leans_G + tl.where(present_G, columns_G * (_centre(peaks_G) - centre), 0.0))
    return peak, tl.sum(masses_G * tl.exp(peaks_G - centre)), lean


@triton.jit
def _slope_of(kept_C, own_peak, peak, mass, numbers, factor, V: tl.constexpr, CAPPED: tl.constexpr,
              SMOOTHED: tl.constexpr, SQUARED: tl.constexpr):  # fmt: skip
    """`_slope` of a slice, from what `_own_share` kept of it."""
    if CAPPED:
        slope_C = _slope(kept_C, None, peak, mass, numbers, factor, V, CAPPED, SMOOTHED, SQUARED)
    else:
        pull = factor / mass
        if SQUARED:
            pull *= 1.0 + 2.0 * numbers[2] * (peak + tl.log(mass))
        scale = tl.exp(_centre(own_peak) - peak) * pull
        slope_C = _bent(kept_C * scale, None, kept_C, numbers, factor, V, CAPPED, SMOOTHED)
    return slope_C


@triton.jit
def teams_kernel(  # noqa: C901, PLR0915 - one kernel, whose turns hold three rows at once
    logits, labels_ptr, weight_ptr, divisor_ptr, losses_ptr, meeting_ptr, rows, length, ignore_index, numbers,
    V: tl.constexpr, SLICE: tl.constexpr, BLOCK: tl.constexpr, TEAM: tl.constexpr, SHIFT: tl.constexpr,
    CAPPED: tl.constexpr, SMOOTHED: tl.constexpr, SQUARED: tl.constexpr, PUBLISH: tl.constexpr, FINISH: tl.constexpr,
):  # fmt: skip
    """The weighted loss of each row, and its derivative written over its logits; ignored rows are not read.

    Team t of T walks rows t, t + T, ...; program g of TEAM has columns g * SLICE and on, in BLOCK lanes. meeting_ptr:
    zeros int64 [N, MOST], or with SMOOTHED [N, MOST, 2]. The rest as for `rows_kernel`.

    Both PUBLISH and FINISH on a GPU. The interpreter runs one program after another, none of which may wait for a
    later one: there a launch that only publishes comes first, and then one that only finishes, in which all have.
    """
    part = tl.program_id(0) % TEAM
    row = tl.program_id(0) // TEAM
    teams = tl.num_programs(0) // TEAM
    offsets_C = part * SLICE + tl.arange(0, BLOCK)
    inside_C = (tl.arange(0, BLOCK) < SLICE) & (offsets_C < V)
    any_scored = row >= 0
    if divisor_ptr is not None:
        any_scored = tl.load(divisor_ptr) != float("inf")

    label = _label_of(labels_ptr, row, (row < rows) & any_scored, length, ignore_index, V, SHIFT)
    coming = row + teams
    next_label = _label_of(labels_ptr, coming, (coming < rows) & any_scored, length, ignore_index, V, SHIFT)
    slice_C, at_label = _ask(logits, row, label, part, offsets_C, inside_C, SLICE, CAPPED)
    # the row before, of which there is none yet
    old_label, old_at_label = label, at_label
    kept_C, own_peak = tl.zeros([BLOCK], tl.float32), 0.0
    while row < rows + teams:
        new_kept_C, new_peak = kept_C, own_peak
        if label != IDLE:
            new_kept_C, new_peak, mass, lean = _own_share(slice_C, inside_C, numbers[0], CAPPED, SMOOTHED)
            if PUBLISH:
                _publish(meeting_ptr, row, part, new_peak, mass, lean, SMOOTHED)
        next_slice_C, next_at_label = _ask(logits, row + teams, next_label, part, offsets_C, inside_C, SLICE, CAPPED)
        coming = row + 2 * teams
        label_after = _label_of(labels_ptr, coming, (coming < rows) & any_scored, length, ignore_index, V, SHIFT)
        if FINISH and row >= teams:
            old = row - teams
            target_ptr = _row(logits, old) + offsets_C
            if old_label != IDLE:
                place = old + 1 if SHIFT else old
                factor = _coefficient(weight_ptr, divisor_ptr, place, old_label >= 0)
                peak, mass, lean = _meet(meeting_ptr, old, V, SLICE, TEAM, SMOOTHED)
                slope_C = _slope_of(kept_C, own_peak, peak, mass, numbers, factor, V, CAPPED, SMOOTHED, SQUARED)
                tl.store(target_ptr, slope_C.to(logits[0].dtype.element_ty), mask=inside_C)
                if part == tl.maximum(old_label, 0) // SLICE:
                    at = _capped(old_at_label, numbers[0], CAPPED)
                    slope = _slope(at, 1.0, peak, mass, numbers, factor, V, CAPPED, SMOOTHED, SQUARED)
                    _write_label(_row(logits, old) + old_label, slope, old_label >= 0)
                    if SMOOTHED:
                        lean += V * (_centre(peak) - _centre(at))
                    loss = _loss(at, peak, mass, lean, numbers, V, SMOOTHED, SQUARED)
                    if weight_ptr is not None:
                        loss *= tl.load(weight_ptr + place).to(tl.float32)
                    tl.store(losses_ptr + old, loss)
            else:
                tl.store(target_ptr, tl.zeros([BLOCK], logits[0].dtype.element_ty), mask=inside_C)
                if part == 0:
                    tl.store(losses_ptr + old, 0.0)
        old_label, old_at_label = label, at_label
        kept_C, own_peak = new_kept_C, new_peak
        label, next_label = next_label, label_after
        slice_C, at_label = next_slice_C, next_at_label
        row += teams
