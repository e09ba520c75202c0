"""The laws of a loss over tokens of which some are masked, whatever its rows are: logits, hidden states, predictions.

An inputs record of such a loss says which tensor holds its rows (``ROWS``) and which of its fields belong to samples
(``PER_SAMPLE``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from assay.audits.components.masked_loss import cross_entropy, linear, regression
from assay.audits.laws.relation import Pair, Run, holds
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Inexpressible, Law, Operation, Outputs

NAMES = (cross_entropy.NAME, linear.NAME, regression.NAME)
LARGE = 3e3
"""Finite in float16, and far from everything that a case holds."""
ALL_SCORED, NONE_SCORED = "nothing is masked", "no token is trained on"
"""Why a case gives a law nothing to ask."""
STEP = 2**-7
"""Of a finite difference: its cube, the error of a central difference, is below what float32 makes of the loss."""


def masked(trial: Trial) -> Iterator[Evidence]:
    """What stands at masked positions changes neither the loss nor a gradient, and gets a gradient of exactly zero.

    Why: prompts, padding and image tokens are masked because nothing is to be learned from them. What leaks through
    a mask is a small wrong gradient for most tokens of every batch, far more of them than are trained on.

    Example: padded mask indices that point to patch 0, so that the first patch is trained on once for every pad.
    """
    hidden = ~trial.inputs.scored()
    if not bool(hidden.any()):
        raise Inexpressible(ALL_SCORED)

    def relate(run: Run, inputs: Any) -> Iterable[Pair]:
        other = _filled(inputs, torch.linspace(-LARGE, LARGE, 13))
        yield from _same(run, trial, inputs, other, "what stands at masked positions matters")

    yield from holds(trial, relate)
    yield from _gradient_there(trial, trial.outcome.grads, hidden)


def _gradient_there(trial: Trial, grads: Outputs, hidden: Tensor) -> Iterator[Evidence]:
    name = trial.inputs.ROWS
    grad = grads.get(name)
    if grad is None or grad.shape != getattr(trial.inputs, name).shape:
        return
    wrong = (grad != 0) & _wide(hidden, grad)
    if bool(wrong.any()):
        index = tuple(int(i) for i in torch.nonzero(wrong)[0])
        yield Evidence(
            where=f"grad:{name}", measured=float(grad[index]), limit=0.0, index=index,
            message=f"{int(wrong.sum())} masked elements have a gradient, the first shown",
        )  # fmt: skip


def unread(trial: Trial) -> Iterator[Evidence]:
    """NaN and infinity at masked positions leave the loss as it is.

    Why: a fully padded row of attention, an overflow in an image token or memory that nobody wrote is not a number.
    A mask that multiplies by zero keeps it, and the loss of the whole batch is lost. Which gradient a masked row of
    NaN gets is not judged here: PyTorch's own log-softmax gives NaN.

    Example: the loss of every token times the mask, then the sum.
    """
    if bool(trial.inputs.scored().all()):
        raise Inexpressible(ALL_SCORED)

    def relate(run: Run, inputs: Any) -> Iterable[Pair]:
        before = run(inputs)["loss"]
        for value in (torch.nan, torch.inf, -torch.inf):
            other = _filled(inputs, torch.tensor([value]))
            message = f"{value} at masked positions reached the loss"
            yield _pair(trial, run(other)["loss"], before, message)

    yield from holds(trial, relate)


def visible(trial: Trial) -> Iterator[Evidence]:
    """NaN at a position that is trained on reaches the loss, or is an error.

    Why: a loss that replaces what is not a number goes on as if nothing had happened. The batch counts less or not at
    all, in silence, and what made the NaN is found weeks later, if ever.

    Example: A ``torch.nan_to_num`` on the logits or on the loss, put there to get past one bad batch.
    """
    inputs = trial.inputs
    x, scored = getattr(inputs, inputs.ROWS), _wide(inputs.scored(), getattr(inputs, inputs.ROWS))
    if not bool(scored.any()):
        raise Inexpressible(NONE_SCORED)
    place = tuple(int(i) for i in torch.nonzero(scored)[0])
    spoilt = x.clone()
    spoilt[place[:2]] = torch.where(scored[place[:2]], torch.nan, x[place[:2]])
    outcome = trial.attempt(dataclasses.replace(inputs, **{inputs.ROWS: spoilt}))
    if outcome.raised is None and bool(torch.isfinite(outcome.values["loss"]).all()):
        yield Evidence(
            where=inputs.ROWS, measured="a finite loss", limit="NaN, or an error", index=place[:2],
            message="NaN at a position that is trained on did not reach the loss",
        )  # fmt: skip


def appended(trial: Trial) -> Iterator[Evidence]:
    """Masked tokens and masked samples added to a batch change nothing.

    Why: how much padding a batch holds depends on its longest sample. A loss that divides by all tokens, or by
    samples, gives the same tokens another weight in every batch.

    Example: A mean over all tokens after the masked ones were set to zero.
    """

    def relate(run: Run, inputs: Any) -> Iterable[Pair]:
        longer = inputs.appended(2)
        before, after = run(inputs)["loss"], run(longer)["loss"]
        own = after[: before.shape[0], : before.shape[1]] if inputs.reduction == "none" else after
        yield _pair(trial, own, before, "masked tokens were added")
        one = _gradient(run, inputs, _ones(before))
        two = _gradient(run, longer, _ones(after))
        two = two[: one.shape[0], : one.shape[1]]
        yield _rows(trial, two, one, "masked tokens were added")

    yield from holds(trial, relate)


def permuted(trial: Trial) -> Iterator[Evidence]:
    """The order of the samples does not matter: row losses and gradients move with them.

    Why: a sample must not be scored against its neighbour's labels, nor weigh more for its place.

    Example: labels that were flattened in another order than the rows.
    """

    def relate(run: Run, inputs: Any) -> Iterable[Pair]:
        order = torch.arange(inputs.batch - 1, -1, -1)
        turned = inputs.samples(order)
        before, after = run(inputs)["loss"], run(turned)["loss"]
        after = after[order] if inputs.reduction == "none" else after
        yield _pair(trial, after, before, "the order of samples matters")
        back = _gradient(run, turned, _ones(before))[order]
        yield _rows(trial, back, _gradient(run, inputs, _ones(before)), "the order of samples matters")

    yield from holds(trial, relate)


def duplicated(trial: Trial) -> Iterator[Evidence]:
    """Every sample twice leaves the mean as it is and halves each gradient.

    Why: a mean is a mean over what is trained on. What grows or shrinks with the batch is another learning rate for
    each batch size.

    Example: a sum over tokens divided by the number of samples.
    """

    def relate(run: Run, inputs: Any) -> Iterable[Pair]:
        count = inputs.batch
        twice = inputs.samples(torch.arange(count).repeat(2))
        before = run(inputs)["loss"]
        yield _pair(trial, run(twice)["loss"], before, "every sample twice")
        halves = _gradient(run, twice, _ones(before))
        yield _rows(trial, halves[:count] * 2, _gradient(run, inputs, _ones(before)), "every sample twice")

    yield from holds(trial, relate)


def micro(trial: Trial) -> Iterator[Evidence]:
    """Micro-batches with the divisor of the whole batch add up to it, in loss and gradient, with unequal counts.

    Why: gradient accumulation must not change what is trained. The mean of micro-batch means gives the tokens of a
    short answer more weight than those of a long one; with a common divisor the parts simply add.

    Example: each micro-batch divided by its own count of tokens although the count of all was given.
    """
    if not bool(trial.inputs.scored().any()):
        raise Inexpressible(NONE_SCORED)

    def relate(run: Run, inputs: Any) -> Iterable[Pair]:
        cut = max(1, inputs.batch // 3)
        parts = [inputs.samples(slice(0, cut)), inputs.samples(slice(cut, None))]
        own = [part.share(inputs) for part in parts]
        whole = run(inputs)["loss"]
        losses = [run(part)["loss"] for part in parts]
        yield _pair(trial, _joined(losses, own, inputs), whole, "micro-batches do not add up")
        grads = [_gradient(run, part, _ones(loss)).double() for part, loss in zip(parts, losses, strict=True)]
        scaled = [grad * share if share else torch.zeros_like(grad) for grad, share in zip(grads, own, strict=True)]
        yield _rows(trial, torch.cat(scaled), _gradient(run, inputs, _ones(whole)), "micro-batches do not add up")

    yield from holds(trial, relate)


def _joined(losses: list[Tensor], shares: list[float], inputs: Any) -> Tensor:
    if inputs.reduction == "none":
        return torch.cat(losses)
    scaled = [loss.double() * share for loss, share in zip(losses, shares, strict=True) if share]
    return torch.stack(scaled).sum() if scaled else torch.zeros_like(losses[0])


def empty(trial: Trial) -> Iterator[Evidence]:
    """Where every token is masked the loss is zero and so is every gradient; nothing becomes NaN.

    Why: with long prompts, truncation or one sample a rank, a micro-batch without a single trained token comes by
    sooner or later. A mean over nothing is NaN, and one NaN gradient ends the run on all ranks.

    Example: PyTorch's ``reduction="mean"`` on a micro-batch whose labels are all the ignore index.
    """
    inputs = trial.inputs.emptied()
    ones = {"loss": torch.ones_like(trial.truth.values["loss"], dtype=trial.dtype)}
    outcome = trial.call(inputs, ones)
    told = [("loss", outcome.values.get("loss")), *((f"grad:{name}", grad) for name, grad in outcome.grads.items())]
    for where, value in told:
        if value is not None and bool((value != 0).any()):
            index = tuple(int(i) for i in torch.nonzero(value != 0)[0])
            yield Evidence(
                where=where, measured=f"{where} = {float(value[index]):g}", limit=f"{where} = 0", index=index or None,
                message="no token is trained on, and yet it is not zero",
            )  # fmt: skip


def weights(trial: Trial) -> Iterator[Evidence]:
    """A token's gradient grows with its weight: half the weights halve a sum, and leave a mean over weights alone.

    Why: weights balance tasks, turns or boxes. What squares them, ignores them or divides by the number of tokens
    instead of their sum trains something else than was written down.

    Example: the weighted sum divided by the count of tokens.
    """

    def relate(run: Run, inputs: Any) -> Iterable[Pair]:
        half = dataclasses.replace(inputs, weight=inputs.weight / 2)
        kept = inputs.reduction == "mean" and inputs.normaliser is None
        factor = 1.0 if kept else 2.0
        before = run(inputs)["loss"]
        yield _pair(trial, run(half)["loss"].double() * factor, before, "half the weights")
        one = _gradient(run, half, _ones(before)).double() * factor
        yield _rows(trial, one, _gradient(run, inputs, _ones(before)), "half the weights")

    yield from holds(trial, relate)


def slope(trial: Trial) -> Iterator[Evidence]:
    """The gradient is the slope of the loss: a small step along a line changes the loss as the gradient says.

    Why: a fused loss makes its gradient in the forward, by a formula of its own. Where that formula forgets a factor
    (an upstream gradient, a weight, a derivative of an option), the loss is right and the training is not.

    Example: a backward that returns the stored gradient without multiplying the upstream gradient in.
    """
    if trial.dtype != torch.float32:
        raise Inexpressible("in another precision than float32 a difference of two losses is rounding")
    if not bool(trial.inputs.scored().any()):
        raise Inexpressible(NONE_SCORED)

    def relate(run: Run, inputs: Any) -> Iterable[Pair]:
        upstream, at = trial.upstream, {name: getattr(inputs, name) for name in trial.differentiable}
        generator = torch.Generator().manual_seed(1)  # the same line for the candidate, the ordinary form, the oracle
        size = STEP * inputs.reasonable_step()
        ways = {name: _signs(x, generator) * size for name, x in at.items()}
        ahead, behind = ({name: x + sign * ways[name] for name, x in at.items()} for sign in (1, -1))
        losses = [run(dataclasses.replace(inputs, **moved))["loss"].double() for moved in (ahead, behind)]
        rise = (upstream["loss"].double() * (losses[0] - losses[1])).sum()
        grads = run.grads(inputs, upstream)
        steps = {name: ahead[name].double() - behind[name].double() for name in at if name in grads}
        told = torch.stack([rise * 0, *((grads[name].double() * step).sum() for name, step in steps.items())]).sum()
        reach = (_reach(trial)["loss"] * upstream["loss"].double().abs()).sum() * 4
        yield Pair(where="loss", left=rise, right=told, reach=reach, message="the gradient is not the loss's slope")

    yield from holds(trial, relate)


def _signs(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.where(torch.rand(x.shape, generator=generator) < 1 / 2, -1.0, 1.0).to(x)


def _same(run: Run, trial: Trial, left: Any, right: Any, message: str) -> Iterator[Pair]:
    """Loss and the gradients of scored rows, the same for two records."""
    one, two = run(left)["loss"], run(right)["loss"]
    yield _pair(trial, two, one, message)
    scored = _wide(left.scored(), getattr(left, left.ROWS))
    grads = [torch.where(scored, _gradient(run, record, _ones(one)), 0.0) for record in (left, right)]
    yield _rows(trial, grads[1], grads[0], message)


def _pair(trial: Trial, left: Tensor, right: Tensor, message: str) -> Pair:
    return Pair(where="loss", left=left, right=right, reach=_reach(trial)["loss"], message=message)


def _rows(trial: Trial, left: Tensor, right: Tensor, message: str) -> Pair:
    name = trial.inputs.ROWS
    return Pair(where=f"grad:{name}", left=left, right=right, reach=_reach(trial)[f"grad:{name}"], message=message)


def _reach(trial: Trial) -> Outputs:
    """What enters each row of the case itself, for an upstream gradient of one."""
    expect: Any = trial.operation.expect

    def compute() -> Outputs:
        found: Outputs = expect.reach(trial.inputs, _ones(trial.truth.values["loss"]))
        return found

    found: Outputs = trial.once("token_reach", compute)
    return found


def _ones(loss: Tensor) -> Outputs:
    return {"loss": torch.ones_like(loss.detach())}


def _gradient(run: Run, inputs: Any, upstream: Outputs) -> Tensor:
    """The gradient of the rows; zero where none comes back."""
    found: Tensor | None = run.grads(inputs, upstream).get(inputs.ROWS)
    return torch.zeros_like(getattr(inputs, inputs.ROWS)) if found is None else found


def _wide(mask: Tensor, like: Tensor) -> Tensor:
    return mask[..., None].expand_as(like) if mask.ndim < like.ndim else mask


def _filled(inputs: Any, values: Tensor) -> Any:
    """The record with these values, in turn, at what is masked."""
    x = getattr(inputs, inputs.ROWS)
    hidden = ~_wide(inputs.scored(), x)
    turn = values.to(x)[torch.arange(x.numel(), device=x.device) % len(values)].view(x.shape)
    return dataclasses.replace(inputs, **{inputs.ROWS: torch.where(hidden, turn, x)})


def _two_samples(_operation: Operation, case: Any) -> str | None:
    return None if case.batch > 1 else "there is one sample at most"


def _own_mean(_operation: Operation, case: Any) -> str | None:
    if case.reduction != "mean" or case.normaliser is not None:
        return "the loss is not a mean over its own tokens"
    return None if case.batch else "there is no sample"


def _weighted(_operation: Operation, case: Any) -> str | None:
    return None if case.weighted else "there are no weights"


def _smooth(_operation: Operation, case: Any) -> str | None:
    kind = getattr(case, "kind", "")
    return f"{kind} has corners, or bends as sharply as its vectors are short" if kind not in {"", "mse"} else None


_law = partial(Law.of, NAMES)

LAWS = (
    _law(masked), _law(unread), _law(visible), _law(appended), _law(permuted, _two_samples),
    _law(duplicated, _own_mean), _law(micro, _two_samples), _law(empty), _law(weights, _weighted),
    _law(slope, _smooth),
)  # fmt: skip
