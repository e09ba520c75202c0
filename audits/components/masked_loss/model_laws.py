"""The laws of the loss that a whole model computes from labels."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from assay.audits.components.masked_loss.model import NAME, Case
from assay.audits.families.loss_run import LossCall
from assay.audits.laws.limits import difference, excess, floor, relative, worst
from assay.audits.laws.trial import Trial, answerable
from assay.audits.terms import Evidence, Law, Operation, Outputs

ITEMS = 29
"""A number of tokens of a whole step that is not that of any batch here."""
WIDER = 3


def reference(trial: Trial) -> Iterator[Evidence]:
    """Loss and gradients are those of the reference cross-entropy on the model's own logits, shifted once.

    Why: each family writes its loss itself, or hands logits and labels to one that shifts. What is shifted twice or
    not at all, averaged over padding, or scored where nothing is to be learned still goes down during training.

    Example: a forward that shifts the labels and passes them to a loss that shifts them again.
    """
    yield from _same(trial, trial.outcome.values, _specified(trial), "not the reference loss on its own logits")


def items(trial: Trial) -> Iterator[Evidence]:
    """Given ``num_items_in_batch``, loss and gradients are the sum over tokens divided by it.

    Why: a trainer that accumulates gradients counts the trained tokens of the whole step and hands the count to every
    micro-batch. A forward that takes it and averages over its own tokens makes the step as many times too large as
    there are micro-batches, and gives short answers more weight than long ones.

    Example: a hand-written cross-entropy in a forward that swallows further arguments in ``**kwargs``.
    """
    share = _scored(trial.outcome.values["labels"]) / ITEMS
    want = _scaled(_specified(trial), share)
    yield from _same(trial, trial.varied(items=ITEMS), want, "not the sum over tokens by num_items_in_batch", share)


def micro(trial: Trial) -> Iterator[Evidence]:
    """Samples one by one, with the count of all as ``num_items_in_batch``, add up to the batch.

    Why: this is what gradient accumulation promises, whatever the numbers of tokens in the micro-batches. One of them
    may have no trained token at all.

    Example: a loss that divides by the tokens at hand when there are few of them.
    """
    call: LossCall = trial.inputs
    count = _scored(trial.outcome.values["labels"])
    parts = [
        trial.varied(items=count, samples=(sample,), keys=(key,))
        for sample, key in zip(call.samples, call.keys, strict=True)
    ]
    added = {name: torch.stack([part[name] for part in parts]).sum(0) for name in _compared(trial.outcome.values)}
    yield from _same(trial, added, trial.varied(items=count), "micro-batches do not add up to the batch")


def shifted(trial: Trial) -> Iterator[Evidence]:
    """``shift_labels`` are scored as they are, in place of ``labels``.

    Why: under context parallelism a rank has a piece of each row, and the target of its last token lies on the next
    rank. So labels are shifted before the rows are cut; a model that shifts the rest itself loses one target of every
    piece, or scores every token against the one after the next.

    Example: a forward that does not pass the argument on.
    """
    got = trial.varied(form="shift_labels")
    yield from _same(trial, got, trial.outcome.values, "shift_labels give another loss than labels")


def padding(trial: Trial) -> Iterator[Evidence]:
    """Padding changes neither loss nor gradients: more of it, on the right or the left, whatever ids stand there.

    Why: how much padding a batch holds depends on its longest sample. What it does to the loss is noise to the
    gradient, and another weight for the same tokens in every batch.

    Example: a mean over all positions after the masked ones were set to zero.
    """
    for side in ("right", "left"):
        got, want, message = trial.varied(padding=side, extra=WIDER), trial.outcome.values, f"padding on the {side}"
        if bool(got["loss"].isfinite()):
            yield from _same(trial, got, want, f"{message} changes it")
            continue
        # Some attentions mask with float64's lowest number and take the softmax in float32, where that is infinite: a
        # row of padding alone is NaN then. In float32, in which models are trained, both sides round.
        got, want = trial.varied(padding=side, extra=WIDER, dtype="float32"), trial.varied(dtype="float32")
        yield from _same(trial, got, want, f"{message} changes it", sides=2)


def order(trial: Trial) -> Iterator[Evidence]:
    """The order of the samples in a batch changes neither loss nor gradients.

    Why: a sampler deals samples out at random; a sample that is scored against its neighbour's labels, or weighs more
    for its place, is trained on wrongly in silence.

    Example: labels that are flattened in another order than the logits.
    """
    call: LossCall = trial.inputs
    got = trial.varied(samples=call.samples[::-1], keys=call.keys[::-1])
    yield from _same(trial, got, trial.outcome.values, "the order of samples matters")


def causal(trial: Trial) -> Iterator[Evidence]:
    """The loss of a token depends on the tokens before it alone, and on the last of them.

    Why: a model that sees the token it is to predict learns to copy it: the loss falls to nothing, and generation is
    noise. A target one further than the next token trains a model that skips words.

    Example: labels that are not shifted.
    """
    out = trial.varied(labels="one")
    reach, labels = out["reach:inputs"], out["labels"]
    place = (labels >= 0).int().argmax(-1)
    for row in torch.nonzero((labels >= 0).any(-1)).flatten().tolist():
        target = int(place[row])
        after, before, largest = reach[row, target:], reach[row, target - 1], reach[row].amax().double()
        leaked = excess(
            "inputs", relative(difference(after, torch.zeros_like(after)), largest),
            floor([], largest, torch.float32), list,
            f"sample {row}: the loss depends on its target's own embedding, or on later ones",
        )  # fmt: skip
        if leaked:
            yield leaked
        if not float(before):
            yield Evidence(
                where="inputs", measured=0.0, limit="not zero", index=(row, target - 1),
                message="the loss does not depend on the token before its target",
            )  # fmt: skip


def empty(trial: Trial) -> Iterator[Evidence]:
    """Where no token is trained on, the loss is zero and so is every gradient.

    Why: with long prompts or truncation, a micro-batch without one trained token comes by sooner or later. A mean over
    nothing is NaN, and one NaN gradient ends the run, on all ranks.

    Example: PyTorch's mean cross-entropy on labels that are all the ignore index.
    """
    asked = (("", None), (" with num_items_in_batch", ITEMS))
    yield from answerable(_over_nothing(trial, said, count) for said, count in asked)


def _over_nothing(trial: Trial, said: str, count: int | None) -> Iterator[Evidence]:
    """Evidence for the first of loss and gradients that is not zero where nothing is trained on."""
    out = trial.varied(labels="none", items=count)
    for where in _compared(out):
        wrong = out[where][out[where] != 0]
        if wrong.numel():
            yield Evidence(
                where=f"{where.partition(':')[0].replace('grad', 'gradients')}{said}",
                measured=f"{float(wrong[0]):g} over no token", limit="0",
                message=f"nothing is trained on, and {where} is not zero",
            )  # fmt: skip
            return


def evaluation(trial: Trial) -> Iterator[Evidence]:
    """Evaluation gives the loss of training, where nothing is dropped.

    Why: the two are compared to see whether a model overfits. A loss of another form in one of them, or a term that
    one of them lacks, is read as that.

    Example: a balancing loss that is added in training only.
    """
    got = trial.varied(train=False, gradients=False)
    yield from _same(trial, got, trial.outcome.values, "evaluation gives another loss than training")


def _specified(trial: Trial) -> Outputs:
    """The specification's loss and gradients on the model's own logits."""
    return trial.varied(by="reference")


def _compared(out: Outputs) -> list[str]:
    return [name for name in out if name == "loss" or name.startswith("grad:")]


def _scored(labels: Tensor) -> int:
    """How many labels something predicts: the first of a row nothing does."""
    return int((labels[:, 1:] >= 0).sum())


def _scaled(out: Outputs, factor: float) -> dict[str, Tensor]:
    return {name: out[name] * factor for name in _compared(out)}


def _same(
    trial: Trial, got: Outputs, want: Outputs, message: str, share: float = 1.0, sides: int = 1
) -> Iterator[Evidence]:  # fmt: skip
    """Loss and gradients agree, up to what float32 costs this model on this batch.

    ``share`` of the whole is at stake; so many ``sides`` are in float32. Of all parameters whose gradients do not, the
    worst stands for the rest: one fault is one finding.
    """
    reaches = {name: reach * share for name, reach in _reaches(trial).items()}
    broken = []
    for name in (name for name in _compared(want) if name in got):
        reach = reaches[name.partition(":")[0]]
        error, allowed = relative(difference(got[name], want[name]), reach), floor([], reach, torch.float32)
        if not bool((error > allowed).any()):
            continue
        found = excess(name, error, allowed, functools.partial(_ordinary, trial, name, sides), message)
        if found:
            broken.append(found)
    yield from (item for item in broken if item.where == "loss")
    yield from worst("gradients", [item for item in broken if item.where != "loss"])


def _reaches(trial: Trial) -> Mapping[str, Tensor]:
    """What rounding is proportional to: the largest of the logits and the loss itself, and the largest gradient."""

    def compute() -> dict[str, Tensor]:
        out = _specified(trial)
        logits = out["logits"][out["attention_mask"].bool()]
        grads = [value.abs().max() for name, value in out.items() if name.startswith("grad:") and value.numel()]
        largest = torch.maximum(logits.abs().amax().double(), out["loss"].double())
        return {"loss": largest, "grad": torch.stack(grads).max().double()}

    found: Mapping[str, Tensor] = trial.once("loss reaches", compute)
    return found


def _ordinary(trial: Trial, name: str, sides: int) -> list[Tensor]:
    """What float32 costs the specification on this model: the scale of what may be lost."""
    wide = _specified(trial)
    narrow = trial.varied(by="reference", dtype="float32")
    return [sides * relative(difference(narrow[name], wide[name]), _reaches(trial)[name.partition(":")[0]])]


def _several(_operation: Operation, case: Case) -> str | None:
    return None if len(case.samples) > 1 else "one sample"


_law = partial(Law.of, (NAME,))

LAWS = (
    _law(reference), _law(items), _law(micro, _several), _law(shifted), _law(padding), _law(order, _several),
    _law(causal), _law(empty), _law(evaluation),
)  # fmt: skip
