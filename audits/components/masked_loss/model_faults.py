"""Wrong losses of a whole model: one family's, right as it is, with its loss broken in one way in each."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from assay.audits.components.masked_loss.model import DEFAULT_FAMILY, NAME
from assay.audits.families.causal import loaded
from assay.audits.families.loss_run import IGNORED, LossCall, LossModel
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs

Loss = Callable[..., Tensor]
"""``loss(logits, labels, num_items_in_batch, shift_labels)``."""


class _Broken(LossModel):
    """A family's model with ``breakage`` done to each one that is made."""

    def __init__(self, breakage: Callable[[Any], None], family: str = DEFAULT_FAMILY) -> None:
        self._breakage = breakage
        super().__init__(loaded(family))

    def _made(self) -> Any:
        model = super()._made()
        self._breakage(model)
        return model


@functools.lru_cache(maxsize=1)
def _broken(breakage: Callable[[Any], None]) -> _Broken:
    """One for all calls of a fault: building a model takes longer than a call."""
    return _Broken(breakage)


@functools.lru_cache(maxsize=1)
def _capped() -> _Broken:
    """A family with a soft-cap whose fused loss does without; it takes no images."""
    return _Broken(_uncapped, "gemma2")


def _losing(loss: Loss) -> Callable[[Any], None]:
    """Put ``loss`` in the place of a model's ``loss_function``."""
    return functools.partial(_replace, loss)


def _replace(loss: Loss, model: Any) -> None:
    def replaced(
        logits: Tensor, labels: Tensor, vocab_size: int, num_items_in_batch: Any = None,
        shift_labels: Tensor | None = None, **_rest: Any,
    ) -> Tensor:  # fmt: skip
        assert vocab_size == logits.shape[-1]
        return loss(logits, labels, num_items_in_batch, shift_labels)

    model.loss_function = replaced


def _targets(labels: Tensor, shift_labels: Tensor | None) -> Tensor:
    if shift_labels is not None:
        return shift_labels
    return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORED)], dim=1)


def _summed(logits: Tensor, targets: Tensor, items: Any, **options: Any) -> Tensor:
    """The right loss of targets that are shifted: what the faults depart from."""
    total = cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum", **options)
    return total / (items if items is not None else (targets != IGNORED).sum().clamp(min=1))


def right(logits: Tensor, labels: Tensor, items: Any, shift_labels: Tensor | None) -> Tensor:
    """The form of the faults with nothing wrong in it."""
    return _summed(logits, _targets(labels, shift_labels), items)


def clean(call: LossCall) -> Outputs:
    """The default family with a loss that is right, also where nothing is trained on."""
    return _broken(RIGHT)(call)


RIGHT = _losing(right)


def _mean_of_its_own(logits: Tensor, labels: Tensor, _items: Any, shift_labels: Tensor | None) -> Tensor:
    return right(logits, labels, None, shift_labels)


def _twice(logits: Tensor, labels: Tensor, items: Any, shift_labels: Tensor | None) -> Tensor:
    return right(logits, _targets(labels, None), items, shift_labels)


def _unshifted(logits: Tensor, labels: Tensor, items: Any, shift_labels: Tensor | None) -> Tensor:
    return right(logits, labels, items, labels if shift_labels is None else shift_labels)


def _deaf(logits: Tensor, labels: Tensor, items: Any, _shift_labels: Tensor | None) -> Tensor:
    return right(logits, labels, items, None)


def _flattened(logits: Tensor, labels: Tensor, items: Any, shift_labels: Tensor | None) -> Tensor:
    """Rows are flattened first and shifted then, so that each row's last token is scored by the next row's first."""
    if shift_labels is not None:
        return right(logits, labels, items, shift_labels)
    return _summed(logits.flatten(0, 1)[None, :-1], labels.flatten()[None, 1:], items)


def _over_all(logits: Tensor, labels: Tensor, items: Any, shift_labels: Tensor | None) -> Tensor:
    everything = torch.tensor(labels.numel() if items is None else int(items))
    return right(logits, labels, everything, shift_labels)


def _nan_of_nothing(logits: Tensor, labels: Tensor, items: Any, shift_labels: Tensor | None) -> Tensor:
    targets = _targets(labels, shift_labels)
    mean = cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
    return mean if items is None else mean * (targets != IGNORED).sum() / items


def _at_least(logits: Tensor, labels: Tensor, items: Any, shift_labels: Tensor | None) -> Tensor:
    """Divides by four at least, whatever the count of the step is: the parts of a batch are not the whole."""
    count = (_targets(labels, shift_labels) != IGNORED).sum()
    return right(logits, labels, items, shift_labels) * count / count.clamp(min=4)


