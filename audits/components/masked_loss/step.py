"""``masked_loss.step``: the gradient of one optimiser step over micro-batches and ranks.

Letters: N samples, S tokens, H hidden width, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.distributed as dist
from torch import Tensor

from assay.audits.candidates import of_function, of_reference
from assay.audits.components.masked_loss import ranks
from assay.audits.fields import Count, Size, one_of
from assay.audits.terms import Form, Numeric, Operation, Outputs
from assay.reference import masked_loss

NAME = "masked_loss.step"
IGNORED = -100
Batches = Sequence[tuple[Tensor, Tensor]]
"""Hidden states [n,s,H] and labels [n,s] of each micro-batch of one rank."""
Step = Callable[[Tensor, Batches, Any], Any]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """``hidden`` [N,S,H], ``head`` [V,H] that is trained, ``labels`` [N,S] int64 as the model gets them, not shifted.

    ``world`` ranks with ``micro`` micro-batches each. ``layout`` is data (each rank has samples of its own) or
    context (each rank has a piece of every sample, in the order of the ranks).
    """

    hidden: Tensor
    head: Tensor
    labels: Tensor
    world: int
    micro: int
    layout: str


@dataclass(frozen=True, kw_only=True)
class Case:
    """Parameters of a case. ``trained``: how many labels of each sample are trained on, the last ones of it."""

    seed: Count = 0
    length: Size = 8
    width: Size = 6
    vocab: Size = 11
    trained: tuple[Count, ...] = (8, 1, 3, 2)
    world: Size = 2
    micro: Size = 1
    layout: Annotated[str, one_of(("data", "context"))] = "data"


def build(case: Case, dtype: torch.dtype, device: torch.device) -> Inputs:
    """Hidden states, head and labels from the case's own generator."""
    generator = torch.Generator().manual_seed(case.seed)
    samples = len(case.trained)
    labels = torch.randint(0, case.vocab, (samples, case.length), generator=generator)
    first = case.length - torch.tensor(case.trained)
    labels = torch.where(torch.arange(case.length) < first[:, None], IGNORED, labels)
    return Inputs(
        hidden=torch.randn((samples, case.length, case.width), generator=generator).to(device, dtype),
        head=torch.randn((case.vocab, case.width), generator=generator).to(device, dtype),
        labels=labels.to(device),
        world=case.world,
        micro=case.micro,
        layout=case.layout,
    )


def supports(case: Case) -> str | None:
    """Samples, or tokens, must go round evenly."""
    parts = case.world * case.micro if case.layout == "data" else case.micro
    if len(case.trained) % parts:
        return f"{len(case.trained)} samples do not go into {parts} parts"
    return "the tokens do not go into the ranks" if case.layout == "context" and case.length % case.world else None


def batches(inputs: Inputs, rank: int) -> list[tuple[Tensor, Tensor]]:
    """The micro-batches of one rank."""
    hidden, labels = inputs.hidden, inputs.labels
    if inputs.layout == "data":
        hidden, labels = hidden.chunk(inputs.world)[rank], labels.chunk(inputs.world)[rank]
    else:
        hidden, labels = hidden.chunk(inputs.world, dim=1)[rank], labels.chunk(inputs.world, dim=1)[rank]
    return list(zip(hidden.chunk(inputs.micro), labels.chunk(inputs.micro), strict=True))


def stepped(step: Step, inputs: Inputs) -> Outputs:
    """Run ``step(head, batches, group)`` on every rank; gradients and losses averaged over ranks, as DDP does."""

    def work(rank: int) -> Outputs:
        head = inputs.head.detach().clone().requires_grad_()
        with torch.enable_grad():
            told = step(head, batches(inputs, rank), dist.group.WORLD)
        grad = torch.zeros_like(head) if head.grad is None else head.grad
        return {"loss": torch.as_tensor(told).detach().float().reshape(()), "grad": grad}

    found = ranks.run(inputs.world, work)
    return {name: torch.stack([part[name] for part in found]).mean(0) for name in ("loss", "grad")}


def whole(inputs: Inputs) -> Outputs:
    """The specification: one process, one batch, the mean over all tokens that are trained on."""
    with torch.enable_grad():
        head = inputs.head.detach().clone().requires_grad_()
        loss = masked_loss.linear_cross_entropy(inputs.hidden.detach(), head, inputs.labels, shift=True).value
        (grad,) = torch.autograd.grad(loss, head)
    return {"loss": loss.detach(), "grad": grad}


def reach(inputs: Inputs, _upstream: Outputs | None) -> Outputs:
    """The largest logit that can enter, and by it the largest hidden state."""
    hidden, head = inputs.hidden.double().abs(), inputs.head.double().abs()
    largest = (hidden @ head.mT).amax()
    return {"loss": largest, "grad": (largest * hidden.amax()).reshape(1, 1)}


