"""``masked_loss.linear_cross_entropy``: the loss of a causal language model from its hidden states and its head.

Letters: B batch, S tokens, H hidden width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from assay.audits.candidates import of_function, of_reference
from assay.audits.components.masked_loss import cross_entropy, tokens
from assay.audits.fields import Positive, Size
from assay.audits.strategies import st
from assay.audits.terms import Form, Numeric, Operation, Outputs
from assay.reference import masked_loss

NAME = "masked_loss.linear_cross_entropy"


@dataclass(frozen=True, kw_only=True)
class Inputs(tokens.Labelled):
    """``hidden`` [B,S,H], ``head`` [V,H] and ``bias`` [V] or None in one floating dtype; the rest as for logits."""

    ROWS: ClassVar[str] = "hidden"
    PER_SAMPLE: ClassVar[tuple[str, ...]] = ("hidden", "labels", "weight")

    hidden: Tensor
    head: Tensor
    bias: Tensor | None

    def reasonable_step(self) -> float:
        """One over what the logits can move for a step of one of all that they come from."""
        sums = [float(x.detach().double().abs().sum(-1).max()) for x in (self.hidden, self.head) if x.numel()]
        return 1 / (sum(sums) + 1)


@dataclass(frozen=True, kw_only=True)
class Case(tokens.Case):
    """Parameters of a case; see :class:`tokens.Case` for those of the labels."""

    width: Size = 24
    biased: bool = False
    scale: Positive = 3.0


def build(case: Case, dtype: torch.dtype, device: torch.device) -> Inputs:
    """The inputs of a case, from its own generator. Logits have about the size ``scale``."""
    generator = torch.Generator().manual_seed(case.seed)
    labels = tokens.labels(case, generator)
    hidden = torch.randn((case.batch, case.length, case.width), generator=generator)
    head = torch.randn((case.vocab, case.width), generator=generator) * case.scale / max(case.width, 1) ** 0.5
    bias = torch.randn(case.vocab, generator=generator) if case.biased else None
    return Inputs(
        hidden=hidden.to(device, dtype),
        head=head.to(device, dtype),
        bias=None if bias is None else bias.to(device, dtype),
        labels=labels.to(device),
        **tokens.options(case, generator, dtype, device),
    )


def reference(inputs: Inputs) -> Outputs:
    """The specification, in whatever dtype the hidden states have."""
    options = cross_entropy.arguments(inputs)
    found = masked_loss.linear_cross_entropy(inputs.hidden, inputs.head, inputs.labels, bias=inputs.bias, **options)
    return {"loss": found.value}


def eager(inputs: Inputs) -> Outputs:
    """The ordinary form: logits in the dtype of the hidden states, then PyTorch's log-softmax."""
    logits = torch.nn.functional.linear(inputs.hidden, inputs.head, inputs.bias)
    return {"loss": cross_entropy.ordinary(logits, inputs)}


def reach(inputs: Inputs, upstream: Outputs | None) -> Outputs:
    """What enters each row: the largest product of a row with the head; of parameter gradients, the sum over rows."""
    hidden, head = inputs.hidden.detach().double(), inputs.head.detach().double()
    products = (hidden.abs() @ head.abs().mT).amax(-1) if inputs.labels.numel() and len(head) else hidden.sum(-1)
    offset = 0.0 if inputs.bias is None else inputs.bias.detach().double().abs().amax()
    largest = (products + offset).clamp(min=1.0)
    found = dict(tokens.reach(inputs, largest, upstream, "hidden"))
    if upstream is not None:
        rows = found["grad:hidden"]
        found["grad:hidden"] = rows * (head.abs().amax() if head.numel() else 0.0)
        found["grad:head"] = (rows * hidden.abs()).flatten(0, -2).sum(0).amax().reshape(1, 1)
        found["grad:bias"] = rows.sum().reshape(1)
    return found


def draws(inputs: Inputs) -> Iterator[Inputs]:
    """Fresh hidden states of the same size, for the scale of the ordinary form's error."""
    for seed in range(5 if inputs.hidden.numel() else 0):
        generator = torch.Generator().manual_seed(seed)
        yield dataclasses.replace(
            inputs, hidden=torch.randn(inputs.hidden.shape, generator=generator).to(inputs.hidden)
        )


def strategy() -> st.SearchStrategy[Case]:
    """Small ragged cases over all options."""
    return st.builds(
        Case,
        vocab=st.sampled_from([1, 2, 17, 65, 200]),
        width=st.sampled_from([1, 8, 24, 33]),
        scale=st.sampled_from([0.5, 3.0, 12.0]),
        biased=st.booleans(),
        **tokens.strategies(),
    )


