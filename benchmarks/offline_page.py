"""``docs/kernels.md``: the compiler's numbers of every kernel, and beside them what they let one expect."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from assay.benchmarks.offline import SETS, Compiled, load
from assay.benchmarks.predict import (
    CHIPS,
    LATENCY,
    MOST_WARPS,
    RAMP,
    SCHEDULERS,
    SPECIAL_LANES,
    Prediction,
    executed,
    predict,
    resident,
)

HEAD = """# What the compiler makes of the kernels

<!-- Written by `nox -s compile -- --write` from docs/kernels.json. -->

{launches} launches of the library's kernels in bfloat16, compiled by Triton {triton} for {chips}
on a machine without a GPU, for the shapes of the comparison ([benchmarks.md](benchmarks.md)). Tile sizes are those that
the library itself chooses. {spilled} Queries, keys, logits, predictions, targets and gradients
are read and written 128 bits at a time, except for a vocabulary whose rows begin anywhere (151,937 columns). The
narrower accesses read labels, masks, indices, positions and tables, and write sums and the label's entry of a gradient.

`nox -s compile` compiles all of it again. It fails where a kernel uses the stack, spills, reads or writes in pieces, or
takes more registers than its ceiling in `benchmarks/compiled` or than [kernels.json](kernels.json) says it took.

* **registers**: of a thread. **loads**, **stores**: instructions for global memory, 128-bit + narrower.
* **instructions**: of the whole kernel; and how many a token costs, each for 32 threads at once: loops by their turns,
  everything else once.
* **bytes per token**: through device memory, and the least there could be.
* **occupancy**: warps that one multiprocessor holds, of the 64 there can be, by registers and shared memory; and the
  bytes that they may have asked of memory at once.
* ***predicted***: **not a measurement**, but what follows from [a model](#the-prediction-and-what-it-cannot-know).
"""
MODEL = """## The prediction, and what it cannot know

**No number in the column *predicted* has been measured.** It is the share of the ceiling of copies that a launch would
reach on one {name} if the model below were all there is. The machine code gives four times:

* *memory*: that of the bytes that are moved, at {bandwidth:.1f} TB/s;
* *latency*: that of the bytes that are read, by Little's law: all resident warps have as many bytes under way as their
  code asks for before it uses any, and wait {latency:.1f} µs for them;
* *issue*: that of the instructions, at {schedulers} per clock of {clock:.2f} GHz on each of {count} multiprocessors;
* *special*: that of exponentials, reciprocals and conversions, at {lanes} per clock and multiprocessor.

{ramp:.1f} µs for the start and the end of a *launch* are added. The higher share is that of full overlap, where only
the longest time counts. The lower one is that of none: waiting (the longer of the first two) and working (the longer
of the others) take turns. The word behind both names the longest time. A row that is read twice comes the second time
from the cache of {cache:.0f} MB, if all rows in hand fit it; otherwise from memory again.

Assumed, and not found out here: the ceiling of copies, 4.3 TB/s of the 4.8 that the vendor names; latency, start and
end; the clock, the low end of what such chips hold; the size of the cache, as the driver reports it. The ceiling of
matrix products, 790 TFLOP/s, bounds none of these kernels, as none multiplies matrices: the products of the linear
cross-entropy are cuBLAS's. For A100 and B200 no ceiling is at hand, and so nothing is predicted.

It leaves out that programs come in whole rounds, so that the last one may leave multiprocessors idle. It cannot know
how reads and writes share the memory's channels; how waits at barriers line up, which matters most where one program
fills a multiprocessor; whether the cache keeps what it is asked to keep; conflicts of banks; the clock under load; or
what a real model has just written and the cache still holds. Kernels of one program are bound by their own latency,
of which it says nothing.
"""
COLUMNS = (
    "kernel", "shape", "chip", "registers", "stack", "spills", "loads", "stores", "instructions", "bytes per token",
    "occupancy", "*predicted* share of copies",
)  # fmt: skip
ALIGNED = "|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"


def page(found: Sequence[Compiled], triton: str) -> Iterator[str]:
    """The lines of the page; `triton` is the release that compiled."""
    yield _head(found, triton)
    for family in SETS:
        module = load(family)
        yield from (f"## {module.TITLE}", "", module.NOTE, "", f"| {' | '.join(COLUMNS)} |", ALIGNED)
        yield from rows([each for each in found if each.family == family])
        yield ""
    chip = CHIPS[90]
    assert chip.bandwidth is not None
    yield MODEL.format(
        name=chip.name, bandwidth=chip.bandwidth / 1e12, latency=LATENCY * 1e6, schedulers=SCHEDULERS,
        clock=chip.clock / 1e9, count=chip.multiprocessors, lanes=SPECIAL_LANES, ramp=RAMP * 1e6,
        cache=chip.cache / 1e6,
    ).rstrip()  # fmt: skip


def rows(found: Sequence[Compiled]) -> Iterator[str]:
    """One line each, but one for kernels of the same shape that come out the same: in place is often no other code."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for each in found:
        names = alike.setdefault(tuple(_cells(each)), [])
        names.append(load(each.family).title(each.job))
    for cells, names in alike.items():
        yield f"| {' | '.join(('; '.join(names), *cells))} |"


def _cells(each: Compiled) -> Iterator[str]:
    report, chip, work = each.report, CHIPS[each.report.arch], load(each.family).work(each.job)
    yield from (work.shape, f"{chip.name}, sm_{report.arch}")
    yield from map(str, (report.registers, report.stack, report.spills))
    yield f"{report.wide_loads} + {report.narrow_loads}"
    yield f"{report.wide_stores} + {report.narrow_stores}"
    done = executed(report, work.turns or [1] * len(report.loops))[0] * report.warps * report.programs / work.tokens
    yield f"{report.instructions:,}" if work.alone else f"{report.instructions:,}; {done:,.0f} a token"
    yield f"{work.moved / work.tokens:,.0f}, least {work.floor / work.tokens:,.0f}"
    count = resident(report, chip)
    under_way = count * report.warps * 32 * report.in_flight / 1024
    yield "one program" if work.alone else f"{count * report.warps} of {MOST_WARPS}; {under_way:,.0f} KiB"
    yield _predicted(predict(report, work, chip))


def _predicted(found: Prediction | None) -> str:
    return f"*{found.low:.0%} to {found.high:.0%}, {found.bound}*" if found else ""


def _head(found: Sequence[Compiled], triton: str) -> str:
    spilled = [each.name for each in found if each.report.spilled]
    return HEAD.format(
        launches=len(found), triton=triton,
        chips=", ".join(f"sm_{arch} ({chip.name})" for arch, chip in CHIPS.items()),
        spilled=f"With stack or spills: {', '.join(spilled)}." if spilled else "None has a stack or a spill.",
    )  # fmt: skip