def _first_counts(logits: Tensor, labels: Tensor, items: Any, shift_labels: Tensor | None) -> Tensor:
    """The first sample's loss counts in full, that of every other one by half."""
    targets = _targets(labels, shift_labels)
    parts = [_summed(logits[row][None], targets[row][None], 1) for row in range(len(targets))]
    weights = [1.0 if row == 0 else 0.5 for row in range(len(parts))]
    count = items if items is not None else (targets != IGNORED).sum().clamp(min=1)
    return torch.stack([part * weight for part, weight in zip(parts, weights, strict=True)]).sum() / count


def _divided_twice(logits: Tensor, labels: Tensor, items: Any, shift_labels: Tensor | None) -> Tensor:
    return right(logits, labels, items, shift_labels) / (1 if items is None else len(logits) + 1)


def _counted_before(logits: Tensor, labels: Tensor, items: Any, shift_labels: Tensor | None) -> Tensor:
    counted = labels if shift_labels is None else shift_labels
    return right(logits, labels, (counted != IGNORED).sum().clamp(min=1) if items is None else items, shift_labels)


def _no_loss(logits: Tensor, labels: Tensor, items: Any, shift_labels: Tensor | None) -> Tensor:
    return right(logits, labels, items, None) if shift_labels is None else 0 * logits.sum()


def _further(logits: Tensor, labels: Tensor, items: Any, shift_labels: Tensor | None) -> Tensor:
    """A tenth of a further loss, of the token after the next, in which whatever is ignored counts as token 0."""
    targets = _targets(_targets(labels, shift_labels), None).clamp(min=0)
    extra = cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="mean")
    return right(logits, labels, items, shift_labels) + extra / 10


def _uncapped(model: Any) -> None:
    from assay.audits import patches
    from assay.reference.linear_cross_entropy import linear_cross_entropy

    def fused(*args: Any, **options: Any) -> Any:
        return linear_cross_entropy(*args, **options | {"softcap": None})

    patches.patch(model, masked_loss=fused).apply()


@fault(NAME, "items", "micro", link="https://github.com/huggingface/transformers/issues/47688")
def count_of_the_step_ignored(call: LossCall) -> Outputs:
    """``num_items_in_batch`` is taken among further arguments, and the loss is the mean over the batch at hand.

    Effect: with gradient accumulation the step is as many times too large as there are micro-batches.
    """
    return _broken(DEAF_TO_ITEMS)(call)


@fault(NAME, "reference", "causal")
def shifted_twice(call: LossCall) -> Outputs:
    """The labels are shifted before they are handed to a loss that shifts them.

    Effect: the model learns to say every second word.
    """
    return _broken(TWICE)(call)


@fault(NAME, "reference", "causal", link="https://github.com/huggingface/transformers/issues/27161")
def never_shifted(call: LossCall) -> Outputs:
    """Every position is scored against its own token.

    Effect: the loss falls to nothing, and the model repeats what it is given.
    """
    return _broken(UNSHIFTED)(call)


@fault(NAME, "shifted", link="https://github.com/huggingface/transformers/pull/48570")
def shifted_labels_dropped(call: LossCall) -> Outputs:
    """``shift_labels`` is not passed on, and the labels are shifted within the piece.

    Effect: under context parallelism one target of every piece is never trained on.
    """
    return _broken(DEAF_TO_SHIFT)(call)


@fault(NAME, "shifted", link="https://github.com/huggingface/transformers/pull/42812")
def no_loss_of_shifted_labels(call: LossCall) -> Outputs:
    """Where there are ``shift_labels`` the labels were removed, and without labels there is no loss.

    Effect: under sequence parallelism nothing is trained.
    """
    return _broken(NO_LOSS)(call)


@fault(NAME, "padding", "reference", link="https://github.com/NVIDIA-NeMo/Megatron-Bridge/issues/6103")
def further_token_trained_everywhere(call: LossCall) -> Outputs:
    """A loss of the token after the next is added, and nobody hands the mask on to it: it is all ones.

    Effect: padding and prompts are trained through it.
    """
    return _broken(FURTHER)(call)


@fault(NAME, "reference", "order")
def flattened_and_shifted_then(call: LossCall) -> Outputs:
    """The batch is flattened to one row of tokens, and shifted as one.

    Effect: the last token of a sample is trained to predict the first one of another.
    """
    return _broken(FLATTENED)(call)


@fault(NAME, "reference", "padding", link="https://github.com/ROCm/TransformerEngine/pull/336")
def mean_over_padding(call: LossCall) -> Outputs:
    """The sum over trained tokens is divided by all tokens, padding included.

    Effect: how much a token counts depends on the longest sample of its batch.
    """
    return _broken(OVER_ALL)(call)


