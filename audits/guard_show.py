"""What a guard wrote, looked at again: as a page, and put to the laws once more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from assay.audits.components.pipeline.views import Piece, View
from assay.audits.guard_files import load
from assay.audits.guard_judge import LAWS, judged
from assay.audits.guard_pieces import pieces
from assay.audits.guard_terms import Live
from assay.audits.pipeline_show import Shown, axes, kinds, line
from assay.audits.render.batch import Row, render
from assay.audits.terms import Inexpressible, Verdict
from assay.audits.usage import BadUsage


def page(path: Path) -> Shown:
    """A batch that a guard wrote, drawn as batches of pipelines are. BadUsage where there is none to be drawn."""
    live = load(path)
    try:
        view = live.view
    except Inexpressible as reason:
        message = f"--batch: {path}: there are no tokens to show: {reason}"
        raise BadUsage(message) from reason
    rows = list(_rows(live, view))
    notes = [*_notes(live), *(f"Law {one}." for one in judged(live).findings)]
    title = f"Step {live.record['step']} of {live.facts['class']}, rank {live.record['rank']}: {path.name}"
    return Shown(render(title, rows, notes), tuple(line(row) for row in rows) + tuple(notes))


def _notes(live: Live) -> Iterator[str]:
    micro, micros = live.record.get("micro", 0), live.record["micros"]
    if micros > 1:
        yield f"This is micro-batch {micro + 1} of {micros} of the step."
    if "used.positions" not in live.tensors:
        yield f"Positions shown: those of the batch, if any, since {live.record['unseen'] or 'none were seen'}."
    if not live.record["texts"]:
        yield "Nothing decodes the tokens: they are shown by their ids."
    if live.view.get("labels") is None:
        yield "The forward was given no labels: nothing is shown as trained on."
    if live.record["left_out"]:
        yield f"Too large for the file: {', '.join(live.record['left_out'])}."


def _rows(live: Live, view: View) -> Iterator[Row]:
    texts: Mapping[str, str] = live.record["texts"]
    placed = pieces(live)
    used = live.tensors.get("used.positions")
    lines = axes(view, "" if used is None else View({"positions": used}))
    labels = view.get("labels")
    trained = view.labels >= 0 if labels is not None and labels.numel() == view.ids.numel() else None
    for number, (ids, own) in enumerate(zip(view.ids.tolist(), kinds(view), strict=True)):
        here = [piece for piece in placed if piece.row == number]
        yield Row(
            name=f"row {number}",
            ids=ids,
            texts=[texts.get(str(token), str(token)) for token in ids],
            kinds=own,
            trained=[False] * len(ids) if trained is None else trained[number].tolist(),
            starts=_starts(here),
            samples=[f"sample {piece.sample}" for piece in here],
            axes={name: values[number] for name, values in lines.items()},
        )


def _starts(here: Sequence[Piece]) -> list[int]:
    return [0, *(piece.start for piece in here[1:])]


@dataclass(frozen=True)
class Again:
    """What came of judging a file once more, in lines, and as a verdict."""

    lines: tuple[str, ...]
    verdict: Verdict


def again(path: Path) -> Again:
    """Put what a guard wrote to its laws again: FAIL where what was found then, or anything else, is found now."""
    live = load(path)
    result = judged(live)
    before = {one["rule"] for one in live.record["findings"]}
    now = {one.rule for one in result.findings}
    lines = [f"FAIL  {one}" for one in result.findings]
    lines += [f"did not show again: {rule}" for rule in sorted(before - now)]
    lines += [f"UNKNOWN  {rule}: {why}" for rule, why in result.failed.items()]
    lines += [f"not asked  {rule}: {why}" for rule, why in result.unasked.items() if rule not in now]
    verdict = Verdict.FAIL if now else Verdict.UNKNOWN if result.failed else Verdict.PASS
    step, asked = live.record["step"], len(LAWS) - len(result.unasked) - len(result.failed)
    versions = ", ".join(f"{name} {number}" for name, number in live.record["versions"].items())
    lines.append(f"step {step}, written with {versions}: {len(now)} of {asked} laws broken")
    return Again(tuple(lines), verdict)
