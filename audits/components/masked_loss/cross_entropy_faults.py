"""Wrong cross-entropies of logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from assay.audits.components.masked_loss import tokens
from assay.audits.components.masked_loss.cross_entropy import NAME, Inputs, reference
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs

Change = Callable[[Tensor, Tensor], Tensor]


def but(inputs: Inputs, **changes: Any) -> Outputs:
    """The right loss of other inputs."""
    return reference(dataclasses.replace(inputs, **changes))


def rows(inputs: Inputs) -> Tensor:
    """[B,S] the right weighted loss of every row, zero where it is masked."""
    return but(inputs, reduction="none", normaliser=None)["loss"]


def over(inputs: Inputs, count: Callable[[Inputs], Tensor | float]) -> Outputs:
    """The mean by another divisor; other reductions as they should be."""
    if inputs.reduction != "mean":
        return reference(inputs)
    return {"loss": rows(inputs).sum() / count(inputs)}


@fault(NAME, "appended", "parity", link="https://github.com/ROCm/TransformerEngine/pull/336")
def mean_over_all_tokens(inputs: Inputs) -> Outputs:
    """Masked losses are set to zero, and the mean is taken over all tokens.

    Effect: the learning rate shrinks with the share of prompt and padding in a batch.
    """
    return over(inputs, lambda own: max(own.labels.numel(), 1))


@fault(NAME, "appended", "parity")
def divided_by_samples(inputs: Inputs) -> Outputs:
    """The sum over tokens is divided by the number of samples.

    Effect: long answers weigh more than short ones, and the loss depends on how long they are.
    """
    return over(inputs, lambda own: max(own.batch, 1))


@fault(NAME, "micro", "parity", link="https://github.com/huggingface/transformers/pull/34191")
def own_count_despite_normaliser(inputs: Inputs) -> Outputs:
    """The number of tokens in the accumulated batch is taken and not used: each micro-batch has a mean of its own.

    Effect: with gradient accumulation the tokens of short answers weigh more, and the gradient is as many times too
    large as there are steps.
    """
    return but(inputs, normaliser=None)


@fault(NAME, "micro", "parity", link="https://github.com/unslothai/unsloth/pull/3597")
def divided_twice(inputs: Inputs) -> Outputs:
    """The mean over the micro-batch is divided by the number of tokens in the accumulated batch once more.

    Effect: a loss near zero, and a learning rate that is smaller by the number of tokens.
    """
    if inputs.reduction != "mean" or inputs.normaliser is None:
        return reference(inputs)
    return {"loss": but(inputs, normaliser=None)["loss"] / inputs.normaliser}


@fault(NAME, "empty", "parity", link="https://github.com/pytorch/pytorch/issues/70348")
def mean_over_nothing(inputs: Inputs) -> Outputs:
    """The mean is taken over no token where all are masked.

    Effect: one micro-batch without an answer makes every parameter NaN.
    """
    return over(inputs, lambda own: tokens.row_weights(own).sum())


@fault(NAME, "duplicated", "parity")
def epsilon_in_the_divisor(inputs: Inputs) -> Outputs:
    """A constant is added to the count so that it is never zero.

    Effect: micro-batches with few trained tokens weigh less than they should.
    """
    return over(inputs, lambda own: tokens.row_weights(own).sum() + 1e-2)


@fault(NAME, "unread", "empty")
def masked_by_multiplication(inputs: Inputs) -> Outputs:
    """Losses of all rows are computed, and those of masked rows multiplied by zero.

    Effect: one NaN in a padded row makes the loss of the batch NaN.
    """
    labels = tokens.targets(inputs.labels, inputs.ignore_index, shift=inputs.shift)
    mask = (labels != inputs.ignore_index).double()
    every = dataclasses.replace(
        inputs, labels=torch.where(mask.bool(), labels, 0), ignore_index=-100, shift=False, reduction="none",
        normaliser=None, weight=None,
    )  # fmt: skip
    own = reference(every)["loss"] * tokens.row_weights(inputs).to(inputs.logits.device, torch.float32) * mask.float()
    if inputs.reduction == "none":
        return {"loss": own}
    return {"loss": own.sum() / tokens.row_weights(inputs).sum()}


@fault(NAME, "masked", "parity")
def shifted_twice(inputs: Inputs) -> Outputs:
    """Labels that the collator had shifted are shifted again.

    Effect: the model learns to skip a token; the loss falls as always.
    """
    again = tokens.targets(inputs.labels, inputs.ignore_index, shift=True)
    return but(inputs, labels=again) if inputs.shift else reference(inputs)


@fault(NAME, "shift", "parity", link="https://github.com/huggingface/transformers/issues/27161")
def never_shifted(inputs: Inputs) -> Outputs:
    """Each row is scored against its own token.

    Effect: the model learns to copy its input, and the loss goes to zero.
    """
    return but(inputs, shift=False)


@fault(NAME, "shift", "parity")
def shifted_over_the_batch(inputs: Inputs) -> Outputs:
    """Labels are shifted after the batch was flattened.

    Effect: the last token of each sample is trained to predict the first of its neighbour.
    """
    if not inputs.shift or not inputs.labels.numel():
        return reference(inputs)
    flat = inputs.labels.flatten()
    moved = torch.cat([flat[1:], flat.new_tensor([inputs.ignore_index])]).view(inputs.labels.shape)
    weight = None if inputs.weight is None else inputs.weight.flatten().roll(-1).view(inputs.labels.shape)
    return but(inputs, labels=moved, weight=weight, shift=False)


@fault(NAME, "refuses")
def labels_clamped(inputs: Inputs) -> Outputs:
    """Labels are clamped into the vocabulary.

    Effect: a tokenizer that does not belong to the model trains its last column, without an error.
    """
    inside = inputs.labels.clamp(0, inputs.logits.shape[-1] - 1)
    return but(inputs, labels=torch.where(inputs.labels == inputs.ignore_index, inputs.labels, inside))


@fault(NAME, "refuses", "parity")
def negative_labels_ignored(inputs: Inputs) -> Outputs:
    """Whatever is negative counts as masked, and the ignore index as a label if it is not.

    Effect: with the pad token as ignore index padding is trained on.
    """
    negative = torch.where(inputs.labels < 0, -100, inputs.labels)
    return but(inputs, labels=negative, ignore_index=-100)


@fault(NAME, "translation", "parity")
def exponentials_unshifted(inputs: Inputs) -> Outputs:
    """The sum of exponentials is formed without subtracting the largest logit.

    Effect: infinite for logits above 88, zero below -88; in between digits are lost.
    """
    return but(inputs, logits=_as_if(inputs.logits, lambda x: x - x.exp().sum(-1, keepdim=True).log()))


def _as_if(x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    changed = change(x.float())
    return changed.to(x.dtype) if x.dtype == torch.float64 else changed


@fault(NAME, "parity", "gradients")
def smoothing_over_others(inputs: Inputs) -> Outputs:
    """The smoothed share goes to the other columns only, by a formula that still sums over all.

    Effect: label smoothing is weaker than asked, by a part that depends on the vocabulary.
    """
    vocab = inputs.logits.shape[-1]
    return but(inputs, label_smoothing=inputs.label_smoothing * (vocab - 1) / (2 * vocab))


@fault(NAME, "live", "parity", link="https://github.com/apple/ml-cross-entropy/issues/48")
def softcap_after_the_loss(inputs: Inputs) -> Outputs:
    """The soft-cap is accepted and never applied.

    Effect: a model with capped logits is trained on uncapped ones, and answers otherwise than it was trained.
    """
    return but(inputs, softcap=None)


class _Capped(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor, cap: float) -> Tensor:
        return cap * torch.tanh(x / cap)

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


@fault(NAME, "slope", "gradients")
def softcap_missing_in_backward(inputs: Inputs) -> Outputs:
    """The backward forgets the derivative of the soft-cap.

    Effect: large logits get gradients that the forward has capped away.
    """
    if inputs.softcap is None:
        return reference(inputs)
    capped: Any = _Capped.apply
    return but(inputs, logits=capped(inputs.logits, inputs.softcap), softcap=None)


class _Upstream(torch.autograd.Function):
    """The identity, with another gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.change = change
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.change(grad), None


