"""How an operation is differentiated: which gradients are asked for, how often, and what else runs in the meantime."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from assay.audits.laws import parity
from assay.audits.laws.limits import difference, excess, floor, relative
from assay.audits.laws.relation import Pair, Run, holds
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Inexpressible, Numeric, Operation, Outcome, Outputs, Tape

UNRECORDED: Mapping[str, Tape] = {
    "under no_grad": Tape(mode="no_grad"),
    "where no input requires a gradient": Tape(requiring=()),
    "in inference mode": Tape(mode="inference", requiring=()),
}
"""Forward passes that autograd does not record: a checkpoint's first, one of a frozen model, one of an evaluation."""
NO_LAYOUT = "a single number has no layout"


def upstream(trial: Trial) -> Iterator[Evidence]:
    """The layout of the upstream gradient does not matter: a transposed or expanded one gives what its copy gives.

    Why: autograd hands a backward whatever strides it has. Attention hands back transposed views, a sum one number
    with strides of zero. ``gradcheck`` and most tests know dense gradients only.

    Example: a backward kernel that reads the upstream gradient by the strides of its input.
    """
    if not any(grad.ndim for grad in trial.upstream.values()):
        raise Inexpressible(NO_LAYOUT)
    transposed = {name: _transposed(grad) for name, grad in trial.upstream.items()}
    expanded = {name: grad.new_tensor(1.75).expand_as(grad) for name, grad in trial.upstream.items()}

    def relate(run: Run, inputs: Any) -> Iterable[Pair]:
        for kind, views in (("transposed", transposed), ("expanded", expanded)):
            seen = run.grads(inputs, views)
            copied = run.grads(inputs, {name: view.contiguous() for name, view in views.items()})
            message = f"{kind}: a view's gradient differs from its copy's"
            yield from _pairs(trial, inputs, views, seen, copied, message)

    yield from holds(trial, relate)


def unused(trial: Trial) -> Iterator[Evidence]:
    """An output that nothing uses takes no gradient away from the others.

    Why: a loss need not use all that a function returns: keys without their queries, a result without its statistics.
    The backward then gets zeros for the rest, or nothing where it asked not to have them made, and must still give
    every input its share. Gradients add up, so those for each output alone come to those for all outputs together.

    Example: a backward that returns None for every input as soon as one upstream gradient is None.
    """

    def relate(run: Run, inputs: Any) -> Iterable[Pair]:
        together = run.grads(inputs, trial.upstream)
        alone = [run.grads(inputs, {name: grad}) for name, grad in trial.upstream.items()]
        added = {
            name: torch.stack([_gradient(part, name, inputs).double() for part in alone]).sum(0)
            for name in trial.differentiable
        }
        yield from _pairs(trial, inputs, trial.upstream, added, together, "those of each output do not add up")

    yield from holds(trial, relate)


def frozen(trial: Trial) -> Iterator[Evidence]:
    """An input that needs no gradient takes none from the others.

    Why: adapters freeze projections, and a stage of training freezes whole towers. A backward that asks which inputs
    need a gradient has a path for each answer, of which tests that train everything see one.

    Example: a backward that skips all its work where the first input is frozen.
    """
    first = trial.outcome
    for name in trial.differentiable:
        again = trial.call(trial.inputs, trial.upstream, Tape(requiring=(name,)))
        yield from _as_before(trial, first, again, (name,), f"another gradient where only {name} requires one")


def interleaved(trial: Trial) -> Iterator[Evidence]:
    """A backward pass belongs to its own forward pass, whatever ran in between.

    Why: every layer runs forward before the last runs backward; pipelines, several losses on two batches and models
    called twice do the same. What a backward needs must be kept for each call, in memory that no other call writes.

    Example: tables written into a buffer of the module, which the next forward pass fills with those of another batch.
    """
    first, again = trial.outcome, trial.call(trial.inputs, trial.upstream, Tape(between=trial.other))
    message = "another gradient after a forward pass on other inputs"
    yield from _as_before(trial, first, again, trial.differentiable, message)


