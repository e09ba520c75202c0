"""One batch of a pipeline as a page: the tokens as its tokenizer reads them, and the positions that its model used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from assay.audits.components.pipeline import batch_laws
from assay.audits.components.pipeline.laws import OF_BATCHES
from assay.audits.components.pipeline.operations import NAME, OPERATION, Case, build, pipeline_candidate
from assay.audits.components.pipeline.views import View, located, view
from assay.audits.laws.trial import Broken, Trial
from assay.audits.pipeline_run import BatchCall
from assay.audits.render.batch import KINDS, Row, render
from assay.audits.server import Server
from assay.audits.session import MODELS
from assay.audits.subject import Foreign
from assay.audits.terms import Inexpressible
from assay.audits.usage import BadUsage

FEW = 4
"""Samples that are shown where none are named."""
AXES: Mapping[int, tuple[str, ...]] = {
    1: ("position",),
    3: ("time", "height", "width"),
    4: ("text", "time", "height", "width"),
}
MODALITIES = ("text", "image", "video", "audio")


@dataclass(frozen=True)
class Shown:
    """The page, and a line for each row."""

    html: str
    lines: tuple[str, ...]


def indices(text: str) -> tuple[int, ...]:
    """``0,1,2`` as numbers. BadUsage names the option."""
    try:
        found = tuple(int(word) for word in text.split(",")) if text.strip() else ()
    except ValueError as error:
        message = f"--samples: expected numbers with commas between them, such as 0,1,2, got {text!r}"
        raise BadUsage(message) from error
    if any(number < 0 for number in found):
        message = f"--samples: expected indices from 0 on, got {text!r}"
        raise BadUsage(message)
    return found


def page(ref: str, samples: Sequence[int], seconds: float) -> Shown:
    """Make the batch where the pipeline lives, and draw it here. BadUsage where it cannot be made."""
    asked = pipeline_candidate(NAME, ref)
    with Server(preload=MODELS) as server, Foreign(server, asked, seconds=seconds, level="pipeline") as subject:
        params = Case(samples=tuple(samples))
        inputs: BatchCall = replace(build(params, torch.float64, torch.device("cpu")), texts=True)
        trial = Trial(operation=OPERATION, params=params, inputs=inputs, dtype=torch.float64, subject=subject)
        try:
            if not samples:
                length = _length(trial)
                trial = replace(trial, inputs=replace(inputs, samples=tuple(range(min(FEW, length)))), _memo={})
            return _drawn(ref, trial)
        except Inexpressible as error:
            raise BadUsage(f"--samples: {error}") from error
        except Broken as broken:
            raised = broken.outcome.raised
            assert raised is not None
            told = raised.message.removeprefix("BadUsage: ").partition(' File "')[0]
            raise BadUsage(told if told.startswith("--") else f"--pipeline: {ref}: {raised.kind}: {told}") from broken


def _length(trial: Trial) -> int:
    return int(View(trial.run(replace(trial.inputs, samples=(0,), texts=False))).record["length"])


def _drawn(ref: str, trial: Trial) -> Shown:
    found = View(trial.run(replace(trial.inputs, run=False)))
    bare = replace(trial, inputs=replace(trial.inputs, texts=False), _memo={})
    ran = _ran(bare, found)
    rows = list(_rows(bare, found, ran))
    notes = [*_notes(found, ran), *_findings(bare)]
    title = f"A batch of {ref}: {listed(found.samples)}"
    return Shown(render(title, rows, notes), tuple(line(row) for row in rows) + tuple(notes))


def _ran(trial: Trial, found: View) -> View | str:
    """The model's run as far as its positions, or why there is none."""
    if not found.facts["model"]:
        return "the pipeline has no model"
    try:
        return view(trial, positions=True)
    except Inexpressible as reason:
        return str(reason)
    except Broken as broken:
        return f"the model {_raised(broken)}"


def _raised(broken: Broken) -> str:
    raised = broken.outcome.raised
    assert raised is not None
    return f"raised {raised.kind}: {raised.message.partition(chr(10))[0]}"


def _notes(found: View, ran: View | str) -> Iterator[str]:
    if isinstance(ran, str) or "positions" not in ran.values:
        why = ran if isinstance(ran, str) else "its positions could not be watched"
        has = "those of the batch" if found.get("position_ids") is not None else "none"
        yield f"Positions shown: {has}, since {why}."
    if not found.facts["texts"]:
        yield "The pipeline has no tokenizer: tokens are shown by their ids."
    if found.get("labels") is None:
        yield "The batch has no labels: nothing is trained on."