CASES = {
    "mean": Case(),
    "sum": Case(reduction="sum", seed=1),
    "rows": Case(reduction="none", biased=True, seed=2),
    "shifted-labels": Case(shift=True, seed=3),
    "accumulated": Case(normaliser=23.0, seed=4),
    "weights": Case(weighted=True, biased=True, seed=5),
    "weighted-rows": Case(weighted=True, reduction="none", shift=True, seed=6),
    "smoothing": Case(label_smoothing=0.1, seed=7),
    "softcap": Case(softcap=2.5, seed=8),
    "z-loss": Case(z_loss=1e-2, seed=9),
    "bias": Case(biased=True, seed=10),
    "everything": Case(
        label_smoothing=0.1, softcap=5.0, z_loss=1e-3, weighted=True, shift=True, normaliser=11.0, biased=True, seed=11
    ),
    "pad-in-vocabulary": Case(ignore_index=3, seed=13),
    "all-masked": Case(masked="all", biased=True, seed=15),
    "none-masked": Case(masked="none", seed=17),
    "one-row": Case(batch=1, length=1, masked="none", seed=18),
    "one-label": Case(batch=3, length=9, masked="one", seed=19),
    "ragged": Case(batch=5, length=7, masked="ragged", shift=True, seed=21),
    "wide": Case(vocab=1031, length=3, width=65, seed=22),
    "many-rows": Case(batch=3, length=23, vocab=13, seed=23),
    "no-sample": Case(batch=0, seed=24),
    "far": Case(scale=40.0, seed=25),
    "one-sample": Case(batch=1, length=5, seed=26),
    "long": Case(batch=1, length=530, vocab=3, width=4, masked="ragged", seed=27),  # more rows than a chunk of 512
}


def _assay(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    options = cross_entropy.arguments(inputs)
    return {"loss": function(inputs.hidden, inputs.head, inputs.labels, bias=inputs.bias, **options).value}


def _flat(inputs: Inputs) -> tuple[Tensor, Tensor]:
    labels = tokens.targets(inputs.labels, inputs.ignore_index, shift=inputs.shift)
    return inputs.hidden.reshape(-1, inputs.hidden.shape[-1]), labels.reshape(-1)


def _liger(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    rows, labels = _flat(inputs)
    found = function(
        rows, inputs.head, labels, bias=inputs.bias, ignore_index=inputs.ignore_index,
        lse_square_scale=inputs.z_loss, label_smoothing=inputs.label_smoothing, reduction=inputs.reduction,
        softcap=inputs.softcap,
    )  # fmt: skip
    return cross_entropy.rowwise(found[0] if isinstance(found, tuple) else found, inputs)


def _cce(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    rows, labels = _flat(inputs)
    found = function(
        rows, inputs.head, labels, bias=inputs.bias, ignore_index=inputs.ignore_index, softcap=inputs.softcap,
        reduction=inputs.reduction,
    )  # fmt: skip
    return cross_entropy.rowwise(found, inputs)


def _plain(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    return {"loss": function(inputs.hidden, inputs.head, inputs.labels)}


def _rows_only(inputs: Inputs) -> str | None:
    if inputs.bias is not None:
        return "the form has no bias"
    if inputs.reduction != "mean" or inputs.shift:
        return "the form is the mean over labels that are aligned already"
    return cross_entropy.lacking()(inputs)


def _plain_only(inputs: Inputs) -> str | None:
    if inputs.bias is not None:
        return "the form has no bias"
    if inputs.reduction != "mean" or not inputs.shift:
        return "the form is the mean over shifted labels"
    return cross_entropy.lacking()(inputs)


FORMS = (
    Form(
        name="assay",
        summary="function(hidden, head, labels, *, bias, shift, ignore_index, weight, ...) -> (value, count)",
        parameters=("hidden", "head", "labels", "bias", "shift"),
        call=_assay,
    ),
    Form(
        name="liger",
        summary="function(input, weight, target, *, bias, ignore_index, lse_square_scale, ...): rows [N,H], labels [N]",
        parameters=("input", "weight", "target", "bias"),
        call=_liger,
        accepts=cross_entropy.lacking("label_smoothing", "ignore_index", "softcap", "z_loss"),
        fixes={"weighted": False, "normaliser": None},
    ),
    Form(
        name="cce",
        summary="function(e, c, targets, *, bias, ignore_index, softcap, reduction): rows [N,H], labels [N]",
        parameters=("e", "c", "targets", "bias"),
        call=_cce,
        accepts=cross_entropy.lacking("ignore_index", "softcap"),
        fixes={"weighted": False, "normaliser": None, "label_smoothing": 0.0, "z_loss": 0.0},
    ),
    Form(
        name="plain",
        summary="function(hidden, head, labels): the mean over labels shifted by one",
        parameters=("hidden", "head", "labels"),
        call=_plain,
        accepts=_plain_only,
        fixes={**cross_entropy.MEAN, "shift": True, "biased": False},
    ),
    Form(
        name="rows",
        summary="function(hidden, head, labels): the mean; hidden [B,S,H] at s are scored against labels [B,S] at s",
        parameters=("hidden", "head", "labels"),
        call=_plain,
        accepts=_rows_only,
        fixes={**cross_entropy.MEAN, "shift": False, "biased": False},
    ),
)

OPERATION = Operation(
    name=NAME,
    summary="the same loss from hidden states and the head's weight, without stored logits",
    params=Case,
    build=build,
    outputs=("loss",),
    expect=Numeric(oracle=reference, eager=eager, reach=reach, draws=draws),
    forms=FORMS,
    cases=CASES,
    strategy=strategy,
    differentiable=("hidden", "head", "bias"),
    dtypes=("float32", "bfloat16"),
    further_dtypes=("float16",),
    sums=("loss",),
)

CANDIDATES = (
    of_reference(NAME, f"{__name__}:reference", origin="assay.reference.masked_loss"),
    of_function(
        NAME, "kernel", "assay.kernels.linear_cross_entropy:linear_cross_entropy",
        origin="assay.kernels.linear_cross_entropy", form="assay",
    ),
)  # fmt: skip
