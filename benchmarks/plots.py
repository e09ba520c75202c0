"""The pictures of a comparison: share of the ceiling, time against masked share, memory against tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from assay.benchmarks.nouns import Comparison, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS = "#0b62b0"
OTHERS = ("#c8500a", "#4d4d4d", "#8a5fbf", "#2e8b57", "#b8860b", "#a0344f", "#5f9ea0", "#808000", "#d27fb0", "#7a4a1e")
MARKS = "osD^vP*Xhd"


def draw(found: Comparison, folder: Path) -> list[Path]:
    """Write what there are numbers for, as SVG; ImportError without matplotlib."""
    pictures: tuple[tuple[str, Callable[[Axes, Comparison], bool], str], ...] = (
        ("rotary-share", _rotary, "Rotary, Qwen2.5-VL-7B, view layout: share of the copy ceiling"),
        ("cross-entropy-masked", _masked("cross_entropy"), "Cross-entropy from logits: time by masked share"),
        ("linear-masked", _masked("linear_cross_entropy"), "Linear cross-entropy: time by masked share"),
        ("linear-memory", _memory, "Linear cross-entropy: memory beyond the inputs"),
    )
    written = []
    for name, fill, title in pictures:
        if (path := _picture(folder / f"{name}.svg", fill, title, found)) is not None:
            written.append(path)
    return written


def _picture(path: Path, fill: Callable[[Axes, Comparison], bool], title: str, found: Comparison) -> Path | None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9.5, 5.2), layout="constrained")
    try:
        if not fill(axes, found):
            return None
        where = found.machine["name"] + (" (rehearsal: no times)" if found.rehearsal else "")
        axes.set_title(f"{title}\n{where}", loc="left", fontsize=11)
        axes.grid(alpha=0.25)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
        figure.savefig(path, metadata={"Date": None})
    finally:
        plt.close(figure)
    return path


def _lines(
    axes: Axes, found: Comparison, rows: Sequence[Row], x: Callable[[Row], float], y: Callable[[Row], float]
) -> bool:  # fmt: skip
    """One line for each provider, which looks the same in every picture of a run."""
    others = sorted({row.provider for row in found.rows if not row.provider.startswith("assay")})
    own_names = sorted({row.provider for row in found.rows if row.provider.startswith("assay")})
    names = sorted({row.provider for row in rows}, key=lambda name: (name.startswith("assay"), name))
    for name in names:
        own = sorted((row for row in rows if row.provider == name), key=x)
        ours = name.startswith("assay")
        place = own_names.index(name) if ours else others.index(name)
        axes.plot(
            [x(row) for row in own], [y(row) for row in own], label=name, marker=MARKS[place % len(MARKS)],
            color=OURS if ours else OTHERS[place % len(OTHERS)], linewidth=2.4 if ours else 1.3,
            linestyle="-" if not ours or not place else ("--", ":")[(place - 1) % 2], markersize=5,
        )  # fmt: skip
    return bool(rows)


def _by_tokens(axes: Axes, rows: Sequence[Row]) -> None:
    """Tokens in powers of two, in thousands where they are."""
    sizes = sorted({row.tokens for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{size >> 10}k" if size % 1024 == 0 else str(size) for size in sizes])


def _in_steps(axes: Axes) -> None:
    """A logarithmic scale with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:g}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _place: f"{value:g}"))
    axes.tick_params(axis="y", which="minor", labelsize=8)


def _rotary(axes: Axes, found: Comparison) -> bool:
    rows = [
        row for row in found.rows
        if row.operation == "rotary" and row.model == "Qwen2.5-VL-7B" and row.layout == "view" and row.mode == "both"
    ]  # fmt: skip
    drawn = _lines(axes, found, rows, lambda row: row.tokens, lambda row: 100 * row.share)
    _by_tokens(axes, rows)
    axes.set_xlabel("tokens")
    axes.set_ylabel("% of the copy ceiling, forward and backward")
    axes.axhline(100, color="black", linewidth=0.8)
    axes.set_ylim(bottom=0)
    return drawn


def _masked(operation: str) -> Callable[[Axes, Comparison], bool]:
    def fill(axes: Axes, found: Comparison) -> bool:
        own = [
            row for row in found.rows
            if row.operation == operation and row.mode == "both" and row.mask == "spans" and row.values == "random"
            and row.upstream == 1
        ]  # fmt: skip
        groups: dict[tuple[str, int], set[float]] = {}
        for row in own:
            groups.setdefault((row.model, row.tokens), set()).add(row.masked)
        if not groups:
            return False
        model, tokens = max(groups, key=lambda key: len(groups[key]))
        rows = [row for row in own if (row.model, row.tokens) == (model, tokens)]
        drawn = _lines(axes, found, rows, lambda row: 100 * row.masked, lambda row: row.median / 1e3)
        axes.set_xlabel(f"% of the labels masked ({model}, {tokens} tokens)")
        axes.set_ylabel("ms, forward and backward")
        _in_steps(axes)
        return drawn

    return fill


def _memory(axes: Axes, found: Comparison) -> bool:
    rows = [
        row for row in found.rows
        if row.operation == "linear_cross_entropy" and row.mode == "both" and row.mask == "spans"
        and row.values == "random" and row.upstream == 1 and row.masked in (0.0, 0.9)
        and row.model == "Qwen2.5-VL-7B" and row.masked == 0.0
    ] or [
        row for row in found.rows
        if row.operation == "linear_cross_entropy" and row.mode == "both" and row.masked == 0.0
    ]  # fmt: skip
    drawn = _lines(axes, found, rows, lambda row: row.tokens, lambda row: row.memory / 2**20)
    axes.set_xlabel("tokens, none masked")
    axes.set_ylabel("MiB beyond the inputs, gradients included")
    _by_tokens(axes, rows)
    _in_steps(axes)
    return drawn