def _findings(trial: Trial) -> Iterator[str]:
    """What the laws of batches find, as sentences, and which of them had nothing to ask."""
    unasked = []
    for law in OF_BATCHES:
        try:
            for item in law.check(trial):
                place = f"{item.where}{list(item.index) if item.index else ''}"
                yield f"Law {law.name}: {item.message} ({place}: {item.measured}, expected {item.limit})."
        except Inexpressible as reason:
            unasked.append(f"{law.name} ({reason})")
        except Broken as broken:
            unasked.append(f"{law.name} ({_raised(broken)})")
    if unasked:
        yield f"Not asked: {'; '.join(unasked)}."


def _rows(trial: Trial, found: View, ran: View | str) -> Iterator[Row]:
    lines = axes(found, ran)
    own = kinds(found)
    texts = found.record["texts"] or [[str(token) for token in row] for row in found.ids.tolist()]
    starts, here = _starts(trial, found)
    labels = found.labels if _labelled(found) else None
    for row, ids in enumerate(found.ids.tolist()):
        yield Row(
            name=f"row {row}{': ' if here[row] else ''}{listed(here[row]) if here[row] else ''}",
            ids=ids,
            texts=texts[row],
            kinds=own[row],
            trained=[False] * len(ids) if labels is None else (labels[row] >= 0).tolist(),
            starts=starts[row],
            samples=[f"sample {number}" for number in here[row]],
            axes={name: values[row] for name, values in lines.items()},
        )


def _labelled(found: View) -> bool:
    labels = found.get("labels")
    return labels is not None and labels.numel() == found.ids.numel()


def axes(found: View, ran: View | str) -> dict[str, list[list[int]]]:
    """By the name of the axis, the positions of each row; none where nobody has any."""
    ids: Tensor | None = None
    if not isinstance(ran, str) and "positions" in ran.values:
        ids = ran.values["positions"]
    elif (given := found.get("position_ids")) is not None:
        ids = given.reshape(-1, *found.ids.shape) if given.numel() % found.ids.numel() == 0 else None
    if ids is None or ids.shape[-1] != found.ids.shape[-1]:
        return {}
    ids = ids.expand(-1, len(found.ids), -1)
    names = AXES.get(len(ids)) or tuple(f"axis {place}" for place in range(len(ids)))
    return {name: values.tolist() for name, values in zip(names, ids, strict=True)}


def kinds(found: View) -> list[list[str]]:
    """What each token of each row is, of ``render.batch.KINDS``."""
    special = set(found.facts["special"]) - set(found.facts["placeholders"].values())
    rows = zip(found.ids.tolist(), found.types.tolist(), found.real.tolist(), strict=True)
    return [
        [_kind(token, kind, special, real=real) for token, kind, real in zip(ids, types, reals, strict=True)]
        for ids, types, reals in rows
    ]


def _kind(token: int, modality: int, special: set[int], *, real: bool) -> str:
    name = MODALITIES[modality]
    if not real:
        return "pad"
    name = "special" if name == "text" and token in special else name
    assert name in KINDS
    return name


def _starts(trial: Trial, found: View) -> tuple[list[list[int]], list[list[int]]]:
    """Where samples start in each row, and which they are: by their ids, else by what the batch says, then none."""
    try:
        placed, _ = located(trial, found)
    except (Broken, Inexpressible):
        placed = []
    said = {place for places in batch_laws.starts(found).values() for place in places}
    starts, here = [], []
    for row in range(len(found.ids)):
        mine = sorted((piece.start, piece.sample) for piece in placed if piece.row == row)
        places = [place for place, _ in mine] or sorted(place for at, place in said if at == row)
        starts.append([0, *places[1:]])
        here.append([sample for _, sample in mine])
    return starts, here


def listed(numbers: Sequence[int]) -> str:
    """``sample 3``, ``samples 2, 0, 1``, ``samples 0 to 29``."""
    if len(numbers) == 1:
        return f"sample {numbers[0]}"
    if len(numbers) > 3 and list(numbers) == list(range(numbers[0], numbers[0] + len(numbers))):
        return f"samples {numbers[0]} to {numbers[-1]}"
    return f"samples {', '.join(map(str, numbers))}"


def line(row: Row) -> str:
    """A row in words."""
    pads = sum(kind == "pad" for kind in row.kinds)
    return f"{row.name}: {len(row.ids)} tokens, {pads} of them padding, {sum(row.trained)} trained"
