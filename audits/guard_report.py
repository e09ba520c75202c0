"""What a guard says of a training in words: the laws, the targets as text, what is trained, what the guard cost."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from assay.audits.guard_batch_laws import trained_share
from assay.audits.guard_judge import LAWS
from assay.audits.guard_terms import Found, Live
from assay.audits.observe import said
from assay.audits.pipeline_run import runs
from assay.audits.terms import Inexpressible

LONGEST = 160
"""Letters of the target that is shown."""
HELD = 16
"""Findings of a rule that are kept; further ones are counted."""


@dataclass
class Tally:
    """What a guard has seen so far; ``seconds`` are those that it took itself."""

    steps: int = 0
    checked: int = 0
    asked: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LAWS, 0))
    broken: dict[str, int] = field(default_factory=dict)
    found: dict[str, list[Found]] = field(default_factory=dict)
    unasked: dict[str, str] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    began: float = field(default_factory=time.perf_counter)

    def note(self, found: Sequence[Found]) -> tuple[Found, ...]:
        """Count the findings of a step; those of rules that had none before."""
        new = tuple(one for one in found if one.rule not in self.found)
        for rule in {one.rule for one in found}:
            self.broken[rule] = self.broken.get(rule, 0) + 1
        for one in found:
            held = self.found.setdefault(one.rule, [])
            held += [one] if len(held) < HELD else []
        return new


def report(tally: Tally, every: int, last: Live | None, processor: Any) -> str:
    """The report, in lines."""
    whole = time.perf_counter() - tally.began
    found = sum(tally.broken.values())
    lines = [
        f"assay guard: {tally.steps} steps, {tally.checked} checked (every {every}), {found} findings",
        *_laws(tally),
        *(() if last is None else _last(last, processor)),
        f"  cost: {tally.seconds:.3g} s of {whole:.3g} s ({tally.seconds / max(whole, 1e-9):.2%})",
    ]
    return "\n".join(lines)


def _laws(tally: Tally) -> Iterator[str]:
    width = max(map(len, LAWS))
    for rule in LAWS:
        asked, broken = tally.asked[rule], tally.broken.get(rule, 0)
        if not asked:
            yield f"  {rule:{width}}  not asked: {tally.unasked.get(rule, 'no step was checked')}"
        elif not broken:
            yield f"  {rule:{width}}  held, {_times(asked)}"
        else:
            yield f"  {rule:{width}}  BROKEN, {broken} of {_times(asked)}: {tally.found[rule][0].message}"


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _last(last: Live, processor: Any) -> Iterator[str]:
    """Of the step that was checked last."""
    parts = [part for part in last.record["parts"] if part["name"].count(".") < 2]
    told = ", ".join(f"{part['name'] or 'the model'} {_trained(part)}" for part in parts)
    yield f"  parameters to be trained: {told}"
    try:
        yield f"  labels: {trained_share(last):.1%} of the text of the last batch"
    except Inexpressible:
        return
    if shown := target(last, processor):
        yield f"  the first target of the last batch: {shown!r}"


def _trained(part: Mapping[str, Any]) -> str:
    whole = part["trained"] + part["frozen"]
    return f"{part['trained']} of {whole}"


def target(live: Live, processor: Any) -> str:
    """The first run of labels of a batch, decoded; its ids where nothing decodes them."""
    for ids, labels in zip(live.view.ids.tolist(), live.view.labels.tolist(), strict=True):
        for _, run in runs(ids, labels):
            texts = decoded(processor, run)
            return ("".join(texts[one] for one in run) if texts else str(run))[:LONGEST]
    return ""


def decoded(processor: Any, ids: Sequence[int]) -> dict[int, str]:
    """What each token decodes to by itself; nothing without a tokenizer, or where it cannot."""
    tokenizer = getattr(processor, "tokenizer", processor)
    if not callable(getattr(tokenizer, "decode", None)):
        return {}
    try:
        return {token: said(tokenizer.decode([token])) for token in set(ids) if token >= 0}
    except Exception:  # noqa: BLE001 - a foreign tokenizer may raise anything, and pages show ids then
        return {}


def with_texts(live: Live, processor: Any, found: Sequence[Found]) -> Live:
    """What is written of a step: what it showed, what was found in it, and what its tokens say."""
    ids = live.tensors.get("batch.input_ids")
    texts = {} if ids is None else decoded(processor, ids.flatten().tolist())
    findings = [dataclasses.asdict(one) for one in found]
    return Live(live.tensors, {**live.record, "texts": {str(token): text for token, text in texts.items()},
                               "findings": findings})  # fmt: skip
