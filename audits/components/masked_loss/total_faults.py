"""Wrong sums of losses."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from assay.audits.components.masked_loss.total import NAME, Inputs, reference
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs

RANKS = 4


def but(inputs: Inputs, **changes: Any) -> Outputs:
    """The right total of other inputs."""
    return reference(dataclasses.replace(inputs, **changes))


@fault(NAME, "reaches", "gradients")
def detached_losses(inputs: Inputs) -> Outputs:
    """All losses but the first are turned into numbers before the sum.

    Effect: they are logged, fall with the first one, and are never trained.
    """
    changes: dict[str, Any] = {n: v.detach() for n, v in inputs.parameters().items() if n != "lm"}
    return but(inputs, **changes)


@fault(NAME, "linear", "parity")
def averaged_over_components(inputs: Inputs) -> Outputs:
    """The weighted losses are averaged instead of added.

    Effect: switching a loss on lowers the learning rate of all others.
    """
    return {"total": reference(inputs)["total"] / len(inputs.weights)}


@fault(NAME, "linear", "parity")
def weights_made_to_add_up(inputs: Inputs) -> Outputs:
    """The weights are divided by their sum.

    Effect: the weight of one loss changes the part of every other.
    """
    total = sum(abs(weight) for weight in inputs.weights) or 1.0
    return but(inputs, weights=tuple(weight / total for weight in inputs.weights))


@fault(NAME, "linear", "gradients")
def weighted_twice(inputs: Inputs) -> Outputs:
    """A loss that was weighted in its module is weighted again in the sum.

    Effect: a weight of 0.3 trains with 0.09.
    """
    return but(inputs, weights=tuple(weight * abs(weight) for weight in inputs.weights))


@fault(NAME, "reaches", "parity")
def last_loss_left_out(inputs: Inputs) -> Outputs:
    """The sum stops one loss early.

    Effect: the last head is declared, computed and not trained.
    """
    return but(inputs, weights=(*inputs.weights[:-1], 0.0))


@fault(NAME, "linear", "parity")
def weight_as_a_switch(inputs: Inputs) -> Outputs:
    """A weight above zero switches a loss on, with a weight of one.

    Effect: an auxiliary loss of weight 0.001 takes over.
    """
    return but(inputs, weights=tuple(float(weight > 0) for weight in inputs.weights))


@fault(NAME, "linear", "parity", link="https://github.com/NVIDIA/Megatron-LM/pull/3959")
def auxiliary_weights_without_the_ranks(inputs: Inputs) -> Outputs:
    """All losses are averaged over four ranks; the main one is multiplied by their number before, the others are not.

    Effect: auxiliary losses weaken with each rank of context parallelism that is added.
    """
    first, *others = inputs.weights
    return but(inputs, weights=(first, *(weight / RANKS for weight in others)))


@fault(NAME, "linear")
def weight_on_the_value_alone(inputs: Inputs) -> Outputs:
    """The weight multiplies what is logged, the gradient is that of the loss itself.

    Effect: the curves look weighted and the training is not.
    """
    right = reference(inputs)["total"]
    bare = torch.stack(list(inputs.losses().values())).sum()
    return {"total": right.detach() + bare - bare.detach()}


FAULTS = gathered(globals())
