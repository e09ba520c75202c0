"""Wrong tables of cosines and sines."""

from __future__ import annotations

import dataclasses
import itertools

import torch

from assay.audits.components.mrope.tables import NAME, Inputs, reference
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs

_CALLS = itertools.count()


@fault(NAME, "lanes", "parity", link="https://github.com/sgl-project/sglang/pull/34446")
def one_axis_for_all_lanes(inputs: Inputs) -> Outputs:
    """Every lane takes the angle of the first axis.

    Effect: pictures are read as strips of text; text itself is embedded as before.
    """
    return reference(dataclasses.replace(inputs, axes=torch.zeros_like(inputs.axes)))


@fault(NAME, "lanes", "parity")
def owners_by_the_sum_of_the_axes(inputs: Inputs) -> Outputs:
    """The axes are added up before the angle is formed.

    Effect: moving right and moving down look the same.
    """
    total = inputs.positions.sum(0, keepdim=True).expand_as(inputs.positions)
    return reference(dataclasses.replace(inputs, positions=total))


@fault(NAME, "circle", "parity")
def scaling_on_the_cosine_only(inputs: Inputs) -> Outputs:
    """The attention scaling multiplies one of the two tables.

    Effect: with yarn each lane is stretched by another amount at each position.
    """
    out = dict(reference(inputs))
    return out | {"sin": out["sin"] / inputs.attention_scaling}


@fault(NAME, "circle", "parity")
def sine_of_the_next_token(inputs: Inputs) -> Outputs:
    """A cached sine table is read one position too far.

    Effect: no lane is rotated any more; all of them are squeezed a little.
    """
    late = reference(dataclasses.replace(inputs, positions=inputs.positions + 1))
    return {"cos": reference(inputs)["cos"], "sin": late["sin"]}


@fault(NAME, "parity", "returns")
def tables_in_float64(inputs: Inputs) -> Outputs:
    """The tables are left in float64, and their angle is formed in float16.

    Effect: what they multiply is promoted, and far positions are lost all the same.
    """
    angle = (inputs.positions[inputs.axes].permute(1, 2, 0) * inputs.inv_freq).half().double()
    return {"cos": angle.cos() * inputs.attention_scaling, "sin": angle.sin() * inputs.attention_scaling}


@fault(NAME, "nondeterministic")
def another_table_each_call(inputs: Inputs) -> Outputs:
    """A buffer that is written once more at each call.

    Effect: the second step trains on other positions than the first.
    """
    return reference(dataclasses.replace(inputs, positions=inputs.positions + next(_CALLS)))


@fault(NAME, "mutates")
def positions_shifted_in_place(inputs: Inputs) -> Outputs:
    """The positions are scaled in place for the angle and not put back.

    Effect: every layer after the first one sees other positions.
    """
    out = reference(inputs)
    inputs.positions.add_(1)
    return out


@fault(NAME, "leaks")
def a_seed_for_the_tables(inputs: Inputs) -> Outputs:
    """The global generator is seeded at every call.

    Effect: every dropout mask of the run is the same one.
    """
    torch.manual_seed(0)
    return reference(inputs)


FAULTS = gathered(globals())
