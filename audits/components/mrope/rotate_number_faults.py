"""Wrong rotations: too little precision, or a factor that does not belong."""

from __future__ import annotations

import dataclasses
import itertools

from torch import Tensor

from assay.audits.components.mrope.rotate import NAME, Inputs, reference
from assay.audits.components.mrope.rotate_faults import but
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs
from assay.reference import mrope


def turned(inputs: Inputs, cos: Tensor, sin: Tensor) -> Outputs:
    """Queries and keys turned by tables [B,S,R/2] that are already there."""
    cos, sin = (table.to(inputs.q.dtype) * inputs.attention_scaling for table in (cos, sin))
    return {name: mrope.rotate(x, cos, sin, pairing=inputs.pairing) for name, x in (("q", inputs.q), ("k", inputs.k))}


def angles(inputs: Inputs) -> Tensor:
    """Radians [B,S,R/2] by which each lane of each token turns, in the dtype of the frequencies."""
    return inputs.positions[inputs.axes].permute(1, 2, 0) * inputs.inv_freq


@fault(NAME, "relative", "liveness", "parity", link="https://github.com/huggingface/transformers/pull/29285")
def positions_in_bfloat16(inputs: Inputs) -> Outputs:
    """Positions are cast to bfloat16 with everything else before they meet the frequencies.

    Effect: beyond 256 neighbouring tokens share a position, beyond 40,000 hundreds of them do.
    """
    return but(inputs, positions=inputs.positions.bfloat16().long())


@fault(NAME, "text", "parity", link="https://github.com/huggingface/transformers/issues/25681")
def frequencies_in_bfloat16(inputs: Inputs) -> Outputs:
    """The buffer of the frequencies is cast along with the model's weights.

    Effect: angles are wrong in proportion to the position: short prompts pass, long ones lose their order.
    """
    return but(inputs, inv_freq=inputs.inv_freq.bfloat16().to(inputs.inv_freq))


@fault(NAME, "composition", "text", "parity", link="https://github.com/EleutherAI/gpt-neox/issues/1003")
def angle_in_float16(inputs: Inputs) -> Outputs:
    """Position times frequency is formed in float16.

    Effect: the fast lanes turn by anything; from position 65,505 on they are not numbers.
    """
    angle = angles(inputs).half().float()
    return turned(inputs, angle.cos(), angle.sin())


@fault(NAME, "composition", "text", "parity")
def angle_reduced_by_a_rounded_circle(inputs: Inputs) -> Outputs:
    """A fast sine takes the angle modulo 6.2832.

    Effect: right for small angles; at position 40,000 the fastest lane is off by a twentieth of a radian.
    """
    angle = angles(inputs) % 6.2832
    return turned(inputs, angle.cos(), angle.sin())


@fault(NAME, "norm", "text", "parity")
def tables_in_bfloat16(inputs: Inputs) -> Outputs:
    """Cos and sin are rounded to bfloat16 whatever the dtype of the queries, as under autocast.

    Effect: a float32 run has bfloat16 rotations, and a comparison with it proves nothing.
    """
    angle = angles(inputs)
    return turned(inputs, angle.cos().bfloat16(), angle.sin().bfloat16())


@fault(NAME, "norm", "text", "parity")
def sine_of_a_coarser_angle(inputs: Inputs) -> Outputs:
    """Cos is computed from the exact angle and sin from one that was rounded to bfloat16.

    Effect: lanes grow and shrink with the position, which changes how sharp attention is.
    """
    angle = angles(inputs)
    return turned(inputs, angle.cos(), angle.bfloat16().float().sin())


@fault(NAME, "norm", "text", "parity")
def scaling_dropped(inputs: Inputs) -> Outputs:
    """The attention scaling of a stretched context is never applied.

    Effect: attention is too flat on exactly those models that were tuned for long contexts.
    """
    return but(inputs, attention_scaling=1.0)


@fault(NAME, "norm", "text", "parity")
def scaling_applied_twice(inputs: Inputs) -> Outputs:
    """The tables come scaled, and the rotation scales them again.

    Effect: scores are too large by the fourth power of the scaling where its square was meant.
    """
    return but(inputs, attention_scaling=inputs.attention_scaling**2)


@fault(NAME, "norm", "text", "parity")
def scaling_of_queries_only(inputs: Inputs) -> Outputs:
    """Keys are rotated by a cached table from before the scaling.

    Effect: scores have the scaling once and not squared: half of the temperature change.
    """
    return {"q": reference(inputs)["q"], "k": but(inputs, attention_scaling=1.0)["k"]}


@fault(NAME, "norm", "identity", "text", "parity")
def output_larger_by_a_hundredth(inputs: Inputs) -> Outputs:
    """Every result is 1 % too large.

    Effect: attention is 2 % sharper everywhere, which the usual bfloat16 tolerances accept.
    """
    return {name: 1.01 * value for name, value in reference(inputs).items()}


@fault(NAME, "norm", "identity", "text", "parity")
def output_larger_by_a_thousandth(inputs: Inputs) -> Outputs:
    """Every result is 0.1 % too large, less than bfloat16 can hold.

    Effect: none that a run would show; it is here to measure how fine the limits are in float32.
    """
    return {name: 1.001 * value for name, value in reference(inputs).items()}


@fault(NAME, "returns")
def result_in_float32(inputs: Inputs) -> Outputs:
    """A rotation computed in float32 is returned so, for bfloat16 inputs too.

    Effect: attention runs in float32, at twice the memory, or refuses mixed dtypes.
    """
    wide = dataclasses.replace(inputs, q=inputs.q.float(), k=inputs.k.float())
    return reference(wide)


_calls = itertools.count()


@fault(NAME, "nondeterministic")
def last_bit_depends_on_the_run(inputs: Inputs) -> Outputs:
    """Partial results are added up in whatever order they arrive.

    Effect: two runs with one seed differ, and a difference between two models can no longer be explained.
    """
    step = next(_calls) % 2 * 2.0**-22
    return {name: value * (1 + step) for name, value in reference(inputs).items()}


@fault(NAME, "parity", "norm")
def computed_in_float16(inputs: Inputs) -> Outputs:
    """Queries and keys pass through float16, the only half precision that the kernel was written for.

    Effect: infinite or NaN for large activations, which bfloat16 models have, and for no others.
    """
    return but(inputs, q=inputs.q.half().to(inputs.q), k=inputs.k.half().to(inputs.k))


FAULTS = gathered(vars())
