"""The laws of a patch: it changes something, what it changes runs, and the model computes and trains as before."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from assay.audits.components.patch.operations import NAME, Case
from assay.audits.laws.limits import difference, excess, floor, relative
from assay.audits.laws.trial import Trial
from assay.audits.patch_runs import from_bytes
from assay.audits.terms import Evidence, Law, Operation, Outputs, Verdict


def never_ran(trial: Trial) -> Iterator[Evidence]:
    """Everything that the patch replaced is called when the model runs.

    Why: a patch is written for one release of a library. When a later release renames what it assigns to, the
    assignment still succeeds, nothing fails, and training goes on without the patch. Since no number can be wrong
    then, the verdict is UNKNOWN: nothing is known of code that did not run.

    Example: a fused rotary assigned to ``apply_multimodal_rotary_pos_emb`` of a release whose attention calls
    ``apply_rotary_pos_emb``.
    """
    for change in _record(trial)["changes"]:
        if change["forward"] == 0:
            yield Evidence(
                where=change["site"], measured="0 calls", limit="at least 1 call", verdict=Verdict.UNKNOWN,
                message=f"replaced by {change['after']}, never called: {change['why']}",
            )  # fmt: skip


def changed_nothing(trial: Trial) -> Iterator[Evidence]:
    """The patch changes at least one function, class, method, registry entry, module or tensor.

    Why: a patch that looks for a version, a class or an attribute and does not find it often returns without a word.

    Example: a patch that returns early because the installed release is newer than those it knows.
    """
    record = _record(trial)
    if "plain" in record or record["changes"]:
        return
    same = all(torch.equal(patched, plain) for _, patched, plain, _ in _compared(trial, ("loss", "logits", "grad:")))
    message = "no change was found" if same else "the results differ, but no change was found where patches are made"
    yield Evidence(
        where="patch", measured="0 changes", limit="at least 1 change", verdict=Verdict.UNKNOWN, message=message
    )


def equal(trial: Trial) -> Iterator[Evidence]:
    """The patched model gives the loss and the logits of real tokens that the plain model gives.

    Why: a patch is meant to make a model faster or smaller, not another model. The truth is the plain model in
    float64; the patched one may err twice as much as the plain one in the dtype at hand.

    Example: a rotary kernel that reads the height's positions for the width: finite, plausible, and wrong.
    """
    yield from _judged(trial, ("loss", "logits"), "differs from the plain model")


def backward(trial: Trial) -> Iterator[Evidence]:
    """Every parameter gets the gradient that it gets without the patch.

    Why: kernels come with a backward of their own. When that is wrong the loss of the first step is right, every
    check of outputs passes, and the model learns something else. Errors are measured against the model's largest
    gradient, so that gradients which are cancellation noise do not decide.

    Example: a rotary whose backward turns the same way as its forward, or not at all.
    """
    yield from _judged(trial, ("grad:",), "the gradient differs from the plain model's")


def steps(trial: Trial) -> Iterator[Evidence]:
    """After a few steps of gradient descent every parameter is where it is without the patch.

    Why: what is kept between calls shows from the second step on only: a cached table, a buffer reused while autograd
    still needs it, weights that were copied when the patch was applied and no longer follow the model's.

    Example: a fused projection that concatenates the weights once and trains the copy.
    """
    yield from _judged(trial, ("step:",), "the parameter differs from the plain model's after the last step")


def _record(trial: Trial) -> Mapping[str, Any]:
    record: Mapping[str, Any] = from_bytes(trial.outcome.values["record"])
    return record


def _judged(trial: Trial, kinds: tuple[str, ...], message: str) -> Iterator[Evidence]:
    record = _record(trial)
    if "plain" in record:
        yield Evidence(
            where="plain model", measured="raised", limit="runs", verdict=Verdict.UNKNOWN,
            message=f"there is nothing to compare with, the unpatched model did not run: {record['plain']}",
        )  # fmt: skip
        return
    lost = list(_lost(trial.outcome.values, kinds))
    yield from lost or _worst(trial, kinds, message)


def _worst(trial: Trial, kinds: tuple[str, ...], message: str) -> Iterator[Evidence]:
    """What exceeds its limit most, standing for all tensors of its kind, so that one fault is one finding."""
    reaches = _reaches(trial)
    broken = []
    compared = list(_compared(trial, kinds))
    for name, patched, plain, truth in compared:
        reach = reaches[name]
        ordinary = functools.partial(_errors, plain, truth, reach)
        allowed = floor([truth], reach, trial.dtype)
        found = excess(name, relative(difference(patched, truth), reach), allowed, ordinary, message)
        if found:
            broken.append(found)
    if kinds in GROUPS and broken:
        worst = max(broken, key=_ratio)
        label = worst.where.partition(":")[2]
        text = f"{label}: {worst.message} ({len(broken)} of {len(compared)} parameters differ)"
        broken = [dataclasses.replace(worst, where=GROUPS[kinds], message=text)]
    yield from broken


GROUPS = {("grad:",): "gradients", ("step:",): "parameters"}


def _ratio(evidence: Evidence) -> float:
    return float(evidence.measured) / float(evidence.limit)


def _errors(plain: Tensor, truth: Tensor, reach: Tensor) -> list[Tensor]:
    return [relative(difference(plain, truth), reach)]


def _lost(values: Outputs, kinds: tuple[str, ...]) -> Iterator[Evidence]:
    """What the plain model gives and the patched one does not. Logits are optional: fused losses do without."""
    for name in _names(values, kinds):
        mine, theirs = values.get(f"patched.{name}"), values[f"plain.{name}"]
        if name == "logits" and mine is None:
            continue
        if mine is None or mine.shape != theirs.shape:
            measured = "absent" if mine is None else f"shape {tuple(mine.shape)}"
            limit = f"shape {tuple(theirs.shape)}"
            yield Evidence(where=name, measured=measured, limit=limit, message="the plain model gives it")


def _compared(trial: Trial, kinds: tuple[str, ...]) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Name, patched, plain and truth of all that can be compared."""
    values = trial.outcome.values
    for name in _names(values, kinds):
        patched, plain, truth = (values.get(f"{who}.{name}") for who in ("patched", "plain", "truth"))
        if patched is not None and plain is not None and truth is not None and patched.shape == truth.shape:
            yield name, patched, plain, truth


