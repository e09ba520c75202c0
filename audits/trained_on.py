"""Who trains on what: the same conversations through released trainers, and which characters each one trains on.

A peer's file says how with ``trains_on()``: from the name of an option to a function that is given conversations and
returns the ids and labels of each, and the tokenizer. ``python -m assay.audits.trained_on trl=PYTHON verl=PYTHON ...``
asks each in its environment and writes ``docs/who-trains-on-what.md`` and ``.html`` from what came back.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assay.audits import peer
from assay.audits.render import batch
from assay.audits.server import Server
from assay.audits.subject import Foreign
from assay.audits.terms import Candidate

PAGE = Path("docs/who-trains-on-what.md")
FAMILY = "qwen2_5_vl"
IGNORED = -100
Labelled = tuple[Sequence[Sequence[int]], Sequence[Sequence[int]], Any]
"""Ids and labels of each conversation, and the tokenizer."""
CONVERSATIONS: Mapping[str, Sequence[Sequence[str]]] = {
    "system prompt": (("system", "be brief"), ("user", "what is two and two?"), ("assistant", "four")),
    "image": (("user", "i4x6", "where is the cup?"), ("assistant", "left of the tree")),
    "two images, two turns": (
        ("user", "i4x4", "and", "i2x4", "are they alike?"),
        ("assistant", "no: one is wider"),
        ("user", "say no again"),
        ("assistant", "no"),
    ),
    "the answer is in the question": (("user", "say left: left"), ("assistant", "left")),
    "tool": (
        ("user", "how warm is it?"),
        ("assistant", "I look it up"),
        ("tool", "21 degrees"),
        ("assistant", "21 degrees"),
    ),
}
"""Turns as a role and parts, ``iHxW`` an image of so many patches."""
INTRODUCTION = """# Who trains on what

<!-- Written by `nox -s trained_on`; the same as a page to look at: who-trains-on-what.html. -->

The same conversations through released trainers, by their defaults and by the options they document. What is trained
on stands between ⟦ and ⟧; a run of placeholders is written once with its number. All with one tiny tokenizer and one
processor of Qwen2.5-VL, made offline; the chat template is ours where the trainer does not bring its own. The packages
are those of `audits/peers/locks`.
"""


@dataclass(frozen=True)
class Asked:
    """What a worker is asked: all conversations, under every option."""

    family: str = FAMILY


def implementation(target: Mapping[str, Any]) -> Callable[[Any], Mapping[str, Tensor]]:
    """In the worker: what a peer trains on of all conversations under all its options, as JSON in bytes."""
    module = importlib.import_module(f"{peer.FOLDER}.{target['peer'].replace('-', '_')}")

    def told(inputs: Asked) -> Mapping[str, Tensor]:
        from assay.audits.components.pipeline import own

        side = getattr(module, "SIDE", int(own.processor(inputs.family).image_processor.patch_size))
        found = {}
        for option, function in module.trains_on().items():
            samples = list(own.Talks(side, tuple(CONVERSATIONS.values())))
            found[option] = _each(function, samples)
        return {"json": torch.tensor(list(json.dumps(found).encode()), dtype=torch.uint8)}

    return told


def _each(function: Callable[[Any], Labelled], samples: Sequence[Any]) -> list[Any]:
    """One conversation after the other: one that a trainer refuses says so, and the others are still shown."""
    rows: list[Any] = []
    for sample in samples:
        try:
            (ids,), (labels,), tokenizer = function([sample])
        except Exception as error:  # noqa: BLE001 - foreign code may raise anything
            rows.append(f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}")
            continue
        texts = [tokenizer.decode([int(one)]) for one in ids]
        rows.append([[int(i), text, int(label) != IGNORED] for i, text, label in zip(ids, texts, labels, strict=True)])
    return rows


def asked(name: str, python: str) -> dict[str, Any]:
    """What one peer trains on. RuntimeError where its environment does not answer."""
    found = peer.peer(name)
    target = {"kind": "factory", "ref": "assay.audits.trained_on:implementation", "peer": name}
    candidate = Candidate(operation="label_mask.labels", name=name, target=target)
    with (
        Server(python, variables=found.variables, preload=found.preload) as server,
        Foreign(server, candidate, seconds=300.0) as subject,
    ):
        outcome = subject.call(Asked())
    if outcome.raised is not None:
        message = f"{name}: {outcome.raised.kind}: {outcome.raised.message}"
        raise RuntimeError(message)
    made: dict[str, Any] = json.loads(bytes(outcome.values["json"].tolist()))
    return made


def page(stored: Mapping[str, Mapping[str, Any]]) -> str:
    """The table as Markdown, conversation by conversation."""
    lines = [INTRODUCTION]
    for place, name in enumerate(CONVERSATIONS):
        lines += [f"## {name.capitalize()}", "", "| trainer | option | text |", "|---|---|---|"]
        for who, options in stored.items():
            lines += [f"| {who} | {option} | {_marked(rows[place])} |" for option, rows in options.items()]
        lines.append("")
    return "\n".join(lines)


def _marked(row: Any) -> str:
    """The text of one row with what is trained on in brackets, for a cell of a table."""
    if isinstance(row, str):
        return f"*{_cell(row)}*"
    return "".join(_span(text, trained=trained) for text, trained in _spans(row))


def _span(text: str, *, trained: bool) -> str:
    shown = "`" + _cell(text.replace("\n", "⏎")) + "`"
    return f"**⟦**{shown}**⟧**" if trained else shown


def _spans(row: Sequence[tuple[int, str, bool]]) -> Iterator[tuple[str, bool]]:
    """Texts that are trained on alike; equal control tokens in a row once, with their number."""
    for trained, run in groupby(row, key=lambda item: item[2]):
        parts = []
        for text, same in groupby(item[1] for item in run):
            count = sum(1 for _ in same)
            parts.append(f"{text} x {count}" if count > 1 and text.startswith("<|") else text * count)
        yield "".join(parts), trained


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("`", "'")


def html(stored: Mapping[str, Mapping[str, Any]]) -> str:
    """The same as a page to look at."""
    told = [
        (f"{name}: {who}, {option}", made[place])
        for place, name in enumerate(CONVERSATIONS)
        for who, options in stored.items()
        for option, made in options.items()
    ]
    refused = [f"{name}: {row}" for name, row in told if isinstance(row, str)]
    return batch.render("Who trains on what", [_row(*one) for one in told if not isinstance(one[1], str)], refused)


def _row(name: str, row: Sequence[tuple[int, str, bool]]) -> batch.Row:
    return batch.Row(
        name=name, ids=[item[0] for item in row], texts=[item[1] for item in row],
        kinds=[_kind(item[1]) for item in row], trained=[item[2] for item in row],
    )  # fmt: skip


def _kind(text: str) -> str:
    if text.endswith("_pad|>"):
        return "image"
    return "special" if text.startswith("<|") else "text"


def main(arguments: Sequence[str]) -> None:
    """Ask those that are named, keep what is stored of the others, and write the pages."""
    path = PAGE.with_suffix(".json")
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name, _, python in (argument.partition("=") for argument in arguments):
        stored[name] = asked(name, python)
    stored = dict(sorted(stored.items()))  # so that a page does not depend on who was asked last
    path.write_text(json.dumps(stored, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(page(stored), encoding="utf-8")
    PAGE.with_suffix(".html").write_text(html(stored), encoding="utf-8")


if __name__ == "__main__":
    # What is sent to a worker is rebuilt by its module's name, which is not that of the program that is run.
    from assay.audits import trained_on

    trained_on.main(sys.argv[1:])
