"""The laws of a Trainer's step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from assay.audits.components.masked_loss.trainer import NAME, Case
from assay.audits.laws.limits import difference, excess, floor, relative, worst
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Law, Operation, Outputs


def accumulated(trial: Trial) -> Iterator[Evidence]:
    """A step over micro-batches is the step over one batch of all their samples: in loss, and in every parameter.

    Why: gradient accumulation is a matter of memory. Where it changes the step, the learning rate that was tuned on
    one machine is not the one that is used on another, or answers weigh more for being short.

    Example: the mean of the micro-batches' means, for a class that says it takes no count of the step.
    """
    whole = trial.varied(micro=1)
    message = f"{trial.inputs.micro} micro-batches are not one batch"
    yield from _same(trial, trial.outcome.values, whole, message, sides=2)


def reference(trial: Trial) -> Iterator[Evidence]:
    """The step over one batch is the one that follows from the reference loss, label smoothing included.

    Why: the Trainer computes some losses itself, in place of the model's. What it takes for the target of a position,
    and what it divides by, decides what is trained.

    Example: label smoothing that scores a position against its own token, for classes that a list does not name.
    """
    message = "one batch is not trained on the reference loss"
    yield from _same(trial, trial.varied(micro=1), _specified(trial), message, sides=1)


def _specified(trial: Trial) -> Outputs:
    """The step that the specification asks for, in float64."""
    return trial.varied(by="reference", dtype="float64")


def _same(trial: Trial, got: Outputs, want: Outputs, message: str, *, sides: int) -> Iterator[Evidence]:
    """Loss and moves agree, up to what float32 costs so many sides; the worst parameter stands for all."""
    broken = []
    for name in want:
        reach = _reaches(trial)[name.partition(":")[0]]
        error, allowed = relative(difference(got[name], want[name]), reach), floor([], reach, torch.float32)
        found = excess(name, error, allowed, functools.partial(_ordinary, trial, name, sides), message)
        if found:
            broken.append(found)
    how = " (packed)" if trial.inputs.packed else ""  # what packing breaks is not what breaks without it
    yield from (dataclasses.replace(item, where=f"loss{how}") for item in broken if item.where == "loss")
    yield from worst(f"parameters{how}", [item for item in broken if item.where != "loss"])


def _reaches(trial: Trial) -> Mapping[str, Tensor]:
    """What rounding is proportional to: the loss, and for every move the largest one."""

    def compute() -> dict[str, Tensor]:
        out = _specified(trial)
        moves = [value.abs().max() for name, value in out.items() if name != "loss" and value.numel()]
        return {"loss": out["loss"].double(), "move": torch.stack(moves).max()}

    found: Mapping[str, Tensor] = trial.once("trainer reaches", compute)
    return found


def _ordinary(trial: Trial, name: str, sides: int) -> list[Tensor]:
    """What float32 costs the specification's own step, the rounding of the parameters themselves included."""
    narrow, wide = trial.varied(by="reference", dtype="float32"), _specified(trial)
    return [sides * relative(difference(narrow[name], wide[name]), _reaches(trial)[name.partition(":")[0]])]


def _several(_operation: Operation, case: Case) -> str | None:
    return None if case.micro > 1 else "one micro-batch"


LAWS = (
    Law.of((NAME,), accumulated, _several),
    Law.of((NAME,), reference),
)
