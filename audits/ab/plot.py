"""The curves of a comparison as one SVG: loss and share of right answers over the steps, a thin line for each seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from assay.audits.ab.comparison import Arm, Comparison
from assay.audits.ab.train import Run

WIDTH, HEIGHT = 1000, 380
COLOURS = ("#0b62b0", "#c8500a")
"""Blue and orange: told apart by every kind of colour vision, and by lightness in print."""
POINTS = 40
"""Points of a curve: each is the mean of as many steps as it takes."""

Curve = tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A frame on the page and the numbers at its edges."""

    left: float
    title: str
    steps: int
    bottom: float
    top: float
    log: bool = False
    width: float = 370
    above: float = 84
    height: float = 240

    def x(self, step: float) -> float:
        """Where a step is on the page."""
        return self.left + self.width * step / self.steps

    def y(self, value: float) -> float:
        """Where a value is on the page; below the lowest on a logarithmic axis, at the lowest."""
        if self.log:
            share = math.log(max(value, self.bottom) / self.bottom) / math.log(self.top / self.bottom)
        else:
            share = (value - self.bottom) / (self.top - self.bottom)
        return self.above + self.height * (1 - share)

    def values(self) -> list[float]:
        """The numbers at the side."""
        return _decades(self.bottom, self.top) if self.log else _ticks(self.top)


def curve(values: Sequence[float], points: int = POINTS) -> Curve:
    """Means of consecutive stretches of steps, each at the middle of its stretch."""
    size = max(1, math.ceil(len(values) / points))
    parts = (values[at : at + size] for at in range(0, len(values), size))
    return tuple((n * size + len(part) / 2, statistics.fmean(part)) for n, part in enumerate(parts))


def mean(curves: Sequence[Curve]) -> Curve:
    """The mean of curves over the same steps."""
    return tuple((points[0][0], statistics.fmean(value for _, value in points)) for points in zip(*curves, strict=True))


def render(comparison: Comparison) -> str:
    """The picture. Nothing in it comes from elsewhere: no font, no script."""
    steps = comparison.settings.steps
    losses = [value for arm in comparison.arms for run in arm.runs for _, value in curve(run.loss)]
    floor = max(min(losses) * 0.8, 1e-4)
    loss = Panel(left=55, title="loss (logarithmic)", steps=steps, bottom=floor, top=max(losses) * 1.1, log=True)
    share = Panel(left=485, title="share of right answers", steps=steps, bottom=0.0, top=1.0)
    body = [
        *_head(comparison),
        *_frame(loss),
        *_frame(share),
        *_curves(loss, comparison, lambda run: run.loss),
        *_curves(share, comparison, _accuracy),
        *_level(share, statistics.fmean(comparison.order_alone), "order of the", "tokens alone"),
        *_level(share, statistics.fmean(comparison.one_answer), "always the", "same answer"),
    ]
    label = f"Loss and share of right answers over {steps} steps, {comparison.a.name} and {comparison.b.name}"
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label="{escape(label)}" font-family="system-ui, sans-serif" font-size="13" fill="#222">'
    )
    paper = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
    return "\n".join([opening, paper, *body, "</svg>", ""])


def _accuracy(run: Run) -> Sequence[float]:
    """The accuracies; none where the patched model returned no logits."""
    return [share for share in run.accuracy if share is not None]


def _head(comparison: Comparison) -> Iterator[str]:
    """Title and legend."""
    seeds = len(comparison.seeds)
    title = f"{comparison.settings.family}: tiny model from scratch, {seeds} seeds for each side"
    yield f'<text x="55" y="26" font-size="16" font-weight="600">{escape(title)}</text>'
    left = 55.0
    for arm, colour in zip(comparison.arms, COLOURS, strict=True):
        yield f'<line x1="{left:g}" y1="48" x2="{left + 26:g}" y2="48" stroke="{colour}" stroke-width="3"/>'
        yield f'<text x="{left + 34:g}" y="52.5">{escape(arm.name)}</text>'
        left += 60 + 7.5 * len(arm.name)
    yield f'<text x="{left:g}" y="52.5" fill="#666">thick: mean of the seeds, thin: one seed</text>'


def _frame(panel: Panel) -> Iterator[str]:
    """Axes with their numbers, and what they are."""
    right, bottom = panel.left + panel.width, panel.above + panel.height
    yield f'<text x="{panel.left:g}" y="{panel.above - 9:g}" fill="#444">{panel.title}</text>'
    for value in panel.values():
        y = panel.y(value)
        yield f'<line x1="{panel.left:g}" y1="{y:.1f}" x2="{right:g}" y2="{y:.1f}" stroke="#e4e4e4"/>'
        text = f"{value:g}" if panel.log else f"{value:.0%}"
        yield f'<text x="{panel.left - 7:g}" y="{y + 4.5:.1f}" text-anchor="end" fill="#666">{text}</text>'
    for step in _ticks(panel.steps, 4):
        text = f'<text x="{panel.x(step):.1f}" y="{bottom + 20:g}" text-anchor="middle" fill="#666">{step:g}</text>'
        yield text
    yield f'<text x="{(panel.left + right) / 2:g}" y="{bottom + 40:g}" text-anchor="middle" fill="#444">step</text>'
    yield f'<line x1="{panel.left:g}" y1="{bottom:g}" x2="{right:g}" y2="{bottom:g}" stroke="#888"/>'


def _ticks(top: float, parts: int = 5) -> list[float]:
    """Round numbers from 0 to ``top``, about ``parts`` steps of them."""
    raw = top / parts
    power = 10 ** math.floor(math.log10(raw))
    step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= raw * 0.999)
    return [round(n * step, 9) for n in range(math.floor(top / step + 1e-9) + 1)]


def _decades(bottom: float, top: float) -> list[float]:
    """1, 2 and 5 times powers of ten from ``bottom`` to ``top``."""
    powers = range(math.floor(math.log10(bottom)), math.ceil(math.log10(top)) + 1)
    return [size * 10.0**power for power in powers for size in (1, 2, 5) if bottom <= size * 10.0**power <= top]


def _level(panel: Panel, value: float, *words: str) -> Iterator[str]:
    """A dashed line across a panel, and beside it what it means."""
    y, right = panel.y(value), panel.left + panel.width
    yield f'<line x1="{panel.left:g}" y1="{y:.1f}" x2="{right:g}" y2="{y:.1f}" stroke="#333" stroke-dasharray="5 4"/>'
    for line, text in enumerate((*words, f"{value:.1%}")):
        yield f'<text x="{right + 8:g}" y="{y - 11 + 15 * line:.1f}" fill="#333" font-size="12">{text}</text>'


def _curves(panel: Panel, comparison: Comparison, values: Callable[[Run], Sequence[float]]) -> Iterator[str]:
    for arm, colour in zip(comparison.arms, COLOURS, strict=True):
        yield from _lines(panel, arm, colour, values)


def _lines(panel: Panel, arm: Arm, colour: str, values: Callable[[Run], Sequence[float]]) -> Iterator[str]:
    curves = [curve(values(run)) for run in arm.runs]
    if not all(curves):
        return
    for one in curves:
        yield _line(panel, one, f'stroke="{colour}" stroke-width="1" stroke-opacity="0.45"')
    yield _line(panel, mean(curves), f'stroke="{colour}" stroke-width="2.75"')


def _line(panel: Panel, points: Curve, style: str) -> str:
    path = " ".join(f"{panel.x(step):.1f},{panel.y(value):.1f}" for step, value in points)
    return f'<polyline points="{path}" fill="none" stroke-linejoin="round" {style}/>'