def _names(values: Outputs, kinds: tuple[str, ...]) -> list[str]:
    plain = [name.removeprefix("plain.") for name in values if name.startswith("plain.")]
    return sorted(name for name in plain if name.startswith(kinds))


def _reaches(trial: Trial) -> dict[str, Tensor]:
    """What rounding is proportional to, by name.

    The largest logit for the loss and the logits, the model's largest gradient for gradients, and for a parameter its
    own size plus all steps of the largest gradient.
    """
    truths = {n.removeprefix("truth."): v for n, v in trial.outcome.values.items() if n.startswith("truth.")}
    largest = {name: value.abs().max().double() for name, value in truths.items() if value.numel()}
    gradient = torch.stack([size for name, size in largest.items() if name.startswith("grad:")]).max()
    moved = trial.inputs.steps * trial.inputs.rate * gradient
    logit = largest.get("logits", largest["loss"])
    return {
        name: gradient if name.startswith("grad:") else size + moved if name.startswith("step:") else logit
        for name, size in largest.items()
    }


def _everything(_operation: Operation, params: Case) -> str | None:
    return None if params.content == "all" else "only a batch of all kinds of content can reach all that is patched"


def _law(name: str, check: Any, applies: Any = None) -> Law:
    more = {"applies": applies} if applies else {}
    return Law(name=name, operations=(NAME,), check=check, doc=check.__doc__ or "", **more)


LAWS = (
    _law("never-ran", never_ran, _everything),
    _law("changed-nothing", changed_nothing),
    _law("equal", equal),
    _law("backward", backward),
    _law("steps", steps),
)
