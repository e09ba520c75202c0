"""The laws of knobs: every setting does something."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from assay.audits.components.config.knobs import NAME
from assay.audits.laws.trial import Trial
from assay.audits.patch_runs import from_bytes
from assay.audits.terms import Evidence, Inexpressible, Law, Verdict


def alike(trial: Trial) -> Iterator[Evidence]:
    """Building twice with the same settings, from the same seed, gives the same.

    Why: where it does not, everything differs always, and nothing can be told of any setting. The verdict is UNKNOWN.

    Example: a module that draws its weights from a generator that it seeds by the clock.
    """
    record = _record(trial)
    if record.get("unlike"):
        yield Evidence(
            where=record["unlike"][0], measured="two answers", limit="one answer", verdict=Verdict.UNKNOWN,
            message="built twice with the same settings it differs: nothing can be told of them",
        )  # fmt: skip
    if record.get("raised"):
        yield Evidence(where="call", measured=record["raised"], limit="returns",
                       message="with its usual settings it does not take the batch")  # fmt: skip


def dead(trial: Trial) -> Iterator[Evidence]:
    """Each setting, changed, changes something: parameters, buffers, outputs or gradients, in eval or training mode.

    Why: a setting that is taken and ignored is believed: experiments are run over it, and their differences are noise.
    One that changes nothing by itself is tried again with every other one changed too. Knobs that act elsewhere are
    named in ``inert``.

    Example: a dropout argument that is never passed on; a base of the rotary embedding that is read from elsewhere.
    """
    asked = False
    for name, told in _each(trial):
        asked = True
        if told["dead"]:
            yield Evidence(where=name, measured="no change", limit="some change",
                           message=f"{told['other']} in place of {told['usual']} changes nothing")  # fmt: skip
    if not asked:
        raise Inexpressible("no knob has another value that can be built")


def unread(trial: Trial) -> Iterator[Evidence]:
    """Parameters that a setting adds or initialises are read: one of them at least gets a gradient.

    Why: a parameter that is declared, counted, saved and never used looks like a feature.

    Example: LayerScale parameters that are created and not multiplied with.
    """
    asked = False
    for name, told in _each(trial):
        asked = True
        if told["unread"]:
            held = told["changes"][0] if told["changes"] else ""
            message = f"{told['other']} in place of {told['usual']} changes {held}, which nothing reads"
            yield Evidence(where=name, measured="no gradient", limit="a gradient", message=message)
    if not asked:
        raise Inexpressible("no knob has another value that can be built")


def _each(trial: Trial) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What is told of each knob that can be judged. Inexpressible where nothing can be told of any."""
    record = _record(trial)
    if record["unlike"] or record["raised"]:
        raise Inexpressible("nothing can be told of a setting here: see the law alike")
    asked = (trial.params.knob,) if trial.params.knob else record["knobs"]
    for name in asked:
        told = _told(trial, name)
        if "refused" not in told:
            yield name, told


def _told(trial: Trial, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = from_bytes(trial.varied(knob=name)["record"])
    return found


def _record(trial: Trial) -> Mapping[str, Any]:
    found: Mapping[str, Any] = from_bytes(trial.varied(knob="")["record"])
    return found


LAWS = tuple(Law.of((NAME,), law) for law in (alike, dead, unread))