def with_gradient(x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """``x``, whose gradient is changed on its way back."""
    passed: Tensor = _Upstream.apply(x, change)  # type: ignore[no-untyped-call]  # autograd's apply is untyped
    return passed


@fault(NAME, "slope", "gradients")
def upstream_taken_for_one(inputs: Inputs) -> Outputs:
    """The gradient is made in the forward, and the upstream gradient is not multiplied in.

    Effect: loss weights, gradient scaling and accumulation have no effect on the gradient.
    """
    return {"loss": with_gradient(reference(inputs)["loss"], torch.ones_like)}


@fault(NAME, "gradients", link="https://github.com/linkedin/Liger-Kernel/pull/1298")
def first_upstream_for_all(inputs: Inputs) -> Outputs:
    """Row losses all get the first row's upstream gradient.

    Effect: right wherever the losses are summed; wrong for per-token weights and policy gradients.
    """
    return {"loss": with_gradient(reference(inputs)["loss"], lambda g: g.flatten()[:1].expand(g.numel()).view_as(g))}


@fault(NAME, "masked", "gradients")
def gradient_of_masked_rows(inputs: Inputs) -> Outputs:
    """The gradient of masked rows is the softmax: only the target's entry was left out.

    Effect: prompts and images push all logits down.
    """
    hidden = ~tokens.valid(inputs)[..., None]
    pushed = with_gradient(inputs.logits, lambda grad: torch.where(hidden, 1e-3, grad))
    return but(inputs, logits=pushed)


@fault(NAME, "weights", "parity")
def weights_over_the_count(inputs: Inputs) -> Outputs:
    """The weighted sum is divided by the number of tokens.

    Effect: weights that do not average one change the learning rate.
    """
    if inputs.normaliser is not None:
        return reference(inputs)
    return over(inputs, lambda own: tokens.valid(own).sum().clamp(min=1))


@fault(NAME, "parity", "gradients", link="https://github.com/modelscope/ms-swift/pull/10035")
def weights_of_the_row(inputs: Inputs) -> Outputs:
    """The labels are shifted and their weights are not.

    Effect: each token trains with the weight of the token before it; at turn boundaries that is another turn's.
    """
    if inputs.weight is None or not inputs.shift:
        return reference(inputs)
    labels = tokens.targets(inputs.labels, inputs.ignore_index, shift=True)
    return but(inputs, labels=labels, shift=False)


@fault(NAME, "permuted", "parity")
def last_row_of_odd_tiles_lost(inputs: Inputs) -> Outputs:
    """The grid has half as many programs as rows, rounded down.

    Effect: the last token of an odd number of rows is never trained on.
    """
    if inputs.labels.numel() % 2 == 0:
        return reference(inputs)
    labels = inputs.labels.clone()
    labels.view(-1)[-1] = inputs.ignore_index
    return but(inputs, labels=labels)


@fault(NAME, "parity", "uniform")
def columns_beyond_a_tile_lost(inputs: Inputs) -> Outputs:
    """Only whole tiles of 256 columns are summed.

    Effect: the last tokens of the vocabulary, the placeholders among them, are never pushed down.
    """
    vocab = inputs.logits.shape[-1]
    whole = vocab - vocab % 256 if vocab > 256 else vocab
    kept = torch.arange(vocab, device=inputs.logits.device) < whole
    targets = tokens.targets(inputs.labels, inputs.ignore_index, shift=inputs.shift)
    kept = kept | (torch.arange(vocab, device=inputs.logits.device) == targets[..., None])
    low = torch.finfo(inputs.logits.dtype).min / 4
    return but(inputs, logits=torch.where(kept, inputs.logits, low))


@fault(NAME, "uniform", "parity")
def z_loss_of_the_largest(inputs: Inputs) -> Outputs:
    """The z-loss squares the largest logit instead of the log-sum-exp.

    Effect: one column is held, the level of all others drifts.
    """
    if not inputs.z_loss:
        return reference(inputs)
    own = rows(dataclasses.replace(inputs, z_loss=0.0))
    x = inputs.logits.to(own.dtype)
    x = x if inputs.softcap is None else inputs.softcap * torch.tanh(x / inputs.softcap)
    own = own + inputs.z_loss * x.amax(-1).square() * tokens.row_weights(inputs).to(own)
    return {"loss": own if inputs.reduction == "none" else own.sum() / tokens.divisor(inputs)}


@fault(NAME, "slope", "gradients", link="https://github.com/microsoft/DirectML/issues/739")
def rows_without_gradient(inputs: Inputs) -> Outputs:
    """The backward knows a scalar loss only; row losses get a gradient of zero.

    Effect: per-token weights applied outside train nothing, with a loss that looks right.
    """
    loss = reference(inputs)["loss"]
    return {"loss": with_gradient(loss, torch.zeros_like) if inputs.reduction == "none" else loss}


@fault(NAME, "parity", "uniform", link="https://github.com/unslothai/unsloth/pull/10616")
def padded_lanes_capped(inputs: Inputs) -> Outputs:
    """The lanes beyond the vocabulary are filled with minus infinity before the soft-cap, which makes them -cap.

    Effect: the loss of capped models with a ragged vocabulary is too high, more so the smaller the cap.
    """
    vocab, cap = inputs.logits.shape[-1], inputs.softcap
    lanes = -vocab % 32
    if cap is None or not lanes:
        return reference(inputs)
    capped = cap * torch.tanh(inputs.logits.float() / cap)
    capped = capped.to(inputs.logits) if inputs.logits.dtype == torch.float64 else capped
    ghosts = capped.new_full((*capped.shape[:-1], lanes), -cap)
    return but(inputs, logits=torch.cat([capped, ghosts], -1), softcap=None)


@fault(NAME, "shift", "parity", link="https://github.com/modelscope/ms-swift/pull/9167")
def counts_labels_before_the_shift(inputs: Inputs) -> Outputs:
    """The divisor counts the labels as they came, the first of each sample among them.

    Effect: the loss is slightly low wherever the first token is trained on.
    """
    if inputs.normaliser is not None or inputs.weight is not None:
        return reference(inputs)
    return over(inputs, lambda own: (own.labels != own.ignore_index).sum().clamp(min=1))


@fault(NAME, "continuity", "parity", link="https://github.com/huggingface/transformers/pull/47261")
def smoothing_ignores_the_normaliser(inputs: Inputs) -> Outputs:
    """With label smoothing another branch is taken, which has a mean of its own.

    Effect: switching label smoothing on multiplies the gradient by the number of accumulation steps.
    """
    return but(inputs, normaliser=None) if inputs.label_smoothing else reference(inputs)


FAULTS = gathered(globals())
