"""``masked_loss.cross_entropy``: the loss of a causal language model, from its logits.

Letters: B batch, S tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from assay.audits.candidates import of_function, of_reference
from assay.audits.components.masked_loss import tokens
from assay.audits.fields import Finite, Positive, one_of
from assay.audits.laws.limits import row_reach
from assay.audits.strategies import st
from assay.audits.terms import Form, Numeric, Operation, Outputs
from assay.reference import masked_loss

NAME = "masked_loss.cross_entropy"


@dataclass(frozen=True, kw_only=True)
class Inputs(tokens.Labelled):
    """``logits`` [B,S,V] floating, any strides; the rest says how they are scored."""

    ROWS: ClassVar[str] = "logits"
    PER_SAMPLE: ClassVar[tuple[str, ...]] = ("logits", "labels", "weight")

    logits: Tensor


@dataclass(frozen=True, kw_only=True)
class Case(tokens.Case):
    """Parameters of a case; see :class:`tokens.Case` for those of the labels.

    ``scale`` and ``offset`` of the logits; ``memory`` is dense or padded (a slice of a wider buffer with NaN beyond).
    """

    scale: Positive = 3.0
    offset: Finite = 0.0
    memory: Annotated[str, one_of(("dense", "padded"))] = "dense"


def build(case: Case, dtype: torch.dtype, device: torch.device) -> Inputs:
    """The inputs of a case, from its own generator."""
    generator = torch.Generator().manual_seed(case.seed)
    labels = tokens.labels(case, generator)
    shape = (case.batch, case.length, case.vocab)
    logits = torch.randn(shape, generator=generator) * case.scale + case.offset
    sure = torch.rand(shape[:2], generator=generator) < 1 / 4  # rows whose target is already likely
    targets = tokens.targets(labels, case.ignore_index, shift=case.shift).clamp(0, max(case.vocab - 1, 0))
    logits = torch.where(
        sure[..., None] & (torch.arange(case.vocab) == targets[..., None]), logits + 3 * case.scale, logits
    )
    return Inputs(
        logits=_laid_out(logits, case.memory, dtype, device),
        labels=labels.to(device),
        **tokens.options(case, generator, dtype, device),
    )


def _laid_out(x: Tensor, memory: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    x = x.to(device, dtype)
    if memory == "dense":
        return x
    if memory == "padded":
        wide = torch.full((*x.shape[:-1], x.shape[-1] + 5), torch.nan, dtype=dtype, device=device)
        wide[..., : x.shape[-1]] = x
        return wide[..., : x.shape[-1]]
    message = f"memory: expected dense or padded, got {memory!r}"
    raise ValueError(message)


def arguments(inputs: Any) -> dict[str, Any]:
    """The options of a loss on labels, by their names in the reference."""
    names = ("weight", "shift", "ignore_index", "softcap", "label_smoothing", "z_loss", "reduction", "normaliser")
    return {name: getattr(inputs, name) for name in names}


def reference(inputs: Inputs) -> Outputs:
    """The specification, in whatever dtype the logits have."""
    return {"loss": masked_loss.cross_entropy(inputs.logits, inputs.labels, **arguments(inputs)).value}


def eager(inputs: Inputs) -> Outputs:
    """The ordinary form: PyTorch's own function, in the dtype of the logits."""
    return {"loss": ordinary(inputs.logits, inputs)}


def ordinary(logits: Tensor, inputs: Any) -> Tensor:
    """What a trainer writes with PyTorch's own functions, on logits that it has."""
    valid = tokens.valid(inputs)
    targets = tokens.targets(inputs.labels, inputs.ignore_index, shift=inputs.shift)[valid]
    x = logits[valid]
    x = x if inputs.softcap is None else inputs.softcap * torch.tanh(x / inputs.softcap)
    told = {"label_smoothing": inputs.label_smoothing}
    if inputs.weight is None and not inputs.z_loss and len(x) and inputs.reduction != "none":
        own = inputs.reduction == "mean" and inputs.normaliser is None
        found = torch.nn.functional.cross_entropy(x, targets, reduction="mean" if own else "sum", **told)
        return found if own else found / tokens.divisor(inputs)
    rows = torch.nn.functional.cross_entropy(x, targets, reduction="none", **told)
    rows = rows + inputs.z_loss * torch.logsumexp(x, dim=-1).square()
    return tokens.reduced(rows, valid, inputs)


def reach(inputs: Inputs, upstream: Outputs | None) -> Outputs:
    """What enters each row of the loss: its largest logit; of the gradient: that, by the upstream and the weight."""
    largest = row_reach(inputs.logits)[..., 0].clamp(min=1.0)
    return tokens.reach(inputs, largest, upstream, "logits")


