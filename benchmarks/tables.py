"""A comparison as Markdown: one table for each operation and mode, and what was not measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from assay.benchmarks.nouns import MODES, Absence, Comparison, Row

HEAD = (
    "| provider | µs (20 % to 80 %) | of the ceiling | wall µs | memory MiB | launches, waits "
    "| error of outputs, of gradients | of rounding |"
)
RULE = "|---|--:|--:|--:|--:|--:|--:|--:|"
TITLES = {
    "rotary": "Rotary: queries and keys of one layer",
    "cross_entropy": "Cross-entropy from logits",
    "linear_cross_entropy": "Linear cross-entropy, from hidden states",
    "masked_regression": "Masked regression",
}


def machine_lines(found: Comparison) -> Iterator[str]:
    """What it was measured on, and what it is compared with."""
    facts = found.machine
    if found.rehearsal:
        yield "**A rehearsal in Triton's interpreter: it shows that everything runs. Its times mean nothing.**"
        yield ""
    if found.cut:
        yield f"**Not the whole run: {found.cut}.**"
        yield ""
    yield (
        f"{facts['name']}, {facts['date']}: copies {facts['copy_tb_per_s']:.3f} TB/s (read and written), "
        f"{facts['product']} matrix products {facts['tflop_per_s']:.2f} TFLOP/s, both measured in this run. "
        f"Python {facts['python']}, {', '.join(f'{name} {version}' for name, version in facts['versions'].items())}."
    )


def tables(found: Comparison, operation: str) -> Iterator[str]:
    """Every row of an operation, shape by shape, the fastest provider first."""
    own = [row for row in found.rows if row.operation == operation]
    for label, rows in groupby(own, key=shape_of):
        several = list(rows)
        yield f"#### {label}"
        for mode in MODES:
            chosen = sorted((row for row in several if row.mode == mode), key=lambda row: row.median)
            if chosen:
                yield from ("", _mode(chosen[0]), "", HEAD, RULE, *map(_line, chosen), "")


def shape_of(row: Row) -> str:
    """The shape of a row in a few words."""
    share = f", {row.masked:.0%} masked{' at random' if row.mask == 'random' else ''}" if row.masked else ""
    more = "".join(f", {word}" for word in (row.layout, row.values) if word and word != "random")
    scaled = "" if row.upstream == 1 else f", upstream {row.upstream:g}"
    return f"{row.model}, {row.tokens} tokens{share}{more}{scaled}"


def _mode(row: Row) -> str:
    floor = f"{row.floor_bytes / 1e6:,.1f} MB" + (f", {row.floor_flops / 1e12:,.2f} TFLOP" if row.floor_flops else "")
    return f"{row.mode}: at least {floor}, {row.least:,.1f} µs at the ceilings"


def _line(row: Row) -> str:
    counted = "" if row.launches is None else f"{row.launches}, {row.waits}"
    name = f"**{row.provider}**" if row.provider.startswith("assay") else row.provider
    note = f" ({row.note})" if row.note else ""
    how = "" if row.how in ("graph", "wall") else f" by {row.how}"
    wrong = max(row.errors.values(), default=None) if row.mode != "forward" else _forward_error(row)
    limit = max(row.rounding.values(), default=0.0)
    cells = (
        f"{name} {row.version}{note}", f"{row.median:,.1f} ({row.low:,.1f} to {row.high:,.1f}){how}",
        f"{row.share:.0%}", f"{row.wall:,.0f}", f"{row.memory / 2**20:,.1f}", counted,
        _errors(row), "" if not limit or wrong is None else f"{wrong / limit:.2f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _errors(row: Row) -> str:
    """The worst output, and where gradients are made the worst of those."""
    outputs = _forward_error(row)
    grads = max((value for name, value in row.errors.items() if name.startswith("grad:")), default=None)
    told = [outputs] if row.mode == "forward" else [outputs, grads]
    return ", ".join(f"{value:.1e}" for value in told if value is not None)


def _forward_error(row: Row) -> float | None:
    return max((value for name, value in row.errors.items() if not name.startswith("grad:")), default=None)


def absences(found: Comparison, operation: str) -> Iterator[str]:
    """Who is not in the tables, and why."""
    own = [item for item in found.absences if item.operation == operation]
    if own:
        yield "Not measured:"
        yield ""
    for (provider, reason), items in _together(own):
        shapes = [item.shape for item in items if item.shape]
        yield f"* {provider}{f' ({len(shapes)} shapes, such as {shapes[0]})' if shapes else ''}: {reason}"


def _together(items: Sequence[Absence]) -> Iterable[tuple[tuple[str, str], list[Absence]]]:
    found: dict[tuple[str, str], list[Absence]] = {}
    for item in items:
        found.setdefault((item.provider, item.reason), []).append(item)
    return found.items()


def ratio_lines(found: Comparison) -> Iterator[str]:
    """For each shape and mode, ours beside the fastest other: the honest line."""
    for key, rows in groupby(found.rows, key=lambda row: (row.operation, shape_of(row), row.mode)):
        several = list(rows)
        ours = min((row for row in several if row.provider.startswith("assay")), key=_median, default=None)
        other = min((row for row in several if not row.provider.startswith("assay")), key=_median, default=None)
        if ours and other:
            yield (
                f"{key[0]}, {key[1]}, {key[2]}: {ours.provider} {ours.median:,.1f} µs ({ours.share:.0%}), "
                f"{other.provider} {other.median:,.1f} µs: {other.median / ours.median:.2f}x"
            )


def _median(row: Row) -> float:
    return row.median