def scored(own: Batches, group: Any, *, across: bool) -> list[Tensor]:
    """Labels [n,s] of each micro-batch at the rows that predict them; with ``across``, those of the next rank too."""
    if across:
        return [masked_loss.shift_across_ranks(labels, group, IGNORED) for _, labels in own]
    return [masked_loss.shift_labels(labels, IGNORED) for _, labels in own]


def reference_step(head: Tensor, own: Batches, group: Any, *, layout: str) -> Tensor:
    """How the specification is used on one rank: shift across ranks, count over all, divide so that DDP averages."""
    size = dist.get_world_size(group)
    wanted = scored(own, group, across=layout == "context")
    count = masked_loss.global_count(masked_loss.accumulated_count(wanted, shift=False), group)
    divisor = masked_loss.per_rank(count, size)
    told = head.new_zeros(())
    for (hidden, _), labels in zip(own, wanted, strict=True):
        loss = masked_loss.linear_cross_entropy(hidden, head, labels, normaliser=divisor).value
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        told = told + loss.detach()
    return told


def reference(inputs: Inputs) -> Outputs:
    """The specification on the ranks of the case."""
    return stepped(functools.partial(reference_step, layout=inputs.layout), inputs)


def trainer_step(function: Callable[..., Any], head: Tensor, own: Batches, group: Any) -> Tensor:
    """What transformers' Trainer does with a model's loss: the items of the whole step, times the number of ranks."""
    labels = [labels for _, labels in own]
    items = masked_loss.global_count(masked_loss.accumulated_count(labels, shift=True), group)
    told = head.new_zeros(())
    for hidden, wanted in own:
        logits = torch.nn.functional.linear(hidden, head)
        loss = function(logits=logits, labels=wanted, vocab_size=len(head), num_items_in_batch=items)
        loss = loss * dist.get_world_size(group)
        loss.backward()
        told = told + loss.detach()
    return told


def _step(function: Step, inputs: Inputs) -> Outputs:
    return stepped(function, inputs)


def _loss(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    return stepped(functools.partial(trainer_step, function), inputs)


FORMS = (
    Form(
        name="step",
        summary="function(head, batches, group): data parallel; backward of this rank's [(hidden, labels)]; the loss",
        parameters=("head", "batches", "group"),
        call=_step,
        accepts=lambda inputs: None if inputs.layout == "data" else "the form is data parallel",
    ),
    Form(
        name="shards",
        summary="function(head, shards, group): context parallel; backward of this rank's [(hidden, labels)]; the loss",
        parameters=("head", "shards", "group"),
        call=_step,
        accepts=lambda inputs: None if inputs.layout == "context" else "the form is context parallel",
    ),
    Form(
        name="loss",
        summary="function(logits, labels, vocab_size, num_items_in_batch): used as transformers' Trainer uses it",
        parameters=("logits", "labels", "vocab_size", "num_items_in_batch"),
        call=_loss,
        accepts=lambda inputs: None if inputs.layout == "data" else "the form shifts labels within a rank",
    ),
)

CASES = {
    "two-ranks": Case(),
    "four-ranks": Case(world=4, seed=1),
    "micro-batches": Case(world=1, micro=4, seed=2),
    "both": Case(world=2, micro=2, seed=3),
    "context": Case(layout="context", trained=(8, 3), seed=4),
    "context-of-four": Case(layout="context", world=4, trained=(8, 5), seed=5),
    "context-accumulated": Case(layout="context", micro=2, trained=(8, 1), seed=6),
    "a-rank-without-labels": Case(trained=(5, 3, 0, 0), seed=7),
    "a-shard-without-labels": Case(layout="context", trained=(2, 3), seed=8),
    "one-rank": Case(world=1, seed=9),
    "nothing": Case(trained=(0, 0), seed=10),
}

OPERATION = Operation(
    name=NAME,
    summary="the gradient of one optimiser step over micro-batches and ranks, joined by gloo",
    params=Case,
    build=build,
    outputs=("loss", "grad"),
    expect=Numeric(oracle=whole, eager=whole, reach=reach),
    forms=FORMS,
    cases=CASES,
    dtypes=("float32",),
    supports=supports,
    level="pipeline",
)

CANDIDATES = (
    of_reference(NAME, f"{__name__}:reference", origin="assay.reference.masked_loss"),
    of_function(
        NAME, "transformers", "transformers.loss.loss_utils:ForCausalLMLoss", origin="transformers", form="loss"
    ),
)  # fmt: skip
