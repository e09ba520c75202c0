"""The laws of a cross-entropy: labels, their shift, and what is known of particular logits."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from assay.audits.components.masked_loss import cross_entropy, linear, tokens
from assay.audits.components.masked_loss.token_laws import NONE_SCORED
from assay.audits.laws.relation import Pair, Run, holds
from assay.audits.laws.trial import Trial, answerable
from assay.audits.terms import Evidence, Inexpressible, Law, Operation

BOTH = (cross_entropy.NAME, linear.NAME)
LOGITS = (cross_entropy.NAME,)


def shift(trial: Trial) -> Iterator[Evidence]:
    """With labels as the model gets them, each row is scored against the next label, and shifted once.

    Why: shifted twice, or not at all, a model learns to copy a token or to skip one; the loss falls either way. The
    first label and the last row have no partner: neither may count, nor may the last row see the next sample.

    Example: a collator that shifts its labels for a model whose loss shifts them too.
    """
    if not trial.inputs.labels.numel():
        raise Inexpressible("there is no label")

    def relate(run: Run, own: Any) -> Iterable[Pair]:
        before, vocab = run(own)["loss"], _vocabulary(own)
        labels = own.labels.clone()
        labels[:, :1] = torch.where(labels[:, :1] == 0, vocab - 1, 0)
        other = run(dataclasses.replace(own, labels=labels))["loss"]
        yield _pair(trial, other, before, "the first label of a sample matters")
        rows = getattr(own, own.ROWS).clone()
        rows[:, -1:] = rows[:, -1:].flip(-1) + 1
        other = run(dataclasses.replace(own, **{own.ROWS: rows}))["loss"]
        yield _pair(trial, other, before, "the last row of a sample matters")

    yield from holds(trial, relate)


def refuses(trial: Trial) -> Iterator[Evidence]:
    """A label outside the vocabulary that is not the ignore index is an error, or makes the loss NaN.

    Why: such labels come from a tokenizer that does not belong to the model, or from an ignore index that only one
    side knows of. What scores them against another column, or skips them, trains on something else in silence.

    Example: a kernel that clamps labels into the vocabulary.
    """
    inputs, scored = trial.inputs, trial.inputs.scored()
    if not bool(scored.any()):
        raise Inexpressible(NONE_SCORED)
    place = tuple(int(i) for i in torch.nonzero(scored)[0])
    # Not -100: what PyTorch ignores by default may be ignored beside the index that was asked for.
    outside = (_vocabulary(inputs), _vocabulary(inputs) + 7, -1, -7)
    for wrong in (label for label in outside if label != inputs.ignore_index):
        labels = inputs.labels.clone()
        labels[place[0], place[1] + int(inputs.shift)] = wrong
        outcome = trial.attempt(dataclasses.replace(inputs, labels=labels))
        if outcome.raised is None and bool(torch.isfinite(outcome.values["loss"]).all()):
            yield Evidence(
                where="labels", measured=f"label {wrong} accepted", limit=f"an error: {_vocabulary(inputs)} columns",
                index=place, message="a label outside the vocabulary was scored or skipped in silence",
            )  # fmt: skip
            return


def uniform(trial: Trial) -> Iterator[Evidence]:
    """Equal logits cost the logarithm of the vocabulary's size, whatever the label.

    Why: this is the loss of a model that knows nothing, and the only number of a training curve that is known before
    it starts. A loss that begins elsewhere is scaled, shifted or averaged over something else.

    Example: padding columns of the vocabulary that take part in the sum.
    """
    if trial.dtype != torch.float32:
        raise Inexpressible("in a lower precision equal rows all round alike, and how their sum rounds is luck")
    if not bool(trial.inputs.scored().any()):
        raise Inexpressible(NONE_SCORED)

    def relate(run: Run, inputs: Any) -> Iterable[Pair]:
        flat, level = _level(inputs)
        vocab = _vocabulary(inputs)
        level = level if inputs.softcap is None else inputs.softcap * math.tanh(level / inputs.softcap)
        row = math.log(vocab) + inputs.z_loss * (level + math.log(vocab)) ** 2
        weights = tokens.row_weights(inputs)
        wanted = weights * row if inputs.reduction == "none" else weights.sum() * row / tokens.divisor(inputs)
        yield _pair(trial, run(flat)["loss"], wanted, "equal logits do not cost log V")

    yield from holds(trial, relate)


def _level(inputs: Any) -> tuple[Any, float]:
    """The inputs with all logits equal, and what they are: those of a head of zeros are its bias."""
    if inputs.ROWS == "logits":
        return dataclasses.replace(inputs, logits=torch.full_like(inputs.logits, 0.5)), 0.5
    bias = None if inputs.bias is None else torch.full_like(inputs.bias, 0.5)
    flat = dataclasses.replace(inputs, head=torch.zeros_like(inputs.head), bias=bias)
    return flat, 0.0 if bias is None else 0.5


def translation(trial: Trial) -> Iterator[Evidence]:
    """Adding one number to all logits of a row changes nothing.

    Why: only differences of logits mean anything. Logits of a trained model drift far from zero, and a loss that
    forms a difference of two large rounded numbers, or exponents without subtracting the largest, is wrong there only.

    Example: the logarithm of a sum of exponentials that overflows for logits above 88.
    """
    if trial.dtype != torch.float32:
        raise Inexpressible("a lower precision has too few digits for both the level and the differences")

    def relate(run: Run, inputs: Any) -> Iterable[Pair]:
        level = torch.full_like(tokens.row_weights(inputs), 128.0)
        far = 2 * _reach(trial) + tokens.reach(inputs, level, None, "")["loss"]
        for step in (64.0, -64.0, 128.0):
            moved = dataclasses.replace(inputs, logits=inputs.logits + step)
            back = dataclasses.replace(inputs, logits=moved.logits - step)
            left, right = run(moved)["loss"], run(back)["loss"]
            yield Pair(where="loss", left=left, right=right, reach=far, message=f"all logits moved by {step:g}")

    yield from holds(trial, relate)


NEUTRAL: Mapping[str, Any] = {"label_smoothing": 0.0, "softcap": None, "z_loss": 0.0}
NEARLY: Mapping[str, Any] = {"label_smoothing": 1e-9, "softcap": 1e6, "z_loss": 1e-12}
"""Values so close to neutral that float32 cannot tell."""
STRONG: Mapping[str, Any] = {"label_smoothing": 0.3, "softcap": 1.0, "z_loss": 0.5, "normaliser": 7.0}


def continuity(trial: Trial) -> Iterator[Evidence]:
    """An option that is almost off does what it does when off.

    Why: options switch to another branch of the code, and the branch has a shift, a divisor and a mask of its own.
    Whoever turns on a smoothing of 0.1 then trains with another loss, not with a smoothed one.

    Example: a trainer whose label smoother takes the labels without shifting them.
    """

    def nearly(name: str, run: Run, inputs: Any) -> Iterable[Pair]:
        own = run(dataclasses.replace(inputs, **{name: NEARLY[name]}))["loss"]
        yield _pair(trial, own, run(inputs)["loss"], f"{name} = {NEARLY[name]:g} is not like none")

    off = (name for name, value in NEUTRAL.items() if getattr(trial.inputs, name) == value)
    yield from answerable(holds(trial, functools.partial(nearly, name)) for name in off)


def live(trial: Trial) -> Iterator[Evidence]:
    """Every option changes the loss.

    Why: an option that is accepted and not used is worse than one that is missing. The configuration says that it is
    on, runs are compared by it, and nothing is different.

    Example: a soft-cap that the fused path takes and does not apply.
    """
    own = trial.inputs
    if not bool(own.scored().any()):
        raise Inexpressible(NONE_SCORED)
    asked = {name: dataclasses.replace(own, **{name: value}) for name, value in STRONG.items()}
    ramp = torch.linspace(0.25, 4.0, max(own.labels.numel(), 1), device=own.labels.device)[: own.labels.numel()]
    asked["weight"] = dataclasses.replace(own, weight=ramp.view(own.labels.shape))
    yield from answerable(_unchanged(trial, name, changed) for name, changed in asked.items())


def _unchanged(trial: Trial, name: str, changed: Any) -> Iterator[Evidence]:
    """Evidence where inputs with an option changed give the same loss, though the right one is clearly another."""
    truth, got = trial.truth.values["loss"], trial.run(changed)["loss"]
    moves = (trial.oracle(changed).values["loss"] - truth).abs() > truth.abs() * CLEARLY
    if bool(moves) and torch.equal(got, trial.outcome.values["loss"]):
        yield Evidence(
            where=name, measured="the same loss", limit="another loss",
            message=f"the option {name} is accepted and changes nothing",
        )  # fmt: skip


CLEARLY = 2**-5
"""By what part of itself the right loss has to change for a loss that does not change to be noticed in any dtype."""


def _reach(trial: Trial) -> Tensor:
    expect: Any = trial.operation.expect
    found: Tensor = trial.once("label_reach", lambda: expect.reach(trial.inputs, None)["loss"])
    return found


def _pair(trial: Trial, left: Tensor, right: Tensor, message: str) -> Pair:
    return Pair(where="loss", left=left, right=right, reach=_reach(trial), message=message)


def _vocabulary(inputs: Any) -> int:
    return int(inputs.logits.shape[-1] if inputs.ROWS == "logits" else len(inputs.head))


def _shifts(_operation: Operation, case: Any) -> str | None:
    return None if case.shift else "the labels are shifted already"


def _moves(_operation: Operation, case: Any) -> str | None:
    return "soft-cap and z-loss depend on the level" if case.softcap is not None or case.z_loss else None


def _mean(_operation: Operation, case: Any) -> str | None:
    return None if case.reduction == "mean" else "not a mean"


LAWS = (
    Law.of(BOTH, shift, _shifts), Law.of(BOTH, refuses), Law.of(BOTH, uniform), Law.of(LOGITS, translation, _moves),
    Law.of(BOTH, continuity), Law.of(BOTH, live, _mean),
)  # fmt: skip
