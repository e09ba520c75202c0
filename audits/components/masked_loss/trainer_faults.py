"""Wrong steps: a right family under the Trainer, with one thing broken in each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from assay.audits.components.masked_loss.trainer import DEFAULT_FAMILY, NAME
from assay.audits.families.causal import loaded
from assay.audits.families.loss_run import IGNORED
from assay.audits.families.trainer_run import Step, StepCall
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs


class _Broken(Step):
    """The default family's step with ``breakage`` done to each Trainer."""

    def __init__(self, breakage: Callable[[Any], None]) -> None:
        self._breakage = breakage
        super().__init__(loaded(DEFAULT_FAMILY))

    def trainer(self, model: Any, call: StepCall, folder: str) -> Any:
        """A Trainer that is broken."""
        made = super().trainer(model, call, folder)
        self._breakage(made)
        return made


def clean(call: StepCall) -> Outputs:
    """The Trainer as it is."""
    return _Broken(lambda _trainer: None)(call)


@fault(NAME, "accumulated", link="https://github.com/huggingface/transformers/pull/34191")
def mean_of_means(call: StepCall) -> Outputs:
    """The model's class says that it takes no count of the step, so that the means of the micro-batches are averaged.

    Effect: tokens of short answers weigh more than those of long ones.
    """
    return _Broken(_counting_nothing)(call)


def _counting_nothing(trainer: Any) -> None:
    trainer.model_accepts_loss_kwargs = False


@fault(NAME, "accumulated", link="https://github.com/huggingface/transformers/issues/47688")
def means_added(call: StepCall) -> Outputs:
    """The forward swallows the count of the step and averages over its own tokens; the Trainer takes it for scaled.

    Effect: the step is as many times too large as there are micro-batches.
    """

    def breakage(trainer: Any) -> None:
        loss = trainer.model.loss_function
        trainer.model.loss_function = lambda **given: loss(**given | {"num_items_in_batch": None})

    return _Broken(breakage)(call)


@fault(
    NAME, "reference", link="https://github.com/huggingface/transformers/issues/27161",
    also=("https://github.com/modelscope/ms-swift",),  # seen in the trainer of 4.6.0
)  # fmt: skip
def smoothed_against_its_own_token(call: StepCall) -> Outputs:
    """With label smoothing the Trainer scores each position against its own token.

    Effect: the loss falls fast and the model repeats what it reads.
    """
    return _Broken(functools.partial(_smoothing, _unshifted))(call)


@fault(NAME, "accumulated", link="https://github.com/modelscope/ms-swift/pull/9167")
def smoothed_by_the_micro_batch(call: StepCall) -> Outputs:
    """With label smoothing each micro-batch is divided by its own count, and the sum is not divided again.

    Effect: turning label smoothing on multiplies the learning rate.
    """
    return _Broken(functools.partial(_smoothing, _uncounted))(call)


def _smoothing(change: Callable[[Any, dict[str, Any]], Tensor], trainer: Any) -> None:
    if trainer.label_smoother is not None:
        smoother = trainer.label_smoother
        trainer.label_smoother = lambda outputs, labels, **given: change(
            smoother, {"model_output": outputs, "labels": labels, **given}
        )


def _unshifted(smoother: Any, given: dict[str, Any]) -> Tensor:
    loss: Tensor = smoother(**given | {"shift_labels": False})
    return loss


def _uncounted(smoother: Any, given: dict[str, Any]) -> Tensor:
    loss: Tensor = smoother(**given | {"num_items_in_batch": None})
    return loss


@fault(NAME, "reference", link="https://github.com/modelscope/ms-swift/pull/9167")
def counted_before_the_shift(call: StepCall) -> Outputs:
    """The Trainer counts labels as they are, first tokens included, which nothing predicts.

    Effect: the loss and the step are a little too small, by another factor for each batch.
    """

    def breakage(trainer: Any) -> None:
        trainer._get_num_items_in_batch = lambda batches, _device: sum(  # noqa: SLF001 - the method that is broken
            (batch["labels"] != IGNORED).sum() for batch in batches
        )

    return _Broken(breakage)(call)


class _Packed(_Broken):
    """A Trainer as it is, on packs that are changed."""

    def __init__(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self._change = change
        super().__init__(lambda _trainer: None)

    def packs(self, model: Any, call: StepCall) -> list[dict[str, Any]]:
        """The collator's packs, changed."""
        return [self._change(pack) for pack in super().packs(model, call)]


@fault(NAME, "reference", link="https://github.com/huggingface/transformers/pull/46634")
def mask_of_ones_on_packs(call: StepCall) -> Outputs:
    """The packs of the flattening collator get a mask of ones on their way to the Trainer.

    Effect: samples are trained with all that stands before them in the row.
    """
    return _Packed(lambda pack: {**pack, "attention_mask": torch.ones_like(pack["input_ids"])})(call)


@fault(NAME, "reference")
def packs_without_separators(call: StepCall) -> Outputs:
    """The first label of each packed sample is kept, so that the last token of the sample before predicts it.

    Effect: every boundary is trained as if the samples followed from each other.
    """
    return _Packed(lambda pack: {**pack, "labels": pack["input_ids"]})(call)


@fault(NAME, "nondeterministic")
def another_seed_each_time(call: StepCall) -> Outputs:
    """The model is drawn anew in every run.

    Effect: no run can be repeated.
    """
    out = dict(clean(call))
    return {name: value + torch.randn(()) for name, value in out.items()}


@fault(NAME, "leaks")
def default_dtype_left_behind(call: StepCall) -> Outputs:
    """The default dtype is set for the step and not put back.

    Effect: all tensors that are made afterwards have another precision.
    """
    out = clean(call)
    torch.set_default_dtype(torch.float64)
    return out


FAULTS = gathered(globals())
