"""Wrong cross-entropies from hidden states and a head."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from assay.audits.components.masked_loss import cross_entropy, cross_entropy_faults, tokens
from assay.audits.components.masked_loss.cross_entropy_faults import with_gradient
from assay.audits.components.masked_loss.linear import NAME, Inputs, reference
from assay.audits.fault import fault, gathered
from assay.audits.terms import Fault, Outputs
from assay.reference import masked_loss

CHUNK = 4


def but(inputs: Inputs, **changes: Any) -> Outputs:
    """The right loss of other inputs."""
    return reference(dataclasses.replace(inputs, **changes))


def chunks(inputs: Inputs) -> list[Inputs]:
    """The rows in pieces of a few, scored already against their own labels."""
    labels = tokens.targets(inputs.labels, inputs.ignore_index, shift=inputs.shift).reshape(1, -1)
    hidden = inputs.hidden.reshape(1, -1, inputs.hidden.shape[-1])
    weight = None
    if inputs.weight is not None:
        own = torch.cat([inputs.weight[:, 1:], inputs.weight[:, :1]], dim=1) if inputs.shift else inputs.weight
        weight = own.reshape(1, -1)
    return [
        dataclasses.replace(
            inputs, hidden=hidden[:, at : at + CHUNK], labels=labels[:, at : at + CHUNK], shift=False,
            weight=None if weight is None else weight[:, at : at + CHUNK],
        )
        for at in range(0, labels.numel(), CHUNK)
    ]  # fmt: skip


@fault(NAME, "permuted", "parity", link="https://github.com/meta-pytorch/torchtune/issues/2341")
def mean_of_chunk_means(inputs: Inputs) -> Outputs:
    """Each chunk of rows has a mean of its own, and the loss is their mean.

    Effect: tokens of chunks with few labels weigh more; a chunk without any is counted.
    """
    if inputs.reduction != "mean" or inputs.normaliser is not None or not inputs.labels.numel():
        return reference(inputs)
    return {"loss": torch.stack([reference(part)["loss"] for part in chunks(inputs)]).mean()}


@fault(NAME, "parity", "gradients", link="https://github.com/apple/ml-cross-entropy/issues/52")
def bias_added_repeatedly(inputs: Inputs) -> Outputs:
    """The bias is added once for each block of the hidden width.

    Effect: negative losses for models with a bias in their head.
    """
    blocks = -(-inputs.hidden.shape[-1] // 16)
    return but(inputs, bias=None if inputs.bias is None else inputs.bias * blocks)


@fault(NAME, "slope", "gradients")
def head_gradient_of_the_last_chunk(inputs: Inputs) -> Outputs:
    """The gradient of the head is overwritten by each chunk instead of added up.

    Effect: the head learns from the last tokens of a batch only.
    """
    if inputs.reduction == "none":
        return reference(inputs)
    parts = chunks(inputs)
    summed = [dataclasses.replace(part, reduction="sum") for part in parts]
    frozen = [dataclasses.replace(part, head=part.head.detach()) for part in summed[:-1]]
    losses = [reference(part)["loss"] for part in (*frozen, *summed[-1:])]
    return {"loss": torch.stack(losses).sum() / tokens.divisor(inputs)} if losses else reference(inputs)


@fault(NAME, "slope", "gradients")
def bias_without_gradient(inputs: Inputs) -> Outputs:
    """The bias is added and gets no gradient.

    Effect: the bias of the head never learns.
    """
    return but(inputs, bias=None if inputs.bias is None else inputs.bias.detach())


@fault(NAME, "gradients", link="https://github.com/linkedin/Liger-Kernel/issues/827")
def head_gradient_in_half_precision(inputs: Inputs) -> Outputs:
    """The gradient of the head is added up over chunks in bfloat16.

    Effect: small contributions are lost, the more of them the more chunks there are.
    """
    if inputs.reduction == "none":
        return reference(inputs)
    head = inputs.head
    for _ in range(2):
        head = with_gradient(head, lambda grad: (grad.bfloat16() * 1.0).to(grad))
    return but(inputs, head=head)


@fault(NAME, "masked", "gradients")
def hidden_of_masked_rows(inputs: Inputs) -> Outputs:
    """The gradient of compacted rows is scattered back by their place among all rows, one too far.

    Effect: prompt tokens get the gradient of the answers after them.
    """
    rolled = with_gradient(inputs.hidden, lambda grad: grad.roll(1, dims=1))
    return but(inputs, hidden=rolled)


@fault(NAME, "gradients", link="https://github.com/linkedin/Liger-Kernel/pull/1298")
def scalar_upstream_for_rows(inputs: Inputs) -> Outputs:
    """Gradients are made in the forward for a sum, and multiplied by the first upstream gradient.

    Effect: row losses with weights of their own train with one weight.
    """
    loss = reference(inputs)["loss"]
    return {"loss": with_gradient(loss, lambda g: g.flatten()[:1].expand(g.numel()).view_as(g))}


@fault(NAME, "unread", "masked")
def statistics_over_all_rows(inputs: Inputs) -> Outputs:
    """The scale that keeps the products in range is taken over all rows, the masked ones too.

    Effect: an overflow in a padded row silences the loss of the batch.
    """
    scale = inputs.hidden.detach().abs().amax() if inputs.hidden.numel() else inputs.hidden.new_ones(())
    return but(inputs, hidden=inputs.hidden / scale.clamp(min=64.0) * 64.0)


@fault(NAME, "live", "parity", link="https://github.com/huggingface/trl/pull/6629")
def softcap_not_forwarded(inputs: Inputs) -> Outputs:
    """The fused path is not given the soft-cap of the model.

    Effect: training and inference use different logits.
    """
    return but(inputs, softcap=None)


@fault(NAME, "empty", "parity", link="https://github.com/NVIDIA-NeMo/Automodel/issues/3796")
def nothing_divided_by_nothing(inputs: Inputs) -> Outputs:
    """The sum over no row is divided by a count of zero.

    Effect: a rank without labels spreads NaN to all others.
    """
    if inputs.reduction != "mean":
        return reference(inputs)
    options = cross_entropy.arguments(inputs) | {"reduction": "sum", "normaliser": None}
    found = masked_loss.linear_cross_entropy(inputs.hidden, inputs.head, inputs.labels, bias=inputs.bias, **options)
    return {"loss": found.value / (inputs.normaliser or tokens.row_weights(inputs).sum())}


def on_logits(inputs: Inputs) -> cross_entropy.Inputs:
    """The same case with its logits made."""
    options = cross_entropy.arguments(inputs)
    logits = torch.nn.functional.linear(inputs.hidden, inputs.head, inputs.bias)
    return cross_entropy.Inputs(logits=logits, labels=inputs.labels, **options)


def twin(of: Fault) -> Fault:
    """What is wrong with a loss of logits, in a loss that makes its logits."""
    return dataclasses.replace(of, operation=NAME, wrong=lambda inputs: of.wrong(on_logits(inputs)))


TWINS = (
    cross_entropy_faults.mean_over_all_tokens,
    cross_entropy_faults.epsilon_in_the_divisor,
    cross_entropy_faults.own_count_despite_normaliser,
    cross_entropy_faults.labels_clamped,
    cross_entropy_faults.never_shifted,
    cross_entropy_faults.weights_over_the_count,
    cross_entropy_faults.smoothing_ignores_the_normaliser,
)
FAULTS = (*gathered(globals()), *map(twin, TWINS))