def draws(inputs: Inputs) -> Iterator[Inputs]:
    """Fresh logits of the same size, for the scale of the ordinary form's error."""
    for seed in range(5 if inputs.logits.numel() else 0):
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(inputs.logits.shape, generator=generator, dtype=torch.float64).to(inputs.logits.device)
        centre = inputs.logits.detach().double().mean(-1, keepdim=True)
        spread = (inputs.logits.detach().double() - centre).square().mean(-1, keepdim=True).sqrt()
        yield dataclasses.replace(inputs, logits=(centre + noise * spread).to(inputs.logits))


def strategy() -> st.SearchStrategy[Case]:
    """Small ragged cases over all options."""
    return st.builds(
        Case,
        vocab=st.sampled_from([1, 2, 3, 17, 64, 129, 300]),
        scale=st.sampled_from([0.5, 3.0, 12.0]),
        offset=st.sampled_from([0.0, 0.0, 120.0, -120.0]),
        memory=st.sampled_from(["dense", "dense", "padded"]),
        **tokens.strategies(),
    )


CASES = {
    "mean": Case(),
    "sum": Case(reduction="sum", seed=1),
    "rows": Case(reduction="none", seed=2),
    "shifted-labels": Case(shift=True, seed=3),
    "accumulated": Case(normaliser=23.0, seed=4),  # the valid tokens of several micro-batches
    "weights": Case(weighted=True, seed=5),
    "weighted-rows": Case(weighted=True, reduction="none", shift=True, seed=6),
    "smoothing": Case(label_smoothing=0.1, seed=7),
    "softcap": Case(softcap=2.5, seed=8),
    "z-loss": Case(z_loss=1e-2, seed=9),
    "everything": Case(
        label_smoothing=0.1, softcap=5.0, z_loss=1e-3, weighted=True, shift=True, normaliser=11.0, seed=10
    ),
    "up": Case(offset=120.0, seed=11),
    "down": Case(offset=-120.0, seed=12),
    "pad-in-vocabulary": Case(ignore_index=3, seed=13),
    "pad-first": Case(ignore_index=0, shift=True, seed=14),
    "all-masked": Case(masked="all", seed=15),
    "all-masked-sum": Case(masked="all", reduction="sum", seed=16),
    "none-masked": Case(masked="none", seed=17),
    "one-row": Case(batch=1, length=1, masked="none", seed=18),
    "one-label": Case(batch=3, length=9, masked="one", seed=19),
    "one-column": Case(vocab=1, seed=20),
    "ragged": Case(batch=5, length=7, masked="ragged", shift=True, seed=21),
    "wide": Case(vocab=1031, length=3, seed=22),  # a prime, more than a tile
    "many-rows": Case(batch=3, length=23, vocab=13, seed=23),
    "no-sample": Case(batch=0, seed=24),
    "padded-vocabulary": Case(memory="padded", seed=25),
    "confident": Case(scale=12.0, seed=26),
    "one-sample": Case(batch=1, length=5, seed=27),
    "long": Case(batch=1, length=530, vocab=3, masked="ragged", seed=28),  # more rows than a chunk of 512
}


