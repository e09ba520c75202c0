"""Pipelines that compute another loss than that of their labels, or do something else in training mode."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from assay.audits.components.pipeline.own import IGNORED, Collator, Ids, Talks
from assay.audits.components.pipeline.upstream import Columns, trainer
from assay.audits.components.pipeline.wrong import FAMILY, cacheless, faulty, model, pipeline
from assay.audits.families.discovery import loaded
from assay.audits.pipelines import Pipeline

Loss = Callable[..., Tensor]


def _with_loss(of: Callable[[Tensor, Tensor, Tensor], Tensor], *, items: bool = True) -> Pipeline:
    """A pipeline whose loss is ``of(logits, labels, count)``, with the number of its targets or that of the step."""

    def whole(model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        labels = inputs.pop("labels")
        count = (labels[:, 1:] >= 0).sum() if num_items_in_batch is None else num_items_in_batch
        return of(model(**inputs).logits, labels, count)

    def single(model: Any, inputs: dict[str, Any]) -> Tensor:
        return whole(model, inputs)

    return dataclasses.replace(pipeline(Collator(FAMILY)), loss=whole if items else single)


def _sum(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")


@faulty("loss")
def loss_divided_by_all_tokens() -> Pipeline:
    """The sum over the targets is divided by the number of all tokens of the batch, prompts and padding too.

    Effect: the learning rate depends on how long prompts are, and on how much padding a batch has.
    """
    return _with_loss(lambda logits, labels, _: _sum(logits[:, :-1], labels[:, 1:]) / labels.numel())


@faulty("loss")
def loss_averaged_by_row() -> Pipeline:
    """The mean of the rows' means is taken.

    Effect: a token of a short answer weighs many times as much as one of a long answer.
    """

    def of(logits: Tensor, labels: Tensor, _count: Tensor) -> Tensor:
        rows = zip(logits[:, :-1], labels[:, 1:], strict=True)
        return torch.stack([functional.cross_entropy(row, own) for row, own in rows]).mean()

    return _with_loss(of, items=False)


@faulty("loss")
def labels_not_shifted_by_the_loss() -> Pipeline:
    """Logits are compared with the label of the same place.

    Effect: each token is trained to repeat itself, which it sees.
    """
    return _with_loss(lambda logits, labels, count: _sum(logits, labels) / count)


@faulty("loss", link="https://github.com/verl-project/verl/pull/3287")
def labels_shifted_twice_by_the_loss() -> Pipeline:
    """Labels are shifted, and the function that takes them shifts them again.

    Effect: every token is trained to predict the one after the next.
    """
    return _with_loss(lambda logits, labels, count: _sum(logits[:, :-2], labels[:, 2:]) / count)


@faulty("loss")
def logits_in_half_precision() -> Pipeline:
    """Logits are brought to bfloat16 before the loss is computed.

    Effect: likelihoods that differ by one per cent are the same.
    """
    return _with_loss(lambda logits, labels, count: _sum(logits[:, :-1].bfloat16(), labels[:, 1:]).double() / count)


@faulty("loss")
def logits_rounded_by_the_head() -> Pipeline:
    """The model's head rounds its logits to bfloat16, whatever the model's dtype; the loss is right for what is left.

    Effect: as before, and what is generated ties where it should not.
    """
    made = cacheless(loaded(FAMILY).build(0))
    made.lm_head.register_forward_hook(lambda _module, _args, out: out.bfloat16().to(out.dtype))
    return dataclasses.replace(pipeline(Collator(FAMILY)), model=made)


@faulty("loss")
def ignored_labels_trained_as_the_first_token() -> Pipeline:
    """Labels are clamped to the vocabulary before the loss, which then ignores none.

    Effect: prompts and padding are trained to say the vocabulary's first token.
    """
    return _with_loss(lambda logits, labels, count: _sum(logits[:, :-1], labels[:, 1:].clamp(min=0)) / count)


@faulty("loss")
def logits_sharpened_before_the_loss() -> Pipeline:
    """Logits are divided by a temperature of the generation's settings.

    Effect: the model is as sure as it shall be at that temperature, and unsure without.
    """
    return _with_loss(lambda logits, labels, count: _sum(logits[:, :-1] / 0.7, labels[:, 1:]) / count)


@faulty("loss")
def end_of_turn_left_out_by_the_loss() -> Pipeline:
    """The loss ignores the token that ends a turn, for which it takes the padding.

    Effect: labels look right, and the model answers and does not stop.
    """
    end = int(Collator(FAMILY).processor.tokenizer.convert_tokens_to_ids("<|im_end|>"))

    def of(logits: Tensor, labels: Tensor, count: Tensor) -> Tensor:
        return _sum(logits[:, :-1], labels[:, 1:].masked_fill(labels[:, 1:] == end, IGNORED)) / count

    return _with_loss(of)


@faulty("loss", "micro")
def count_of_the_step_taken_twice() -> Pipeline:
    """The mean over the batch's targets is divided by the number of those of the step.

    Effect: the more there is to learn in a step, the less is learnt.
    """
    return _with_loss(lambda logits, labels, count: functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()) / count)  # fmt: skip


def _talks(own: Collator) -> Talks:
    return Talks(int(own.processor.image_processor.patch_size))


@faulty("micro", link="https://github.com/MakazhanAlpamys/Soup/issues/720")
def trainer_with_a_loss_that_takes_no_count() -> Any:
    """A ``Trainer`` is given a function for the loss that ignores the count of the step, and is not told so.

    Effect: with gradient accumulation the gradient is larger by the number of micro-batches.
    """

    def of(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:  # noqa: ARG001 - the fault itself
        return functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    own = Collator(FAMILY)
    made = trainer(model(), own, _talks(own), own.processor, remove_unused_columns=False)
    made.compute_loss_func = of
    return made


@faulty("loss", link="https://github.com/huggingface/transformers/issues/17960")
def trainer_that_smooths_unshifted_labels() -> Any:
    """A ``Trainer`` with label smoothing does not know the model's class as one whose labels are to be shifted.

    Effect: each token is trained to repeat itself as soon as smoothing is on.
    """
    own = Collator(FAMILY)
    arguments = {"remove_unused_columns": False, "label_smoothing_factor": 0.1}
    return trainer(model(), own, _talks(own), own.processor, **arguments)


@faulty("types", "positions")
def trainer_that_drops_columns() -> Any:
    """A ``Trainer`` drops the columns that the outer forward does not name, before the collator sees them.

    Effect: token types that were computed beforehand never arrive, and images are numbered as text.
    """
    own = Collator(FAMILY)
    samples = [own.one(sample["messages"]) for sample in _talks(own)]
    names = ("input_ids", "labels", "attention_mask", "pixel_values", "image_grid_thw")
    rows = [Columns([one], *(name for name in names if name in one))[0] for one in samples]
    return trainer(model(), own.labelled, rows, own.processor, remove_unused_columns=False)


@faulty("positions")
def trainer_that_pops_what_it_does_not_know() -> Any:
    """A ``Trainer`` takes keys out of its inputs before it calls the model.

    Effect: the batch is right, and images are numbered as text all the same.
    """
    own = Collator(FAMILY)
    made = trainer(model(), own, _talks(own), own.processor, remove_unused_columns=False)
    inner = made.compute_loss

    def compute_loss(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        known = {name: value for name, value in inputs.items() if name != "mm_token_type_ids"}
        return inner(model, known, *args, **kwargs)

    made.compute_loss = compute_loss
    return made


class _Listed:
    """The language-modelling collator, for samples with labels of their own."""

    def __init__(self) -> None:
        from transformers import DataCollatorForLanguageModeling

        self.processor = Collator(FAMILY).processor
        self._collator = DataCollatorForLanguageModeling(self.processor.tokenizer, mlm=False)

    def __call__(self, samples: Any) -> Any:
        return self._collator([{"input_ids": sample["input_ids"]} for sample in samples])


@faulty("answers")
def language_modelling_collator_for_conversations() -> Pipeline:
    """Conversations are padded by a collator for language modelling, which makes the labels anew from the ids.

    Effect: the masks of the prompts, made with care, are overwritten; the model learns to ask.
    """
    return pipeline(_Listed(), Ids(Collator(FAMILY)))


def _patched(change: Callable[[Any, dict[str, Any]], None]) -> Pipeline:
    """A model whose forward changes its arguments first."""
    made = cacheless(loaded(FAMILY).build(0))
    made.model.register_forward_pre_hook(lambda module, args, kwargs: (args, _with(change, module, kwargs)),
                                         with_kwargs=True)  # fmt: skip
    return dataclasses.replace(pipeline(Collator(FAMILY)), model=made)


def _with(change: Callable[[Any, dict[str, Any]], None], module: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    change(module, kwargs)
    return kwargs


def _drop(name: str) -> Callable[[Any, dict[str, Any]], None]:
    def change(module: Any, kwargs: dict[str, Any]) -> None:
        if module.training:
            kwargs[name] = None

    return change


@faulty("mode")
def types_dropped_in_training_mode() -> Pipeline:
    """In training mode the forward does not hand on the token types.

    Effect: evaluation sees images, training sees text.
    """
    return _patched(_drop("mm_token_type_ids"))


def _hide_none(module: Any, kwargs: dict[str, Any]) -> None:
    if module.training and kwargs.get("input_ids") is not None:
        ids = kwargs["input_ids"]
        kwargs["position_ids"] = torch.arange(ids.shape[1]).expand(3, *ids.shape)


@faulty("mode")
def plain_positions_in_training_mode() -> Pipeline:
    """A fast path for training numbers all tokens as text.

    Effect: places in images are learnt from evaluation's positions by nobody.
    """
    return _patched(_hide_none)


@faulty("mode")
def pictures_blanked_in_training_mode() -> Pipeline:
    """In training mode pixels are replaced by zeros, left from a test of what text alone reaches.

    Effect: the loss falls, the tower's gradient is of a blank picture, and evaluation is on real ones.
    """

    def change(module: Any, kwargs: dict[str, Any]) -> None:
        if module.training and kwargs.get("pixel_values") is not None:
            kwargs["pixel_values"] = torch.zeros_like(kwargs["pixel_values"])

    return _patched(change)


@faulty("mode")
def tower_detached_in_training_mode() -> Pipeline:
    """In training mode features are taken from the tower without their graph, though its parameters are to be trained.

    Effect: scores and losses are right, and the tower never moves.
    """
    made = cacheless(loaded(FAMILY).build(0))
    made.model.visual.merger.register_forward_hook(lambda module, _args, out: out.detach() if module.training else out)
    return dataclasses.replace(pipeline(Collator(FAMILY)), model=made)
