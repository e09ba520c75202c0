"""The laws of a whole model on packed samples: each is what it is alone, and none sees another."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from functools import partial

import torch
from torch import Tensor

from assay.audits.components.packed_positions.model import NAME, Case
from assay.audits.families.packed_run import FLASH, UNDIFFERENTIATED, PackedCall
from assay.audits.laws.limits import difference, excess, floor, relative, worst
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Inexpressible, Law, Operation, Outputs

OTHER = 1000
"""How far the key of a sample is moved for other content of the same size."""


def unpacked(trial: Trial) -> Iterator[Evidence]:
    """Logits, loss and the gradient of every parameter are those of the samples one by one.

    Why: packing is a way of saving padding and nothing else. What it changes is trained into the model: attention to
    what happens to stand before, positions that do not restart, a state that runs on.

    Example: an attention mask of ones beside restarting ids, which turns the detection of samples off.
    """
    got, want = trial.outcome.values, _alone(trial)
    for kind, where in (("logits", "logits"), ("loss", "loss"), ("grad", "gradients")):
        names = (name for name in want if name.partition(":")[0] == kind and name in got)
        if broken := list(_compared(trial, got, want, names)):
            yield from worst(_place(trial, where), broken)
            return  # what comes after follows from it


def isolated(trial: Trial) -> Iterator[Evidence]:
    """Other ids and other pixels in one sample change nothing for the others: neither logits nor gradients.

    Why: it shows a leak whatever else is right or wrong, and how much of it there is. A sample that looks at its
    neighbours has the better loss in training, and nobody to look at afterwards.

    Example: a convolution or a recurrent state that is told of samples by another argument than attention is.
    """
    call: PackedCall = trial.inputs
    for changed in sorted({0, len(call.keys) // 2, len(call.keys) - 1}):  # all pairs are asked by ``separate``
        keys = tuple(key + OTHER if number == changed else key for number, key in enumerate(call.keys))
        after, before = trial.varied(keys=keys), trial.outcome.values
        others = [
            f"{kind}:{number}" for number in range(len(call.keys)) if number != changed
            for kind in ("logits", "inputs") if f"{kind}:{number}" in before
        ]  # fmt: skip
        broken = list(_compared(trial, after, before, others, sides=2))
        if broken:
            seen = [item for item in broken if item.where.startswith("logits")]
            yield from worst(_place(trial, "logits" if seen else "inputs"), seen or broken)
            return


def separate(trial: Trial) -> Iterator[Evidence]:
    """As many samples are told apart as there are: the last token of each depends on its own as alone, on no other.

    Why: what a model takes for samples is not what it was told, but what its layers do. A gradient that is exactly
    zero beyond the boundary, and nowhere within, is the proof; it also finds samples that are cut to pieces.

    Example: the time axis taken for the text's ids, so that each token of an image is a sample of its own.
    """
    values, call, alone = trial.outcome.values, trial.inputs, _alone(trial)
    ends = torch.tensor([len(values[f"logits:{number}"]) for number in range(len(call.keys))]).cumsum(0).tolist()
    for number, (start, stop) in enumerate(itertools.pairwise([0, *ends])):
        reached = values[f"probe:{number}"] != 0
        foreign = int(reached[:start].sum() + reached[stop:].sum())
        lost = int((~reached[start:stop] & (alone[f"probe:{number}"] != 0)).sum())
        for where, count, told in (
            ("leaks", foreign, "depends on so many tokens of other samples"),
            ("cuts", lost, "does not depend on so many tokens of its own, on which it does alone"),
        ):
            if count:
                yield Evidence(
                    where=_place(trial, where), measured=float(count), limit=0.0, index=(number,),
                    message=f"the last token of sample {number} (tokens {start} to {stop - 1}) {told}",
                )  # fmt: skip
        if foreign or lost:
            return


def recut(trial: Trial) -> Iterator[Evidence]:
    """The next row, as long and with the same samples in another order, is cut where its own samples begin.

    Why: rows of a packed run are all of one length. What is kept from row to row by shape, a mask of blocks that is
    expensive to make or lengths on the device, is that of the first row for all that follow.

    Example: a cache of masks with the number of tokens as its key.
    """
    call: PackedCall = trial.inputs
    names = [name for name in trial.outcome.values if name.startswith("logits:")]
    if list(_compared(trial, trial.outcome.values, _alone(trial), names)):
        raise Inexpressible("the first row is not cut rightly either")
    again = trial.varied(samples=call.samples[::-1], keys=call.keys[::-1], gradients=False)
    turned = {f"logits:{len(call.keys) - 1 - number}": again[f"logits:{number}"] for number in range(len(call.keys))}
    if broken := list(_compared(trial, turned, _alone(trial), names)):
        yield from worst(_place(trial, "the next row"), broken)


def _place(trial: Trial, what: str) -> str:
    """What differs, and how the model was told: what one way of telling breaks is not what another one breaks."""
    call: PackedCall = trial.inputs
    attention = "" if call.attention == "default" else f", {call.attention.partition('_')[0]}"
    rows = f", {call.rows} rows" if call.rows > 1 else ""
    return f"{what} (told by {call.told}{rows}{attention}{', images' if trial.params.modalities else ''})"


def _alone(trial: Trial, dtype: str = "float64") -> Outputs:
    """The samples one by one."""
    return trial.varied(told="", dtype=dtype)


def _compared(
    trial: Trial, got: Outputs, want: Outputs, names: Iterable[str], sides: int = 1
) -> Iterator[Evidence]:  # fmt: skip
    """Evidence where two runs differ by more than float32 costs this model on these samples, of so many ``sides``."""
    for name in names:
        if got[name].shape != want[name].shape:
            yield Evidence(
                where=name, measured=f"{list(got[name].shape)}", limit=f"{list(want[name].shape)}", message="misshapen"
            )
            continue
        reach = _reach(trial, name.partition(":")[0])
        error, allowed = relative(difference(got[name], want[name]), reach), floor([], reach, torch.float32)
        if bool((error > allowed).any()):
            ordinary = functools.partial(_ordinary, trial, name, sides)
            found = excess(name, error, allowed, ordinary, "packed samples are not what they are alone")
            if found:
                yield found


def _reach(trial: Trial, kind: str) -> Tensor:
    """What rounding is proportional to: the largest of the logits, or of the gradients of one kind."""

    def compute() -> Tensor:
        parts = [value for name, value in _alone(trial).items() if name.partition(":")[0] == kind and value.numel()]
        largest = [value.abs().max().double() for value in parts]
        logits = [value.abs().max().double() for name, value in _alone(trial).items() if name.startswith("logits:")]
        return torch.stack(largest + logits if kind == "loss" else largest).max()

    found: Tensor = trial.once(f"packed reach {kind}", compute)
    return found


def _ordinary(trial: Trial, name: str, sides: int) -> list[Tensor]:
    """What float32 costs the samples one by one: the scale of what may be lost. Of samples, the unluckiest counts.

    Of an attention that runs in bfloat16 alone, what that costs the samples with the family's own attention.
    """
    if trial.inputs.attention == FLASH:
        wide, narrow = (
            trial.varied(told="", attention="default", dtype=dtype) for dtype in ("float64", "bfloat16")
        )  # fmt: skip
    else:
        wide, narrow = _alone(trial), _alone(trial, "float32")
    kind = name.partition(":")[0]
    alike = [name] if kind == "grad" else [other for other in wide if other.partition(":")[0] == kind]
    return [sides * relative(difference(narrow[other], wide[other]), _reach(trial, kind)) for other in alike]


def _several(_operation: Operation, case: Case) -> str | None:
    return None if len(case.samples) > 1 else "one sample"


def _differentiable(_operation: Operation, case: Case) -> str | None:
    return f"{case.attention} has no gradients on a CPU" if case.attention in UNDIFFERENTIATED else None


_law = partial(Law.of, (NAME,))

LAWS = (
    _law(unpacked), _law(isolated, _several), _law(separate, _differentiable), _law(recut, _several),
)  # fmt: skip