def flat(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Logits [B*S,V] and labels [B*S] for functions that know rows only; shifted here where the case asks for it."""
    labels = tokens.targets(inputs.labels, inputs.ignore_index, shift=inputs.shift)
    return inputs.logits.reshape(-1, inputs.logits.shape[-1]), labels.reshape(-1)


def rowwise(loss: Any, inputs: tokens.Labelled) -> Outputs:
    """A flat function's answer in the shape of the labels."""
    return {"loss": loss.reshape(inputs.labels.shape) if inputs.reduction == "none" else loss}


def _assay(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    return {"loss": function(inputs.logits, inputs.labels, **arguments(inputs)).value}


def _torch(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    options = {"ignore_index": inputs.ignore_index, "reduction": inputs.reduction}
    if inputs.label_smoothing:
        options["label_smoothing"] = inputs.label_smoothing
    return rowwise(function(*flat(inputs), **options), inputs)


def _liger(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    found = function(
        *flat(inputs), ignore_index=inputs.ignore_index, lse_square_scale=inputs.z_loss,
        label_smoothing=inputs.label_smoothing, reduction=inputs.reduction, softcap=inputs.softcap,
    )  # fmt: skip
    return rowwise(found[0] if isinstance(found, tuple) else found, inputs)


def _hf(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    labels = {"labels": inputs.labels} if inputs.shift else {"labels": None, "shift_labels": inputs.labels}
    items = {} if inputs.normaliser is None else {"num_items_in_batch": torch.tensor(int(inputs.normaliser))}
    loss = function(
        logits=inputs.logits, vocab_size=inputs.logits.shape[-1], ignore_index=inputs.ignore_index, **labels, **items
    )
    return {"loss": loss}


def _causal(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    return {"loss": function(inputs.logits, inputs.labels)}


PLAIN = {"weight": None, "softcap": None, "label_smoothing": 0.0, "z_loss": 0.0}


def lacking(*able: str) -> Callable[[Any], str | None]:
    """What a form cannot say, among the options that a case sets."""
    neutral: dict[str, Any] = PLAIN | {"normaliser": None, "ignore_index": -100}

    def accepts(inputs: tokens.Labelled) -> str | None:
        for name, value in neutral.items():
            if name not in able and getattr(inputs, name) != value and getattr(inputs, name) is not value:
                return f"the form has no {name}"
        return None

    return accepts


def _hf_only(inputs: Inputs) -> str | None:
    if inputs.reduction != "mean":
        return "the form has the mean only"
    if inputs.normaliser is not None and inputs.normaliser != int(inputs.normaliser):
        return "the form counts whole items"
    return lacking("normaliser", "ignore_index")(inputs)


def _causal_only(inputs: Inputs) -> str | None:
    if inputs.reduction != "mean" or not inputs.shift:
        return "the form is the mean over shifted labels"
    return lacking()(inputs)


def _rows_only(inputs: Inputs) -> str | None:
    if inputs.reduction != "mean" or inputs.shift:
        return "the form is the mean over labels that are shifted already"
    return lacking()(inputs)


SIMPLE: dict[str, Any] = {"weighted": False, "softcap": None, "z_loss": 0.0, "normaliser": None}
MEAN: dict[str, Any] = {**SIMPLE, "label_smoothing": 0.0, "reduction": "mean", "ignore_index": -100}
"""Case parameters of a form that is a mean and nothing else."""

FORMS = (
    Form(
        name="assay",
        summary="function(logits, labels, *, shift, ignore_index, weight, softcap, ..., normaliser) -> (value, count)",
        parameters=("logits", "labels", "shift", "ignore_index", "weight"),
        call=_assay,
    ),
    Form(
        name="hf",
        summary="function(logits, labels, vocab_size, num_items_in_batch, ignore_index, shift_labels): causal LM loss",
        parameters=("logits", "labels", "vocab_size", "num_items_in_batch"),
        call=_hf,
        accepts=_hf_only,
        fixes={"weighted": False, "softcap": None, "z_loss": 0.0, "label_smoothing": 0.0, "reduction": "mean"},
    ),
    Form(
        name="torch",
        summary="function(input, target, *, ignore_index, reduction, label_smoothing): rows [N,V] and labels [N]",
        parameters=("input", "target"),
        call=_torch,
        accepts=lacking("label_smoothing", "ignore_index"),
        fixes=SIMPLE,
    ),
    Form(
        name="liger",
        summary="function(input, target, *, ignore_index, lse_square_scale, label_smoothing, reduction, softcap)",
        parameters=("input", "target", "weight", "ignore_index"),
        call=_liger,
        accepts=lacking("label_smoothing", "ignore_index", "softcap", "z_loss"),
        fixes={"weighted": False, "normaliser": None},
    ),
    Form(
        name="causal",
        summary="function(logits, labels): the mean; logits [B,S,V] at s are scored against labels [B,S] at s + 1",
        parameters=("logits", "labels"),
        call=_causal,
        accepts=_causal_only,
        fixes={**MEAN, "shift": True},
    ),
    Form(
        name="rows",
        summary="function(logits, labels): the mean; logits [B,S,V] at s are scored against labels [B,S] at s",
        parameters=("logits", "labels"),
        call=_causal,
        accepts=_rows_only,
        fixes={**MEAN, "shift": False},
    ),
)

OPERATION = Operation(
    name=NAME,
    summary="the cross-entropy of a causal language model from its logits, over the tokens that are not masked",
    params=Case,
    build=build,
    outputs=("loss",),
    expect=Numeric(oracle=reference, eager=eager, reach=reach, draws=draws),
    forms=FORMS,
    cases=CASES,
    strategy=strategy,
    differentiable=("logits",),
    dtypes=("float32", "bfloat16"),
    further_dtypes=("float16",),
    sums=("loss",),
)

CANDIDATES = (
    of_reference(NAME, f"{__name__}:reference", origin="assay.reference.masked_loss"),
    of_function(
        NAME, "kernel", "assay.kernels.masked_cross_entropy:cross_entropy",
        origin="assay.kernels.masked_cross_entropy", form="assay", costly=True,
    ),
    of_function(NAME, "torch", "torch.nn.functional:cross_entropy", origin="torch", form="torch"),
    of_function(
        NAME, "transformers", "transformers.loss.loss_utils:ForCausalLMLoss", origin="transformers", form="hf"
    ),
)  # fmt: skip
