"""One batch as an HTML page that needs nothing else: every token in its cell, and the positions as a plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path

from jinja2 import Environment, StrictUndefined

KINDS = ("text", "special", "image", "video", "audio", "pad")
"""What a token can be. ``special`` is a control token of the chat template."""
_TEMPLATE = Path(__file__).with_name("batch.html.jinja")
_SHOWN = str.maketrans({" ": "·", "\t": "⇥", "\n": "⏎", "\r": "␍"})
WIDTH, HEIGHT = 1000.0, 170.0
"""Of a plot, in its own units."""
CHUNK, LONGEST = 500, 4000
"""Tokens that a browser lays out together, and leaves out while they are off the screen; more where one run goes on."""
DENSE = 4000
"""Tokens that a plot can show across the page; a longer one is scrolled."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a batch, as lists of S entries.

    ``texts`` are what each token decodes to, ``kinds`` are of :data:`KINDS`, ``trained`` says which tokens have a
    label, ``starts`` where samples begin (the places, 0 among them), ``samples`` what each of these is called (its
    number where nothing is said). ``axes`` are position ids by the name of the axis.
    """

    name: str
    ids: Sequence[int]
    texts: Sequence[str]
    kinds: Sequence[str]
    trained: Sequence[bool]
    starts: Sequence[int] = (0,)
    samples: Sequence[str] = ()
    axes: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """ValueError when the lists are not of one length, or a kind is unknown."""
        lists = {"texts": self.texts, "kinds": self.kinds, "trained": self.trained, **self.axes}
        for name, values in lists.items():
            if len(values) != len(self.ids):
                message = f"{name}: expected {len(self.ids)} entries, one for each token, got {len(values)}"
                raise ValueError(message)
        if self.samples and len(self.samples) != len(self.starts):
            message = f"samples: expected {len(self.starts)} names, one for each start, got {len(self.samples)}"
            raise ValueError(message)
        if unknown := set(self.kinds) - set(KINDS):
            message = f"kinds: expected some of {', '.join(KINDS)}, got {', '.join(sorted(unknown))}"
            raise ValueError(message)


@dataclass(frozen=True)
class Band:
    """Tokens ``start`` to ``stop`` (not included) that are alike."""

    what: str
    start: int
    stop: int


def render(title: str, rows: Sequence[Row], notes: Sequence[str] = ()) -> str:
    """The page. ``notes`` are sentences about the whole batch."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    shown = [_Shown(row) for row in rows]
    return template.render(title=title, rows=shown, notes=notes, kinds=KINDS, height=HEIGHT)


def bands(values: Sequence[object]) -> list[Band]:
    """Runs of equal entries."""
    found, place = [], 0
    for value, run in groupby(values):
        size = sum(1 for _ in run)
        found.append(Band(str(value), place, place + size))
        place += size
    return found


def corners(values: Sequence[int], start: int = 0) -> Iterator[tuple[int, int]]:
    """The points (place, value) between which values rise or fall evenly: all that a line has to be drawn through."""
    if not values:
        return
    steps = [after - before for before, after in pairwise(values)]
    yield start, values[0]
    yield from (
        (start + place + 1, values[place + 1])
        for place, (step, following) in enumerate(pairwise(steps))
        if step != following
    )
    if steps:
        yield start + len(steps), values[-1]


def _edges(starts: Sequence[int], breaks: Sequence[int]) -> list[int]:
    """Where chunks begin and end: at the starts, and between them where a run of one kind begins.

    A run that does not end is broken after :data:`LONGEST` tokens.
    """
    edges = [starts[0]]
    places = sorted({*starts[1:], *breaks})
    certain = set(starts)
    for place in places:
        while place - edges[-1] > LONGEST:
            edges.append(edges[-1] + LONGEST)
        if place > edges[-1] and (place in certain or place - edges[-1] >= CHUNK):
            edges.append(place)
    return edges


def shown(text: str) -> str:
    """A token's text with its blanks made visible."""
    return text.translate(_SHOWN) or "∅"


class _Shown:
    """A row with what the template needs computed."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.size = len(row.ids)
        self.samples = len(row.starts)
        self.trained = sum(row.trained)
        self.counts = {kind: count for kind in KINDS if (count := sum(own == kind for own in row.kinds))}
        real = [place for place, kind in enumerate(row.kinds) if kind != "pad"]
        self.top = max((values[place] for values in row.axes.values() for place in real), default=0)

    @property
    def share(self) -> str:
        """The part of all tokens but padding that is trained on."""
        real = self.size - self.counts.get("pad", 0)
        return f"{self.trained / real:.1%}" if real else "none"

    def chunks(self) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
        """Each chunk: a heading where a sample begins, and (classes, text, title) of its tokens."""
        starts = set(self.row.starts)
        edges = _edges(sorted({0, *starts, self.size}), [band.start for band in bands(self.row.kinds)])
        number = 0
        for start, stop in pairwise(edges):
            number += start in starts
            heading = self._named(number) if start in starts and self.samples > 1 else ""
            yield heading, [self._cell(place) for place in range(start, stop)]

    def _named(self, number: int) -> str:
        return self.row.samples[number - 1] if self.row.samples else f"sample {number}"

    def _cell(self, place: int) -> tuple[str, str, str]:
        row, kind = self.row, self.row.kinds[place]
        label = "trained" if row.trained[place] else "not trained"
        axes = ", ".join(f"{name} {values[place]}" for name, values in row.axes.items())
        title = f"{place}: id {row.ids[place]}, {kind}, {label}{'; ' + axes if axes else ''}"
        text = shown(row.texts[place]) if kind in {"text", "special"} else ""
        return f"{kind[0] if kind != 'special' else 'x'}{' y' if row.trained[place] else ''}", text, title

    def lines(self) -> Iterator[tuple[str, list[str]]]:
        """Each axis with its polylines: one for each run of a sample's tokens, none for padding."""
        padded = [kind == "pad" for kind in self.row.kinds]
        edges = sorted({*self.row.starts, *(band.start for band in bands(padded)), self.size})
        runs = [(start, stop) for start, stop in pairwise(edges) if not padded[start]]
        for name, values in self.row.axes.items():
            pieces = [list(corners(values[start:stop], start)) for start, stop in runs]
            yield name, [" ".join(f"{self.x(x + 0.5):.2f},{self.y(y):.2f}" for x, y in piece) for piece in pieces]

    @property
    def width(self) -> float:
        """Of its plot: a page's, or more for a long row."""
        return WIDTH * max(1.0, self.size / DENSE)

    def x(self, place: float) -> float:
        """Where a token stands in a plot."""
        return self.width * place / max(self.size, 1)

    def y(self, value: float) -> float:
        """Where a position stands in a plot."""
        return HEIGHT * (1 - value / max(self.top, 1))

    def strip(self) -> list[tuple[str, float, float]]:
        """(kind, x, width) of runs of one kind."""
        return [(band.what, self.x(band.start), self.x(band.stop - band.start)) for band in bands(self.row.kinds)]

    def lit(self) -> list[tuple[float, float]]:
        """(x, width) of runs that are trained on."""
        found = (band for band in bands(self.row.trained) if band.what == "True")
        return [(self.x(band.start), self.x(band.stop - band.start)) for band in found]