def retained(trial: Trial) -> Iterator[Evidence]:
    """A second backward pass through the same graph gives the same gradients again, or is refused.

    Why: several losses on one forward pass, and ``retain_graph=True``, walk a graph more than once. A kernel that
    writes into what it saved is not noticed by autograd, and what the second pass reads is not what was saved. An
    exception is accepted: it trains nothing wrong.

    Example: a backward that flips the sign of the saved sine in place, and so flips it back at the second pass.
    """
    first, again = trial.outcome, trial.attempt(trial.inputs, trial.upstream, Tape(walks=2))
    if again.raised is None:
        message = "another gradient at the second backward pass"
        yield from _as_before(trial, first, again, trial.differentiable, message)


def modes(trial: Trial) -> Iterator[Evidence]:
    """What is computed does not depend on whether autograd records it.

    Why: functions that take a faster path where no gradient is needed have two forward passes. Evaluation uses the
    one, training the other, and activation checkpointing both for one step: the loss is of the one, the gradient of
    the other. The paths may round in their own ways, no more.

    Example: a fused path for inference that does not pass on an argument.
    """
    recorded = trial.outcome.values
    for said, tape in UNRECORDED.items():
        again = trial.call(trial.inputs, trial.upstream, tape).values
        for name in trial.operation.outputs:
            yield from _same_value(trial, name, again.get(name), recorded.get(name), said)


def _same_value(trial: Trial, name: str, got: Tensor | None, recorded: Tensor | None, said: str) -> Iterator[Evidence]:
    if _form(got) != _form(recorded):
        yield Evidence(where=name, measured=_form(got), limit=_form(recorded), message=f"another form {said}")
    elif got is not None and recorded is not None:
        yield from _agree(trial, name, got, recorded, f"another value {said}")


def _form(value: Tensor | None) -> str:
    return "absent" if value is None else f"{value.dtype} {tuple(value.shape)}"


def _as_before(trial: Trial, first: Outcome, again: Outcome, names: Iterable[str], message: str) -> Iterator[Evidence]:
    """Evidence where gradients differ from those of the ordinary call."""
    for name in names:
        old, new = (_gradient(outcome.grads, name, trial.inputs) for outcome in (first, again))
        yield from _agree(trial, f"grad:{name}", new, old, message)


def _agree(trial: Trial, where: str, got: Tensor, first: Tensor, message: str) -> Iterator[Evidence]:
    """Evidence where two answers to one question lie further apart than the errors of two answers explain."""
    truth, reach = parity.pick(trial.truth, where), parity.reach(trial, trial.inputs, where)

    def ordinary() -> Iterator[Tensor]:
        return (2 * error for error in parity.ordinary_errors(trial, where, truth))

    error = relative(difference(got, first), reach)
    found = excess(where, error, floor([truth, truth], reach, trial.dtype), ordinary, message)
    if found:
        yield found


def _pairs(trial: Trial, inputs: Any, grads: Outputs, left: Outputs, right: Outputs, message: str) -> Iterator[Pair]:
    """The gradients of all inputs, by two ways, for the upstream gradients ``grads``."""
    expect = trial.operation.expect
    assert isinstance(expect, Numeric)
    reach = expect.reach(inputs, grads)
    for name in trial.differentiable:
        one, other = (_gradient(side, name, inputs) for side in (left, right))
        yield Pair(where=f"grad:{name}", left=one, right=other, reach=reach[f"grad:{name}"], message=message)


def _gradient(grads: Outputs, name: str, inputs: Any) -> Tensor:
    """A gradient by the name of its input; one that does not come back is zero."""
    found = grads.get(name)
    return torch.zeros_like(getattr(inputs, name)) if found is None else found


def _transposed(grad: Tensor) -> Tensor:
    """The same values, with the two dimensions before the last exchanged in memory, as attention has it; or all two."""
    pair = (-3, -2) if grad.ndim > 2 else (0, grad.ndim - 1)
    return grad.transpose(*pair).contiguous().transpose(*pair)


def laid_out(operation: Operation, _params: object) -> str | None:
    """For :func:`upstream`."""
    return NO_LAYOUT if operation.scalars else None


def several_outputs(operation: Operation, _params: object) -> str | None:
    """Applies where one output may be used without another."""
    return None if len(operation.outputs) > 1 else "the operation has one output"


def several_inputs(operation: Operation, _params: object) -> str | None:
    """Applies where one input may be frozen beside another."""
    return None if len(operation.differentiable) > 1 else "the operation has one differentiable input"


def seeded(_operation: Operation, params: object) -> str | None:
    """Applies where other inputs of the same kind can be made."""
    return None if hasattr(params, "seed") else "the case has no seed to make other inputs from"