@fault(NAME, "reference", link="https://github.com/NielsRogge/Transformers-Tutorials/issues/511")
def prompts_and_placeholders_trained(call: LossCall) -> Outputs:
    """The forward makes its labels from the input ids and looks at those it is given for their presence alone.

    Effect: the model is trained to write prompts and image placeholders, most of all tokens.
    """

    def breakage(model: Any) -> None:
        def relabel(_module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            if kwargs.get("labels") is None:
                return args, kwargs
            ids, mask = kwargs["input_ids"], kwargs["attention_mask"]
            return args, kwargs | {"labels": ids.masked_fill(mask == 0, IGNORED)}

        model.register_forward_pre_hook(relabel, with_kwargs=True)

    return _Broken(breakage)(call)


@fault(NAME, "items", "micro", link="https://github.com/unslothai/unsloth/pull/3597")
def divided_twice(call: LossCall) -> Outputs:
    """The loss is divided by the count of the step, and then by the number of its samples.

    Effect: training goes on with a fraction of the learning rate that was asked for.
    """
    return _broken(DIVIDED_TWICE)(call)


@fault(NAME, "reference", link="https://github.com/modelscope/ms-swift/pull/9167")
def counted_before_the_shift(call: LossCall) -> Outputs:
    """The sum over shifted targets is divided by the number of labels before the shift.

    Effect: the loss is a little too low, by another factor for each batch.
    """
    return _broken(COUNTED_BEFORE)(call)


@fault(NAME, "reference", link="https://github.com/apple/ml-cross-entropy/issues/48")
def softcap_left_out(call: LossCall) -> Outputs:
    """A fused loss in a model with a soft-cap (Gemma 2) does not apply it.

    Effect: training sees other logits than inference does.
    """
    words = tuple(" ".join(word for word in sample.split() if word.startswith("t")) for sample in call.samples)
    return _capped()(dataclasses.replace(call, samples=words))


@fault(NAME, "micro")
def a_least_divisor(call: LossCall) -> Outputs:
    """Batches with few trained tokens are divided by more than they have, to tame them.

    Effect: short answers are trained on less than long ones, and accumulation is not one batch.
    """
    return _broken(AT_LEAST)(call)


@fault(NAME, "order")
def first_sample_counts_more(call: LossCall) -> Outputs:
    """The loss of every sample but the first of a batch is halved.

    Effect: which samples are trained on in full is the sampler's whim.
    """
    return _broken(FIRST_COUNTS)(call)


@fault(NAME, "empty", link="https://github.com/pytorch/pytorch/issues/70348")
def mean_over_nothing(call: LossCall) -> Outputs:
    """The mean over the trained tokens of a batch that has none.

    Effect: one sample whose answer was cut off turns the whole model into NaN.
    """
    return _broken(NAN_OF_NOTHING)(call)


@fault(NAME, "evaluation")
def a_term_in_training_only(call: LossCall) -> Outputs:
    """A further term is added to the loss in training mode.

    Effect: training and evaluation loss cannot be compared, and early stopping stops at random.
    """
    out = dict(_broken(RIGHT)(call))
    return {**out, "loss": out["loss"] * (1.01 if call.train else 1.0)}


@fault(NAME, "nondeterministic")
def dropout_left_on(call: LossCall) -> Outputs:
    """The embedding is dropped out although every rate is zero.

    Effect: no two runs of a seeded training agree.
    """
    out = dict(_broken(RIGHT)(call))
    kept = torch.nn.functional.dropout(torch.ones(997), 0.1).mean()  # of many channels: no two draws are alike
    return {**out, "loss": out["loss"] * kept}


@fault(NAME, "leaks")
def seed_in_the_loss(call: LossCall) -> Outputs:
    """The global generator is seeded whenever a loss is computed.

    Effect: every step draws the same dropout masks.
    """
    torch.manual_seed(0)
    return _broken(RIGHT)(call)


DEAF_TO_ITEMS, TWICE, UNSHIFTED, DEAF_TO_SHIFT = (
    _losing(loss) for loss in (_mean_of_its_own, _twice, _unshifted, _deaf)
)
FLATTENED, OVER_ALL, AT_LEAST, FIRST_COUNTS = (
    _losing(loss) for loss in (_flattened, _over_all, _at_least, _first_counts)
)
NAN_OF_NOTHING, DIVIDED_TWICE, COUNTED_BEFORE, NO_LOSS, FURTHER = (
    _losing(loss) for loss in (_nan_of_nothing, _divided_twice, _counted_before, _no_loss, _further)
)

FAULTS = gathered(globals())
