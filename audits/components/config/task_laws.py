"""The laws of task switches: what is on has data, what is off has none, and the switches are read as they are meant."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from assay.audits.components.config.tasks import NAME
from assay.audits.laws.trial import Trial
from assay.audits.patch_runs import from_bytes
from assay.audits.terms import Evidence, Inexpressible, Law


def known(trial: Trial) -> Iterator[Evidence]:
    """Each declared switch is in the configuration, under the name that it is declared by.

    Why: code that reads a switch with a default reads the default for ever once the key is renamed or misspelt.

    Example: ``detection_enable`` in the file, ``config.get("detection_enabled", False)`` in the code.
    """
    for item in _record(trial):
        if not item["known"]:
            yield Evidence(where=item["name"].removeprefix("!"), measured="absent", limit="a value",
                           message="the configuration has no such switch")  # fmt: skip


def readable(trial: Trial) -> Iterator[Evidence]:
    """No switch is a text that says false and is true.

    Why: texts come from command lines and environment variables; any text but the empty one is true.

    Example: ``detection_enabled: "false"``.
    """
    for item in _record(trial):
        if item["misread"]:
            yield Evidence(
                where=item["name"].removeprefix("!"), measured=item["value"], limit="true, false or a number",
                message="a text that says false and is true wherever it is read",
            )  # fmt: skip


def off(trial: Trial) -> Iterator[Evidence]:
    """A task that is switched off has nothing in the samples.

    Why: what was annotated for a task is left unused in silence: targets are dropped, the head is never trained, and
    the metric that would show it is not computed either.

    Example: ``detection_enabled: false`` over samples with objects.
    """
    judged = [item for item in _clear(trial) if not item["on"]]
    for item in judged:
        held = {split: count for split, count in item["counts"].items() if count}
        if held:
            split, count = next(iter(held.items()))
            yield Evidence(
                where=item["name"].removeprefix("!"), limit="0 samples",
                measured=f"{count} of {item['sizes'][split]} samples of {split}",
                message=f"switched off ({item['value']}), and {item['first']} has something in {item['field']}",
            )  # fmt: skip
    if not judged:
        raise Inexpressible("no declared switch is off")


def on(trial: Trial) -> Iterator[Evidence]:
    """A task that is switched on has something in at least one sample of the first split.

    Why: a field that was renamed, or a file without annotations, trains a task on nothing: its loss is zero, which
    looks like success.

    Example: ``detection_enabled: true``, and every sample has an empty list of objects.
    """
    judged = [item for item in _clear(trial) if item["on"]]
    for item in judged:
        split, count = next(iter(item["counts"].items()))
        if not count:
            size = item["sizes"][split]
            yield Evidence(
                where=item["name"].removeprefix("!"), measured=f"0 of {size} samples of {split}", limit="at least 1",
                message=f"switched on ({item['value']}), and no sample has anything in {item['field']}",
            )  # fmt: skip
    if not judged:
        raise Inexpressible("no declared switch is on")


def _record(trial: Trial) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = from_bytes(trial.outcome.values["record"])
    return found


def _clear(trial: Trial) -> list[dict[str, Any]]:
    """Switches that are there and say what they mean; the others are told by their own laws."""
    return [item for item in _record(trial) if item["known"] and not item["misread"]]


LAWS = tuple(Law.of((NAME,), law) for law in (known, readable, off, on))
