"""Parity with the reference: outputs, then gradients."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from assay.audits.laws.limits import difference, excess, floor, relative
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Exact, Numeric, Operation, Outcome, Outputs


def parity(trial: Trial) -> Iterator[Evidence]:
    """The outputs are those of the float64 reference.

    Why: everything else that a component promises follows from computing the right thing. Exact operations (indices,
    masks, labels, positions) must agree bit for bit; numeric ones may err twice as much as the ordinary form in the
    same dtype, by the worst element, over all elements, and by the worst row.

    Example: a kernel that rounds cos and sin to bfloat16 for float32 queries, which the ordinary form does not.
    """
    values, truth = trial.outcome.values, trial.truth.values
    for name in trial.operation.outputs:
        if name not in values or values[name].shape != truth[name].shape:
            yield _missing(name, values.get(name), truth[name])
        elif isinstance(trial.operation.expect, Exact):
            yield from exactly(name, values[name], truth[name])
        else:
            yield from _numerically(trial, name, values[name], truth[name])


def gradients(trial: Trial) -> Iterator[Evidence]:
    """The gradients of the inputs are those of the float64 reference, for an upstream gradient that is not one.

    Why: a wrong backward with a right forward trains a worse model and nothing crashes. The upstream gradient differs
    for every element, so a backward that assumes ones or a mean is noticed.

    Example: a backward that rotates by the same angle as the forward instead of the opposite one.
    """
    grads, truth = trial.outcome.grads, trial.truth.grads
    for name in trial.differentiable:
        if name not in grads or grads[name].shape != truth[name].shape:
            yield _missing(f"grad:{name}", grads.get(name), truth[name])
        else:
            yield from _numerically(trial, f"grad:{name}", grads[name], truth[name])


def returns(trial: Trial) -> Iterator[Evidence]:
    """The outputs have the declared names, shapes and dtype, and are where the inputs are.

    Why: a result in another dtype is promoted or truncated by whatever comes next, in silence; one on another device
    is copied there and back for each layer, or stops the training run.

    Example: a rotation that returns float32 for bfloat16 inputs doubles the memory of the attention that follows.
    """
    values, truth = trial.outcome.values, trial.truth.values
    for name in trial.operation.outputs:
        if name not in values:
            yield _missing(name, None, truth[name])
            continue
        value, wanted = values[name], truth[name]
        dtype = trial.dtype if wanted.is_floating_point() and trial.dtype.is_floating_point else wanted.dtype
        if wanted.dtype == torch.float64 and isinstance(trial.operation.expect, Exact):
            dtype = value.dtype if value.dtype in {torch.float32, torch.float64} else dtype
        if name in trial.operation.sums and value.dtype == torch.float32:
            dtype = value.dtype
        for what, got, want in (
            ("shape", tuple(value.shape), tuple(wanted.shape)),
            ("dtype", value.dtype, dtype),
            ("device", value.device.type, trial.device.type),
        ):
            if got != want:
                yield Evidence(where=name, measured=f"{what} {got}", limit=f"{what} {want}", message=f"wrong {what}")


def exactly(where: str, got: Tensor, truth: Tensor, message: str = "differs from the reference") -> Iterator[Evidence]:
    """Evidence unless two tensors agree in every element; fractions (of seconds, in positions) up to float32."""
    wrong = got.cpu() != truth.cpu()
    if got.is_floating_point() and truth.dtype == torch.float64 and got.numel():
        reach = truth.abs().amax() if truth.numel() else truth.new_zeros(())
        wrong &= difference(got, truth) > floor([], reach, torch.float32) * reach
    if not bool(wrong.any()):
        return
    count = int(wrong.sum())
    index = tuple(int(i) for i in torch.nonzero(wrong)[0])
    yield Evidence(
        where=where,
        measured=f"{got[index].item():g}",
        limit=f"{truth[index].item():g}",
        message=f"{message} at {count} of {wrong.numel()} places, the first shown",
        index=index,
    )


def _numerically(trial: Trial, where: str, got: Tensor, truth: Tensor) -> Iterator[Evidence]:
    scale = reach(trial, trial.inputs, where)
    found = excess(
        where,
        relative(difference(got, truth), scale),
        floor([truth], scale, got.dtype if where in trial.operation.sums else trial.dtype),
        lambda: ordinary_errors(trial, where, truth),
        "differs from the float64 reference",
    )
    if found:
        yield found


def ordinary_errors(trial: Trial, where: str, truth: Tensor) -> Iterator[Tensor]:
    """The ordinary form's relative errors in an output or gradient, on the case itself and on draws of its kind."""
    expect = trial.operation.expect
    assert isinstance(expect, Numeric)
    yield _relative_error(trial, where, truth, trial.inputs)
    yield from (_relative_error(trial, where, None, other) for other in expect.draws(trial.inputs))


def _relative_error(trial: Trial, where: str, truth: Tensor | None, inputs: object) -> Tensor:
    upstream = trial.upstream if trial.operation.differentiable else None
    eager = pick(trial.eager(inputs, upstream), where)
    truth = pick(trial.oracle(inputs, upstream), where) if truth is None else truth
    return relative(difference(eager, truth), reach(trial, inputs, where))


def reach(trial: Trial, inputs: object, where: str) -> Tensor:
    """What the errors of an output or gradient are relative to, in float64."""
    expect = trial.operation.expect
    assert isinstance(expect, Numeric)
    upstream = trial.upstream if trial.operation.differentiable else None
    return expect.reach(inputs, upstream)[where].double()


def pick(outcome: Outcome, where: str) -> Tensor:
    """An output by name, or a gradient by ``grad:name``."""
    values: Outputs = outcome.grads if where.startswith("grad:") else outcome.values
    return values[where.removeprefix("grad:")]


def _missing(name: str, got: Tensor | None, truth: Tensor) -> Evidence:
    measured = "absent" if got is None else f"shape {tuple(got.shape)}"
    return Evidence(where=name, measured=measured, limit=f"shape {tuple(truth.shape)}", message="missing or misshapen")


def numeric_only(operation: Operation, _params: object) -> str | None:
    """Applies to operations that are compared by number and have gradients."""
    return None if operation.differentiable else "the operation has no differentiable input"


def has_oracle(operation: Operation, _params: object) -> str | None:
    """Applies where there is something to compare with."""
    return None if isinstance(operation.expect, (Exact, Numeric)) else "many answers are right: no oracle"
