"""The laws of a rotation by several axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from assay.audits.components.mrope.rotate import NAME, Case, Inputs
from assay.audits.laws.limits import row_reach
from assay.audits.laws.parity import exactly
from assay.audits.laws.relation import Pair, Run, holds
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Law, Operation, Outputs
from assay.reference import mrope

SHIFT = (3, 11, 29)
"""Steps along the axes, all different, larger than one."""


def relative(trial: Trial) -> Iterator[Evidence]:
    """Attention scores depend only on differences of positions, axis by axis.

    Why: this is what makes an embedding rotary. Moving a whole sample along any axis must leave every score of a
    query with a key as it was; where it does not, what a model learns at one place does not hold at another.

    Example: positions rounded to bfloat16 before they meet the frequencies.
    """

    def relate(run: Run, inputs: Inputs) -> Iterable[Pair]:
        before, reach = _scores(run(inputs), inputs), _score_reach(inputs)
        for axis in range(len(inputs.positions)):
            after = _scores(run(_moved(inputs, axis)), inputs)
            yield Pair(where="scores", left=after, right=before, reach=reach, message=f"axis {axis} moved")

    yield from holds(trial, relate)


def norm(trial: Trial) -> Iterator[Evidence]:
    """A rotation keeps the length of every lane, times the attention scaling.

    Why: a longer or shorter query changes the temperature of attention at some positions only.

    Example: cos and sin that come from different roundings of the angle, or a scaling applied twice.
    """

    def relate(run: Run, inputs: Inputs) -> Iterable[Pair]:
        out = run(inputs)
        for name in ("q", "k"):
            x = getattr(inputs, name)
            yield Pair(
                where=name,
                left=_lane_lengths(out[name], inputs),
                right=_lane_lengths(x, inputs) * inputs.attention_scaling,
                reach=row_reach(x) * inputs.attention_scaling,
                message="the length of a lane changed",
            )

    yield from holds(trial, relate)


def identity(trial: Trial) -> Iterator[Evidence]:
    """At position zero nothing turns.

    Why: an offset in the positions or a wrong sign convention hides wherever only differences are looked at.

    Example: positions counted from one.
    """

    def relate(run: Run, still: Inputs) -> Iterable[Pair]:
        still = dataclasses.replace(still, positions=torch.zeros_like(still.positions), attention_scaling=1.0)
        out = run(still)
        for name in ("q", "k"):
            x = getattr(still, name)
            yield Pair(
                where=name, left=out[name], right=x, reach=row_reach(x), message="position zero changed the input"
            )

    yield from holds(trial, relate)


def composition(trial: Trial) -> Iterator[Evidence]:
    """Turning by p and then by d is turning by p + d.

    Why: angles must be linear in the position, near and far. One step at position 40,000 must be one step.

    Example: positions held in bfloat16, where 40,000 and 40,001 are the same number.
    """

    def relate(run: Run, inputs: Inputs) -> Iterable[Pair]:
        inputs = dataclasses.replace(inputs, attention_scaling=1.0)
        step = torch.ones_like(inputs.positions)
        first = run(inputs)
        twice = run(dataclasses.replace(inputs, q=first["q"], k=first["k"], positions=step))
        once = run(dataclasses.replace(inputs, positions=inputs.positions + step))
        for name in ("q", "k"):
            reach = row_reach(getattr(inputs, name))
            yield Pair(where=name, left=twice[name], right=once[name], reach=reach, message="p then 1 is not p + 1")

    yield from holds(trial, relate)


def inverse(trial: Trial) -> Iterator[Evidence]:
    """The backward pass turns the upstream gradient back by the same angles.

    Why: a rotation's transpose is its inverse. A backward that turns forwards, or by other tables, trains the
    projections before it towards the wrong place while every forward check passes.

    Example: a backward kernel that forgets to flip the sign of sin.
    """

    def relate(run: Run, inputs: Inputs) -> Iterable[Pair]:
        upstream = trial.upstream
        back = run(dataclasses.replace(inputs, q=upstream["q"], k=upstream["k"], positions=-inputs.positions))
        grads = _gradients(run, inputs, upstream)
        for name in ("q", "k"):
            reach = row_reach(upstream[name]) * inputs.attention_scaling
            yield Pair(where=f"grad:{name}", left=grads[name], right=back[name], reach=reach, message="not turned back")

    yield from holds(trial, relate)


def axis_by_axis(run: Run, inputs: Any) -> Iterator[tuple[int, Tensor, Outputs, Outputs]]:
    """Each axis, its lanes [R/2] bool, and the outputs for the positions as they are and for this axis's alone.

    Nobody's lanes are equal to the bit in both: a vectorised sine takes another path for large angles, for all lanes of
    a vector together.
    """
    mixed = run(inputs)
    for axis in range(len(inputs.positions)):
        positions = inputs.positions[axis].expand_as(inputs.positions).clone()
        yield axis, inputs.axes == axis, mixed, run(dataclasses.replace(inputs, positions=positions))


def ownership(trial: Trial) -> Iterator[Evidence]:
    """Each lane turns by the position of the axis that owns it, and by nothing else.

    Why: an axis that reaches the wrong lanes, or none, makes an image a strip of text. Losses barely move.

    Example: a fused kernel that reads row 0 of the position ids for every lane.
    """

    def relate(run: Run, inputs: Inputs) -> Iterable[Pair]:
        for axis, own, mixed, alone in axis_by_axis(run, inputs):
            for name in ("q", "k"):
                left, right = (_lanes(out[name], inputs)[..., own, :].flatten(-2) for out in (mixed, alone))
                reach = row_reach(getattr(inputs, name)) * inputs.attention_scaling
                message = f"lanes of axis {axis} depend on another axis"
                yield Pair(where=name, left=left, right=right, reach=reach, message=message)

    yield from holds(trial, relate)


def liveness(trial: Trial) -> Iterator[Evidence]:
    """Moving along an axis turns every lane that the axis owns.

    Why: an axis that nothing reads is lost in silence.

    Example: a configuration whose sections are ignored because the code asks for another key.
    """
    inputs: Inputs = trial.inputs
    before = trial.run(inputs)
    for axis in range(len(inputs.positions)):
        after = trial.run(_moved(inputs, axis, by=1))
        live = (inputs.axes == axis) & (inputs.inv_freq > _visible(trial.dtype))
        for name in ("q", "k"):
            moved = (_lanes(after[name], inputs) != _lanes(before[name], inputs)).any(-1)[..., live]
            still = ~moved.flatten(0, -2).any(0) if moved.numel() else torch.zeros(0, dtype=torch.bool)
            if bool(still.any()):
                lane = int(torch.nonzero(live)[int(still.int().argmax())])
                yield Evidence(
                    where=name,
                    measured="unchanged",
                    limit="turned",
                    index=(lane,),
                    message=f"one step along axis {axis} did not turn lane {lane}, which it owns",
                )


def text(trial: Trial) -> Iterator[Evidence]:
    """With equal axes the result is plain one-dimensional RoPE.

    Why: text must be embedded as the text-only base model embedded it, or its knowledge is lost.

    Example: a layout that gives a lane the frequency of its place within the section instead of its own.
    """

    def relate(run: Run, inputs: Inputs) -> Iterable[Pair]:
        positions = inputs.positions[:1].expand_as(inputs.positions).clone()
        inputs = dataclasses.replace(inputs, positions=positions)
        out = run(inputs)
        for name in ("q", "k"):
            x = getattr(inputs, name)
            plain = plain_rope(x, positions[0], inputs)
            reach = row_reach(x) * inputs.attention_scaling
            yield Pair(where=name, left=out[name], right=plain, reach=reach, message="equal axes are not plain RoPE")

    yield from holds(trial, relate)


def plain_rope(x_BHSD: Tensor, positions_BS: Tensor, inputs: Inputs) -> Tensor:
    """One-dimensional RoPE in float64 by complex multiplication, written apart from the reference."""
    lanes = len(inputs.inv_freq)
    angle = positions_BS[..., None].double() * inputs.inv_freq.double()
    turn = torch.polar(torch.full_like(angle, inputs.attention_scaling), angle)[:, None]
    first, second = mrope.lane_channels(inputs.pairing, 2 * lanes)
    x = x_BHSD.double()
    turned = torch.complex(x[..., first], x[..., second]) * turn
    out = x.clone()
    out[..., first], out[..., second] = turned.real, turned.imag
    return out


def split(trial: Trial) -> Iterator[Evidence]:
    """Two halves of a sequence, each with its own positions, give what the whole gives.

    Why: sequence parallelism, chunked prefill and decoding all hand over pieces. A component that counts tokens
    itself instead of reading their positions is right on whole sequences only.

    Example: a kernel that uses the token's index within the call as its position.
    """

    def relate(run: Run, inputs: Inputs) -> Iterable[Pair]:
        whole = run(inputs)
        cut = inputs.q.shape[2] // 3 + 1
        parts = [run(_piece(inputs, slice(0, cut))), run(_piece(inputs, slice(cut, None)))]
        for name in ("q", "k"):
            joined = torch.cat([part[name] for part in parts], dim=2)
            reach = row_reach(getattr(inputs, name)) * inputs.attention_scaling
            yield Pair(where=name, left=joined, right=whole[name], reach=reach, message="pieces differ from the whole")

    yield from holds(trial, relate)


def layout(trial: Trial) -> Iterator[Evidence]:
    """Strides do not matter: a view gives what a dense copy gives.

    Why: models hand over transposed views and slices of packed projections. Reading them as if they were dense gives
    another token's or another head's values.

    Example: a kernel that assumes the stride of a head is its size.
    """

    def relate(run: Run, inputs: Inputs) -> Iterable[Pair]:
        seen = run(inputs)
        dense = run(dataclasses.replace(inputs, q=inputs.q.contiguous(), k=inputs.k.contiguous()))
        for name in ("q", "k"):
            reach = row_reach(getattr(inputs, name)) * inputs.attention_scaling
            message = "a view differs from its copy"
            yield Pair(where=name, left=seen[name], right=dense[name], reach=reach, message=message)

    yield from holds(trial, relate)


def batch(trial: Trial) -> Iterator[Evidence]:
    """Permuting the samples of a batch, or its heads, permutes the outputs.

    Why: a sample must not be rotated by its neighbour's positions, nor a head by its place.

    Example: tables computed from the first sample and broadcast over the batch.
    """

    def relate(run: Run, inputs: Inputs) -> Iterable[Pair]:
        out = run(inputs)
        back = run(
            dataclasses.replace(
                inputs,
                q=inputs.q.flip(0).flip(1),
                k=inputs.k.flip(0).flip(1),
                positions=inputs.positions.flip(1),
            )
        )
        for name in ("q", "k"):
            reach = row_reach(getattr(inputs, name)) * inputs.attention_scaling
            left = back[name].flip(0).flip(1)
            yield Pair(where=name, left=left, right=out[name], reach=reach, message="order matters")

    yield from holds(trial, relate)


def tail(trial: Trial) -> Iterator[Evidence]:
    """Channels beyond the rotary dimension pass through bit for bit.

    Why: with partial rotary most channels carry no position at all; whatever touches them is noise or a leak.

    Example: a kernel that writes uninitialised memory where it does not rotate.
    """
    inputs: Inputs = trial.inputs
    width = 2 * len(inputs.axes)
    out = trial.run(inputs)
    for name in ("q", "k"):
        yield from exactly(name, out[name][..., width:], getattr(inputs, name)[..., width:], "the tail changed")


def _has_tail(_operation: Operation, case: Case) -> str | None:
    return None if case.tail else "every channel is rotated"


def _moved(inputs: Inputs, axis: int, by: int | None = None) -> Inputs:
    positions = inputs.positions.clone()
    positions[axis] += SHIFT[axis % 3] if by is None else by
    return dataclasses.replace(inputs, positions=positions)


def _gradients(run: Run, inputs: Inputs, upstream: Outputs) -> Outputs:
    """Gradients of q and k; one that does not come back is zero."""
    found = run.grads(inputs, upstream)
    return {name: found.get(name, torch.zeros_like(getattr(inputs, name))) for name in ("q", "k")}


def _piece(inputs: Inputs, tokens: slice) -> Inputs:
    return dataclasses.replace(
        inputs, q=inputs.q[:, :, tokens], k=inputs.k[:, :, tokens], positions=inputs.positions[:, :, tokens]
    )


def _lanes(x: Tensor, inputs: Inputs) -> Tensor:
    """[B,H,S,D] as [B,H,S,R/2,2]: the two channels of each lane side by side."""
    first, second = mrope.lane_channels(inputs.pairing, 2 * len(inputs.axes))
    return torch.stack((x[..., first], x[..., second]), dim=-1)


def _lane_lengths(x: Tensor, inputs: Inputs) -> Tensor:
    return _lanes(x.double(), inputs).square().sum(-1).sqrt()


def _scores(out: Any, inputs: Inputs) -> Tensor:
    group = inputs.q.shape[1] // inputs.k.shape[1]
    k: Tensor = out["k"].double().repeat_interleave(group, dim=1)
    scores: Tensor = out["q"].double() @ k.transpose(-1, -2)
    return scores


def _score_reach(inputs: Inputs) -> Tensor:
    group = inputs.q.shape[1] // inputs.k.shape[1]
    q: Tensor = torch.linalg.vector_norm(inputs.q.double(), dim=-1)[..., :, None]
    k: Tensor = torch.linalg.vector_norm(inputs.k.double(), dim=-1).repeat_interleave(group, dim=1)[..., None, :]
    return q * k * inputs.attention_scaling**2


def _visible(dtype: torch.dtype) -> float:
    """A step of fewer radians need not change a value of this dtype."""
    return 8 * float(torch.finfo(dtype).eps)


_law = partial(Law.of, (NAME,))

_EVERYWHERE = (
    relative, norm, identity, composition, inverse, ownership, liveness, text, split, layout, batch,
)  # fmt: skip

LAWS = (*(_law(check) for check in _EVERYWHERE), _law(tail, _has_tail))
