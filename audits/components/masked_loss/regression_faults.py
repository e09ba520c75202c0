"""Wrong masked regressions."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from assay.audits.components.masked_loss import regression
from assay.audits.components.masked_loss.cross_entropy_faults import with_gradient
from assay.audits.components.masked_loss.regression import NAME, Inputs, reference
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs


def but(inputs: Inputs, **changes: Any) -> Outputs:
    """The right loss of other inputs."""
    return reference(dataclasses.replace(inputs, **changes))


def averages(inputs: Inputs) -> bool:
    """Whether the loss is a mean over its own entries."""
    return inputs.reduction == "mean" and inputs.normaliser is None


@fault(NAME, "padded", "parity")
def pads_fetch_a_token(inputs: Inputs) -> Outputs:
    """Padded indices are gathered like all others and take part in the mean.

    Effect: token 0 is a target once for every pad: the more ragged the batch, the more.
    """
    if inputs.indices is None:
        return reference(inputs)
    return but(inputs, mask=torch.ones_like(inputs.mask))


@fault(NAME, "permuted", "parity")
def rows_regrouped(inputs: Inputs) -> Outputs:
    """Boolean indexing flattens the batch, and what is left is cut into equal rows.

    Effect: right where every sample has as many tokens; otherwise predictions meet another sample's targets.
    """
    if inputs.mask.ndim != 2 or inputs.reduction != "mean" or not inputs.mask.any():
        return reference(inputs)
    target = regression.gathered(inputs)
    order = torch.argsort(inputs.mask.flatten().long(), descending=True, stable=True)
    regrouped = target.flatten(0, 1)[order].view_as(target)
    return but(inputs, target=regrouped, indices=None)


@fault(NAME, "appended", "parity")
def averaged_twice(inputs: Inputs) -> Outputs:
    """A mean over masked entries set to zero, then rescaled by the share of the mask.

    Effect: with one mask entry a token and a mean over elements, the scale is off by a factor that moves with padding.
    """
    if not averages(inputs):
        return reference(inputs)
    entries = but(inputs, reduction="none")["loss"]
    kept = inputs.mask.double().sum().clamp(min=1)
    return {"loss": entries.mean() * (inputs.mask.numel() / kept) ** 2}


@fault(NAME, "parity", "micro")
def divided_by_tokens(inputs: Inputs) -> Outputs:
    """Element-wise losses are summed and divided by the entries of a mask that has one for each token.

    Effect: the loss is too large by the number of features.
    """
    if not averages(inputs) or inputs.weight is not None:
        return reference(inputs)
    return but(inputs, normaliser=float(inputs.mask.sum()) or None)


@fault(NAME, "duplicated", "parity")
def epsilon_beside_the_count(inputs: Inputs) -> Outputs:
    """The sum is divided by the count of tokens plus a constant.

    Effect: batches with few masked tokens weigh less.
    """
    return but(inputs, normaliser=inputs.amount() + 1.0) if averages(inputs) else reference(inputs)


@fault(NAME, "unread", "padded")
def multiplied_by_the_mask(inputs: Inputs) -> Outputs:
    """The losses of all entries are computed and multiplied by the mask.

    Effect: NaN anywhere, in a token nobody asked for, is NaN in the loss.
    """
    everywhere = but(inputs, mask=torch.ones_like(inputs.mask), reduction="none")["loss"]
    mask = inputs.mask[..., None] if inputs.mask.ndim < everywhere.ndim else inputs.mask
    entries = everywhere * mask.to(everywhere)
    return {"loss": entries if inputs.reduction == "none" else entries.sum() / regression.divisor(inputs)}


@fault(NAME, "normalised", "parity")
def normalised_over_tokens(inputs: Inputs) -> Outputs:
    """Targets are normalised over the tokens instead of the features.

    Effect: what a token has to predict depends on its neighbours.
    """
    if not inputs.normalise_target or inputs.target.shape[1] < 2:
        return reference(inputs)
    target = torch.nn.functional.layer_norm(inputs.target.float().mT, inputs.target.shape[1:2]).mT
    return but(inputs, target=target.to(inputs.target), normalise_target=False)


@fault(NAME, "normalised", "parity")
def targets_not_normalised(inputs: Inputs) -> Outputs:
    """The normalisation of targets is accepted and not done.

    Effect: a few features of large size are all that is learned.
    """
    return but(inputs, normalise_target=False)


@fault(NAME, "parity", "gradients")
def beta_ignored(inputs: Inputs) -> Outputs:
    """The width of the smooth part is accepted and not used.

    Effect: small differences are weighed by another slope than was written down.
    """
    return but(inputs, beta=1.0)


@fault(NAME, "exact", "gradients")
def slope_at_zero(inputs: Inputs) -> Outputs:
    """The sign of a difference of zero is taken for one.

    Effect: predictions that are right are pushed away.
    """
    scored = inputs.mask[..., None] if inputs.mask.ndim < inputs.prediction.ndim else inputs.mask
    equal = (inputs.prediction == regression.gathered(inputs)) & scored
    pushed = with_gradient(inputs.prediction, lambda grad: torch.where(equal, grad + 1e-3, grad))
    return but(inputs, prediction=pushed)


@fault(NAME, "permuted", "parity")
def indices_of_the_first_sample(inputs: Inputs) -> Outputs:
    """The indices of the first sample are broadcast over the batch.

    Effect: all other samples are compared with the wrong tokens.
    """
    if inputs.indices is None or not inputs.batch:
        return reference(inputs)
    return but(inputs, indices=torch.where(inputs.mask, inputs.indices[:1], 0))


@fault(NAME, "masked", "gradients")
def mask_upside_down_in_backward(inputs: Inputs) -> Outputs:
    """The backward writes a small gradient where the mask is False.

    Effect: context tokens drift towards nothing in particular.
    """
    scored = inputs.mask[..., None] if inputs.mask.ndim < inputs.prediction.ndim else inputs.mask
    pushed = with_gradient(inputs.prediction, lambda grad: torch.where(scored, grad, 1e-3))
    return but(inputs, prediction=pushed)


@fault(NAME, "empty")
def mean_over_no_entry(inputs: Inputs) -> Outputs:
    """The sum over no entry is divided by zero.

    Effect: a sample whose masked tokens were all dropped ends the run.
    """
    return (
        {"loss": but(inputs, reduction="sum", normaliser=None)["loss"] / inputs.amount()}
        if averages(inputs)
        else reference(inputs)
    )


@fault(NAME, "weights", "parity")
def weights_over_the_entries(inputs: Inputs) -> Outputs:
    """The weighted sum is divided by the number of entries, not by their weights.

    Effect: weights that do not average one change the learning rate.
    """
    if not averages(inputs) or inputs.weight is None:
        return reference(inputs)
    return but(inputs, normaliser=dataclasses.replace(inputs, weight=None).amount() or None)


@fault(NAME, "slope", "gradients")
def upstream_taken_for_one(inputs: Inputs) -> Outputs:
    """The gradient is made in the forward, and the upstream gradient is not multiplied in.

    Effect: the loss's weight beside other losses has no effect.
    """
    return {"loss": with_gradient(reference(inputs)["loss"], torch.ones_like)}


FAULTS = gathered(globals())
